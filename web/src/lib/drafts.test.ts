import { expect, test } from 'vitest';
import { blankDraft, costText, readFire, readTags, sent, writeFire } from './drafts';

test('how often a rule fires is read and written alike', () => {
  for (const fire of ['edge', 'level', 'once per bar 15m', 'once per session', 'once per day']) {
    const { kind, bar } = readFire(fire);
    expect(writeFire(kind, bar)).toBe(fire);
  }
  expect(readFire('often')).toEqual({ kind: 'edge', bar: '5m' });
});

test('tags are read as they are typed', () => {
  expect(readTags(' #gap, long  gap,,')).toEqual(['gap', 'long']);
});

test('rearm is sent only with edge, and a name without its margins', () => {
  const draft = { ...blankDraft(), name: ' A ', rearm: 'price < 1' };
  expect(sent(draft)).toMatchObject({ name: 'A', rearm: 'price < 1' });
  expect(sent({ ...draft, fire: 'level' }).rearm).toBe('');
});

test('a cost is told in time, share and memory', () => {
  const cost = { scan_us: 78, max_scan_us: 5_000, memory_bytes: 91_250, remembering: 1, comparisons: 2 };
  expect(costText(cost)).toBe('78 µs a scan of 10,000 symbols (2 % of what a rule may take), 91 kB of memory');
  expect(costText({ ...cost, scan_us: 2_500, memory_bytes: 0 })).toBe('2.5 ms a scan of 10,000 symbols (50 % of what a rule may take)');
});
