import { expect, test } from 'vitest';
import { rowsOf, textOf } from './rows';

test('plain comparisons are rows and come back as the same text', () => {
  const text = 'change_pct_5m > 2.5\nand price crosses_below vwap_session\nand close_5m[1] <= -1_000.5';
  expect(rowsOf(text)).toEqual([
    { metric: 'change_pct_5m', operator: '>', value: '2.5' },
    { metric: 'price', operator: 'crosses_below', value: 'vwap_session' },
    { metric: 'close_5m[1]', operator: '<=', value: '-1_000.5' },
  ]);
  expect(textOf(rowsOf(text) ?? [])).toBe(text);
});

test('other spellings of the same are rows too', () => {
  expect(rowsOf('price = 5k and halted and not suspect_split and price crosses above 3')).toEqual([
    { metric: 'price', operator: '==', value: '5k' },
    { metric: 'halted', operator: '==', value: '1' },
    { metric: 'suspect_split', operator: '==', value: '0' },
    { metric: 'price', operator: 'crosses_above', value: '3' },
  ]);
});

test('what says more is no rows', () => {
  for (const text of ['price > 5 or price < 1', 'price > 5 for 10s', 'price between 1 and 2', 'price > 2 * vwap_session', 'price > 5 # why', 'session is regular']) {
    expect(rowsOf(text), text).toBeNull();
  }
});

test('rows that are not yet written are left out', () => {
  expect(textOf([{ metric: 'price', operator: '>', value: ' ' }, { metric: '', operator: '>', value: '1' }])).toBe('');
  expect(rowsOf(' ')?.length).toBe(1);
});
