import { expect, test } from 'vitest';
import type { RuleScore } from './api';
import { ageText, alertFilter, brief, lacksText, markOf, reading, signed, sparkBars } from './why';

test('what is lacking has a sign and enough digits', () => {
  expect([0.35, -1.2, 0.0042, 12_345.6, -0.000_01].map(signed)).toEqual(['+0.35', '−1.20', '+0.0042', '+12,346', '−0.00001']);
  expect(lacksText({ true: false, lacks: 0.35 })).toBe('lacks +0.35');
  for (const finding of [{ true: true, lacks: 1 }, { true: null, lacks: null }, { true: false, lacks: 0 }]) expect(lacksText(finding)).toBe('');
});

test('values read by their unit, and unknown is a dash', () => {
  expect([reading('price', 12.5, '$'), reading('gap', -0.5, '$'), reading('gap_pct', 2, '%'), reading('volume_5m', 12_000, 'shares')]).toEqual(
    ['$12.50', '−$0.5000', '+2.00%', '12.00K shares'],
  );
  expect([brief('volume_5m', 12_000, 'shares'), brief('price', 3, '$')]).toEqual(['12.00K', '$3.00']);
  expect([reading('time_of_day', 570.5, 'minutes'), reading('price_age', 3, 'seconds'), reading('price', null, '$')]).toEqual(['09:30:30', '3 s', '–']);
  expect([0.04, 12.4, 600, 90_000, 864_000, null].map(ageText)).toEqual(['0.0 s', '12 s', '10 min', '25 h', '10 days', '–']);
});

test('yes, no and unknown are three', () => {
  expect([true, false, null].map(markOf)).toEqual(['yes', 'no', 'unknown']);
});

test('alerts are filtered by text, least severity and tag together', () => {
  const alert = { symbol: 'AAPL', rule_name: 'Gap and go', severity: 'warning' as const, tags: ['gap'] };
  const passes = (filter: Partial<Parameters<typeof alertFilter>[0]>) => alertFilter({ text: '', least: 'info', tag: '', ...filter })(alert);
  expect([{}, { text: 'aap' }, { text: ' GO' }, { least: 'warning' as const, tag: 'gap' }].map(passes)).toEqual([true, true, true, true]);
  expect([{ text: 'x' }, { least: 'critical' as const }, { tag: 'ga' }].map(passes)).toEqual([false, false, false]);
});

test('bars of a score go up and down from the middle, and unknown has none', () => {
  const mean = (mean_pct: number | null) => ({ known: 1, positive_pct: 50, mean_pct, median_pct: null, highest_pct: null, lowest_pct: null });
  const outcomes = { return_pct_1m: mean(1), return_pct_5m: mean(-2), return_pct_15m: mean(null) };
  const score: RuleScore = { name: 'R', rule_id: 'r', rule_version: 1, alerts: 1, symbols: 1, unfollowed: 0, too_broad: null, outcomes };
  expect(sparkBars(score)).toEqual([{ y: 0.5, height: 0.5, up: true }, { y: 1, height: 1, up: false }, null, null, null]);
});
