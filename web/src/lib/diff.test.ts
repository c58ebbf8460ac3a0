import { expect, test } from 'vitest';
import { changes, diffWords } from './diff';
import { blankDraft } from './drafts';

const shown = (before: string, after: string) =>
  diffWords(before, after).map(({ kind, text }) => (kind === 'gone' ? `[-${text}-]` : kind === 'new' ? `{+${text}+}` : text)).join('');

test('words that changed are told, the others stay', () => {
  expect(shown('price > 5 and volume_5m > 10', 'price > 6 and volume_5m > 10')).toBe('price > [-5-]{+6+} and volume_5m > 10');
  expect(shown('price > 5', 'price > 5 for 10s')).toBe('price > 5{+ for 10s+}');
  expect(shown('', 'price > 5')).toBe('{+price > 5+}');
  expect(shown('same', 'same')).toBe('same');
});

test('both texts can be read back from a difference', () => {
  const words = 'a b c and or ( ) > 5 price\n'.split(' ');
  let seed = 7;
  const some = () => Array.from({ length: 30 }, () => words[(seed = (seed * 48_271) % 2_147_483_647) % words.length]).join(' ');
  for (let round = 0; round < 50; round += 1) {
    const [before, after] = [some(), some()];
    const parts = diffWords(before, after);
    expect(parts.filter(({ kind }) => kind !== 'new').map(({ text }) => text).join('')).toBe(before);
    expect(parts.filter(({ kind }) => kind !== 'gone').map(({ text }) => text).join('')).toBe(after);
  }
});

test('only fields that differ are changes', () => {
  const before = { ...blankDraft(), name: 'A', when: 'price > 5', tags: ['x'] };
  expect(changes(before, before)).toEqual([]);
  expect(changes(before, { ...before, enabled: false, tags: ['x', 'y'] }).map(({ field }) => field)).toEqual(['tags', 'on']);
});
