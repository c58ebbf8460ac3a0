import { expect, test } from 'vitest';
import { readSettings } from './settings.svelte';

test('what cannot be read or makes no sense becomes the default', () => {
  const usual = readSettings(null);
  expect([usual.panels.length, usual.panels[0], usual.theme, usual.sound, usual.editor, usual.notify]).toEqual([6, { list: 'gainers_5m', rows: 15 }, 'dark', false, 'rows', 'off']);
  for (const text of ['{', 'null', '7', '[]', '{"panels":{"0":null},"theme":"pink","sound":"yes","editor":7,"notify":true}', '{"panels":null}']) {
    expect(readSettings(text), text).toEqual(usual);
  }
});

test('what was chosen is kept', () => {
  const kept = readSettings('{"panels":[{"list":"rsi_low","rows":50},{"rows":3}],"theme":"system","sound":true,"editor":"text","notify":"warning"}');
  expect(kept.panels.slice(0, 2)).toEqual([{ list: 'rsi_low', rows: 50 }, { list: 'losers_5m', rows: 15 }]);
  expect([kept.theme, kept.sound, kept.editor, kept.notify]).toEqual(['system', true, 'text', 'warning']);
});
