import { expect, test } from 'vitest';
import { candles } from './chart';

test('bars come out in order, each minute once, whichever way their time is written', () => {
  const bar = { open: 1, high: 2, low: 0.5, close: 1.5, volume: 10 };
  const drawn = candles([
    { ...bar, ts: '2013-10-07T13:31:00.000000000Z' },
    { ...bar, ts_ns: 1_381_152_600_000_000_000 },
    { ...bar, ts: '2013-10-07T13:31:00Z', close: 9, volume: null },
    { ...bar, ts: '2013-10-07T13:32:00Z', high: null },
  ]);
  expect(drawn.map(({ time, close, volume }) => [time, close, volume])).toEqual([[1_381_152_600, 1.5, 10], [1_381_152_660, 9, 0]]);
});
