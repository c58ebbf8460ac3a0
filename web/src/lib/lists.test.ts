import { expect, test } from 'vitest';
import type { Ranking, SystemToplist } from './api';
import { blankList, colourOf, families, inFamily, isOwn, listDraftOf, Movement, whyEmpty, wordsOf } from './lists';

const list = (id: string, title: string, window: string): SystemToplist => ({ id, title, window, metric: 'price' });

test('lists that differ in their window only are one family', () => {
  const found = families([
    list('gainers_5m', 'Gainers 5m', '5m'),
    list('rsi_high', 'RSI 14 highest', '1m'),
    list('gainers_day', 'Gainers day', 'day'),
    list('rsi_high_15m', 'RSI 14 highest 15m', '15m'),
    list('vwap_above', 'Furthest above VWAP', 'session'),
    list('vwap_above_1h', 'Furthest above VWAP 1h', '1h'),
  ]);
  expect(found.map(({ key, title }) => [key, title])).toEqual([
    ['gainers', 'Gainers'], ['rsi_high', 'RSI 14 highest'], ['vwap_above', 'Furthest above VWAP'],
  ]);
  expect(inFamily(found[1]!, '15m')).toBe('rsi_high_15m');
  expect(inFamily(found[2]!, '1h')).toBe('vwap_above_1h');
  expect(inFamily(found[0]!, 'day')).toBe('gainers_day');
  expect(inFamily(found[1]!, 'day')).toBe('rsi_high');
});

const ranked = (...symbols: string[]): Ranking[] =>
  symbols.map((symbol, place) => ({ symbol, rank: place + 1, value: 1, metadata: { price: 1, change_pct_day: 1, volume_day: 1 } }));

test('movement is counted against half a minute ago, and begins again with the tape', () => {
  const movement = new Movement();
  expect(movement.next(0, ranked('A', 'B')).size).toBe(0);
  expect(movement.next(10_000, ranked('B', 'A', 'C'))).toEqual(new Map([['B', 1], ['A', -1], ['C', null]]));
  expect(movement.next(35_000, ranked('B', 'A', 'C'))).toEqual(new Map([['B', 0], ['A', 0], ['C', 0]]));
  expect(movement.next(1_000, ranked('C')).size).toBe(0);
});

test('an empty list says how many minutes of the tape it still needs', () => {
  const list = (metric: string, window: string) => ({ id: '', title: '', metric, window });
  expect(whyEmpty(list('change_pct_5m', '5m'))).toBe('Warming up: needs 5 minutes of the tape.');
  expect(whyEmpty(list('change_pct_1m', '1m'))).toBe('Warming up: needs 1 minute of the tape.');
  expect(whyEmpty(list('volume_1h', '1h'))).toBe('Warming up: needs 60 minutes of the tape.');
  expect(whyEmpty(list('rsi_14_1m', '1m'))).toBe('Warming up: needs 15 minutes of the tape.');
  expect(whyEmpty(list('rsi_14_5m', '5m'))).toBe('Warming up: needs 75 minutes of the tape.');
  expect(whyEmpty(list('rsi_14_1h', '1h'))).toBe('Warming up: needs 15 hours of the tape.');
  expect(whyEmpty(list('vwap_5m_distance_pct', '5m'))).toBe('No symbol has this value yet.');
  expect(whyEmpty(list('change_pct_day', 'day'))).toBe('No symbol has this value yet.');
  expect(whyEmpty(undefined)).toBe('No symbol has this value yet.');
});

test('a list of a user is told by its id, and its draft is what its author wrote', () => {
  expect([isOwn('gainers_5m'), isOwn('my-list-0a1b2c3d')]).toEqual([false, true]);
  const stored = { ...blankList(), name: 'Mine', id: 'mine-1', owner: 'local', version: 3, created_at: '', updated_at: '' };
  expect(listDraftOf(stored)).toEqual({ ...blankList(), name: 'Mine' });
  expect(wordsOf(' NYSE, NASDAQ,,NYSE ')).toEqual(['NYSE', 'NASDAQ']);
});

test('a value is coloured by its sign, with names and figures that are colours only', () => {
  const scheme = { positive: 'blue', negative: '#ff0000', neutral: 'url(x)' };
  expect([1, -1, 0, null].map((value) => colourOf(value, scheme))).toEqual(['var(--accent)', '#ff0000', undefined, undefined]);
  expect(colourOf(1, { ...scheme, positive: 'default' })).toBeUndefined();
  expect(colourOf(1, undefined)).toBeUndefined();
});
