import { expect, test } from 'vitest';
import { ruleFilter } from './rulebook.svelte';

test('rules are looked for by name or tag, and half a tag asks for nothing', () => {
  expect([' gap ', '#long', '#', '#a b', ''].map(ruleFilter)).toEqual([{ q: 'gap' }, { tag: 'long' }, {}, {}, {}]);
});
