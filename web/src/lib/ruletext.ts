/** The text of a rule as the editor sees it: words, places, and where a line may break. It judges nothing; the server does. */

import type { Place } from './api';

export type TokenKind = 'name' | 'keyword' | 'number' | 'string' | 'comment' | 'operator' | 'space' | 'other';
export interface Token { kind: TokenKind; text: string; start: number; end: number }

const KEYWORDS = new Set(
  ('and or not then within for in is between times a row crosses crosses_above crosses_below above below watchlist symbol exchange type ' +
    'sector session abs min max').split(' '),
);
const ONLY_BESIDE = new Set(['a', 'row', 'above', 'below', 'times']); // words only as part of a phrase
const PIECES: [TokenKind, RegExp][] = [
  ['space', /[ \t\r\n]+/y],
  ['comment', /#[^\n]*/y],
  ['string', /"(?:[^"\\\n]|\\.)*"?/y],
  ['number', /\$?(?:\d|\.\d)[\w.:%]*/y],
  ['name', /[A-Za-z_]\w*/y],
  ['operator', />=|<=|==|!=|[<>=+\-*/]/y],
];

/** All of the text, in order. */
export function tokenise(text: string): Token[] {
  const tokens: Token[] = [];
  for (let at = 0; at < text.length; ) {
    const [kind, found] = piece(text, at);
    tokens.push({ kind, text: found, start: at, end: at + found.length });
    at += found.length;
  }
  return tokens;
}

function piece(text: string, at: number): [TokenKind, string] {
  for (const [kind, pattern] of PIECES) {
    pattern.lastIndex = at;
    const found = pattern.exec(text)?.[0];
    if (!found) continue;
    if (kind !== 'name') return [kind, found];
    const word = found.toLowerCase();
    const phrase = !ONLY_BESIDE.has(word) || /(?:times|in|a|crosses)\s+$/i.test(text.slice(0, at)) || word === 'times';
    return [KEYWORDS.has(word) && phrase ? 'keyword' : 'name', found];
  }
  return ['other', String.fromCodePoint(text.codePointAt(at) ?? 0)];
}

/** The index in the text of a place that the server named; it counts characters, a string counts halves of some. */
export function indexOf(text: string, { line, column }: Place): number {
  const lines = text.split('\n');
  const before = lines.slice(0, line - 1).reduce((sum, each) => sum + each.length + 1, 0);
  const within = [...(lines[line - 1] ?? '')].slice(0, column - 1).join('').length;
  return Math.min(before + within, text.length);
}

/** What stands at an index: a token, or nothing of no length. */
export function spanAt(text: string, index: number): { start: number; end: number } {
  const token = tokenise(text).find(({ start, end }) => start <= index && index < end);
  return token && token.kind !== 'space' ? { start: index, end: token.end } : { start: index, end: index };
}

/** The line of a place, and a caret below its column. */
export function pointAt(text: string, place: Place): { line: string; caret: string } {
  const line = (text.split('\n')[place.line - 1] ?? '').replaceAll('\t', ' ');
  return { line, caret: `${' '.repeat(Math.max(0, place.column - 1))}^` };
}

/** What an error offers to write in its place: "…; did you mean rsi_14_1m or rsi_14_5m?", "…; write >=". */
export function fixes(detail: string): string[] {
  const meant = /did you mean ([^?]+)\?/.exec(detail)?.[1] ?? /; write ([^,;.]+)(?:,|$)/.exec(detail)?.[1];
  return meant === undefined ? [] : meant.split(' or ').map((each) => each.trim());
}

/** The detail without "line 2, column 5: ", which stands beside it. */
export const withoutPlace = (detail: string): string => detail.replace(/^line \d+, column \d+: /, '');

/** Where the conditions of the outermost conjunction or alternative begin: indices of their "and", "or" and "then". */
function joints(tokens: Token[]): Token[] {
  const found: Token[] = [];
  let [depth, between] = [0, 0];
  for (const token of tokens) {
    if (token.text === '(') depth += 1;
    else if (token.text === ')') depth -= 1;
    if (depth > 0 || token.kind !== 'keyword') continue;
    const word = token.text.toLowerCase();
    if (word === 'between') between += 1;
    else if (word === 'and' && between > 0) between -= 1;
    else if (word === 'and' || word === 'or' || word === 'then') found.push(token);
  }
  return found;
}

const LONG_LINE = 56;
const LONG_NUMBER = /^\d{5,}(?=\.|$)/;

/** The same with large numbers in groups, as the language allows: 2500000 is 2_500_000. */
export function readable(text: string): string {
  return tokenise(text)
    .map(({ kind, text }) => (kind === 'number' ? text.replace(LONG_NUMBER, (digits) => digits.replace(/\B(?=(\d{3})+$)/g, '_')) : text))
    .join('');
}

/** A readable rule, each outer condition on a line of its own where one is too long for all. */
export function laidOut(written: string): string {
  const text = readable(written);
  if (text.length <= LONG_LINE || text.includes('\n')) return text;
  let [laid, from] = ['', 0];
  for (const { start } of joints(tokenise(text))) {
    laid += `${text.slice(from, start).trimEnd()}\n`;
    from = start;
  }
  return laid + text.slice(from);
}

/** The conditions that all must hold, as texts; null if the outermost is no plain conjunction. */
export function conjuncts(text: string): string[] | null {
  const tokens = tokenise(text);
  if (tokens.some(({ kind }) => kind === 'comment')) return null;
  const parts: string[] = [];
  let from = 0;
  for (const { text: word, start, end } of joints(tokens)) {
    if (word.toLowerCase() !== 'and') return null;
    parts.push(text.slice(from, start).trim());
    from = end;
  }
  return [...parts, text.slice(from).trim()];
}
