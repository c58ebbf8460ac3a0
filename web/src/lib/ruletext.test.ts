import { expect, test } from 'vitest';
import { conjuncts, fixes, indexOf, laidOut, pointAt, readable, spanAt, tokenise, withoutPlace } from './ruletext';

const kinds = (text: string) => tokenise(text).filter(({ kind }) => kind !== 'space').map(({ kind, text }) => `${kind} ${text}`);

test('tokens are the whole text, in order, whatever it is', () => {
  for (const text of ['', 'price > 5', 'a\n  b # c\n"open', '𝒳≥5 😀 "q\\"x" [1] .5 $10 5% 1_000k', '\t\r\n~']) {
    expect(tokenise(text).map((token) => token.text).join('')).toBe(text);
  }
});

test('words are told apart: metrics, words of the language, numbers, comments', () => {
  expect(kinds('rsi_14_5m[1] crosses_above $1.5k for 10s # it runs')).toEqual([
    'name rsi_14_5m', 'other [', 'number 1', 'other ]', 'keyword crosses_above', 'number $1.5k', 'keyword for', 'number 10s', 'comment # it runs',
  ]);
  expect(kinds('price crosses above 5 3 times in a row')).toEqual([
    'name price', 'keyword crosses', 'keyword above', 'number 5', 'number 3', 'keyword times', 'keyword in', 'keyword a', 'keyword row',
  ]);
  expect(kinds('above > a')).toEqual(['name above', 'operator >', 'name a']);
});

test('a place counts characters, an index halves of them', () => {
  const text = 'a\n"😀" rsi > 5';
  expect(text.slice(indexOf(text, { line: 2, column: 5 }))).toBe('rsi > 5');
  expect(indexOf(text, { line: 9, column: 9 })).toBe(text.length);
  expect(pointAt(text, { line: 2, column: 5 })).toEqual({ line: '"😀" rsi > 5', caret: '    ^' });
});

test('an error spans the word that it is at, and nothing at the end', () => {
  const text = 'price > 5 and rsii < 30';
  expect(spanAt(text, 14)).toEqual({ start: 14, end: 18 });
  expect(spanAt(text, text.length)).toEqual({ start: text.length, end: text.length });
});

test('what an error offers is read from its words', () => {
  expect(fixes("line 1, column 1: unknown metric 'x'; did you mean rsi_14_1m or rsi_14_5m?")).toEqual(['rsi_14_1m', 'rsi_14_5m']);
  expect(fixes("line 1, column 7: found '=>'; expected a comparison such as >, between or crosses_above; write >=")).toEqual(['>=']);
  expect(fixes("found '='; expected is; write is, such as symbol is AAPL")).toEqual(['is']);
  expect(fixes('line 1, column 9: found the end of the text; expected a metric or a number')).toEqual([]);
  expect(withoutPlace('line 1, column 9: found the end')).toBe('found the end');
});

test('a long rule breaks before its outer conditions, not inside of a range or parentheses', () => {
  const text = 'price between 2 and 500 and (gap_pct > 5 or gap_pct < -5) and relative_volume_5m > 3 for 10s';
  expect(laidOut(text)).toBe('price between 2 and 500\nand (gap_pct > 5 or gap_pct < -5)\nand relative_volume_5m > 3 for 10s');
  expect(laidOut('price > 5 and price < 9')).toBe('price > 5 and price < 9');
});

test('large numbers are read in groups, and nothing else is touched', () => {
  expect(readable('volume_day > 2500000 and a_10000 < 1000 or b > 12345.678901 within 10m # 1000000')).toBe(
    'volume_day > 2_500_000 and a_10000 < 1000 or b > 12_345.678901 within 10m # 1000000',
  );
});

test('only a plain conjunction has conjuncts', () => {
  expect(conjuncts('price between 2 and 5 and (a > 1 and b > 2)')).toEqual(['price between 2 and 5', '(a > 1 and b > 2)']);
  expect(conjuncts('price > 5 or price < 1')).toBeNull();
  expect(conjuncts('a > 1 then b > 2 within 5m')).toBeNull();
});
