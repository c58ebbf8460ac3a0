import { expect, test } from 'vitest';
import { byUnit, clockTimeMs, compact, dayOf, direction, heading, parseTime, percent, price, withClockTimes } from './format';

test('numbers read as a trader reads them, and unknown is a dash, not zero', () => {
  expect([price(1234.5), price(0.0731), price(0), price(null)]).toEqual(['1,234.50', '0.0731', '0.00', '–']);
  expect([percent(2.314), percent(-0.5), percent(0), percent(null)]).toEqual(['+2.31%', '−0.50%', '0.00%', '–']);
  expect([byUnit(3.2, 'ratio'), byUnit(1, 'flag'), byUnit(71.348, 'index')]).toEqual(['3.20×', 'yes', '71.35']);
});

test('a change that rounds to nothing has neither sign nor colour', () => {
  expect([percent(0.004), percent(-0.004), direction(-0.004), direction(null)]).toEqual(['0.00%', '0.00%', 'flat', 'flat']);
});

test('compact numbers round before they choose their letter', () => {
  expect([999, 1_500, 46_520, 832_100, 999_999, 37_130_000, 2.5e9].map(compact)).toEqual(
    ['999', '1.50K', '46.52K', '832.1K', '1.00M', '37.13M', '2.50B'],
  );
});

test('times are those of New York, on both sides of the clock change', () => {
  const summer = parseTime('2013-10-07T13:30:01.123456789Z');
  expect(clockTimeMs(summer)).toBe('09:30:01.123');
  expect(clockTimeMs(parseTime('2013-12-02T14:30:00Z'))).toBe('09:30:00.000');
  expect(dayOf(parseTime('2013-10-08T03:59:59.999999999Z'))).toBe('2013-10-07');
});

test('times inside a text become those of New York', () => {
  expect(withClockTimes('cancelled: 100 @ 99.00 at 2025-03-06T14:30:01.004Z.')).toBe('cancelled: 100 @ 99.00 at 09:30:01.004 ET.');
  expect(withClockTimes('nothing to change')).toBe('nothing to change');
});

test('headings are short names of metrics', () => {
  expect(['change_pct_5m', 'relative_volume_15m', 'volume_day', 'rsi_14_1m', 'rsi_14_5m', 'vwap_distance_pct', 'vwap_1h_distance_pct', 'gap_pct'].map(heading)).toEqual(
    ['Chg 5m', 'RVol 15m', 'Vol day', 'RSI 14', 'RSI 14 5m', 'VWAP dist', 'VWAP dist 1h', 'Gap pct'],
  );
});
