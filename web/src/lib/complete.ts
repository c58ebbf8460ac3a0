/** What could be written at the cursor of a rule's text. Pure. */

import type { Metric } from './api';
import { tokenise, type Token } from './ruletext';

export interface Completion { text: string; kind: 'metric' | 'word' | 'list'; unit: string; says: string; more: string }
export interface Completions { start: number; end: number; items: Completion[] } // what an item replaces
export interface Vocabulary { metrics: Metric[]; watchlists: string[] }

const MOST = 40;
const word = (text: string, says: string): Completion => ({ text, kind: 'word', unit: '', says, more: '' });

const BEFORE_VALUE = [
  word('not', 'the opposite of what follows'),
  word('session is', 'pre, regular, post or closed'),
  word('symbol in', 'a list: symbol in (AAPL, MSFT)'),
  word('symbol in watchlist', 'symbols of a saved watchlist'),
  word('exchange is', 'where it is listed, such as XNAS'),
  word('type is', 'what it is, such as CS or ETF'),
  word('sector is', 'its sector, in quotes'),
  word('abs', 'without its sign: abs(gap_pct)'),
  word('min', 'the smallest of several'),
  word('max', 'the largest of several'),
];
const AFTER_VALUE = [
  word('and', 'both hold'),
  word('or', 'one of them holds'),
  word('between', 'a range, its ends included: between 5 and 10'),
  word('crosses_above', 'was below or equal at the scan before, is above now'),
  word('crosses_below', 'was above or equal at the scan before, is below now'),
  word('for', 'has been true all the time: for 30s'),
  word('within', 'was true at some scan: within 5m'),
  word('then', 'first this, later that: A then B within 10m'),
  word('times in a row', 'at so many scans in a row: 3 times in a row'),
  word('is', 'of session, symbol, exchange, type and sector'),
  word('in', 'one of a list: in (AAPL, MSFT)'),
];
const SESSIONS = [
  word('pre', '04:00 to 09:30'),
  word('regular', '09:30 to 16:00'),
  word('post', '16:00 to 20:00'),
  word('closed', 'any other time'),
];

/** None inside of comments and quotes, and none without a letter unless they are asked for. */
export function complete(text: string, caret: number, known: Vocabulary, asked = false): Completions {
  const none = { start: caret, end: caret, items: [] };
  const tokens = tokenise(text);
  const here = tokens.find(({ start, end }) => start < caret && caret <= end);
  if (here && (here.kind === 'comment' || here.kind === 'string' || here.kind === 'number')) return none;
  const typing = here !== undefined && (here.kind === 'name' || here.kind === 'keyword');
  if (!typing && !asked) return none;
  const next = tokens.find(({ start }) => start === caret);
  const [start, end] = typing ? [here.start, here.end] : next?.kind === 'name' ? [caret, next.end] : [caret, caret];
  const before = tokens.filter((token) => token.end <= start && token.kind !== 'space' && token.kind !== 'comment');
  return { start, end, items: ranked(candidates(before, known), text.slice(start, caret)) };
}

function candidates(before: Token[], { metrics, watchlists }: Vocabulary): Completion[] {
  const words = before.map(({ text }) => text.toLowerCase());
  if (words.at(-1) === 'watchlist') return watchlists.map((id) => ({ text: id, kind: 'list' as const, unit: '', says: 'a saved watchlist', more: '' }));
  const listing = words.findLastIndex((each) => each === 'is' || each === 'in');
  if (listing >= 0 && words.slice(listing + 1).every((each) => each !== ')' && !JOINING.has(each))) {
    return words[listing - 1] === 'session' || words[listing - 2] === 'session' ? SESSIONS : [];
  }
  const last = before.at(-1);
  if (last && (last.kind === 'name' || last.kind === 'number' || last.text === ')' || last.text === ']')) return AFTER_VALUE;
  if (last && ATTRIBUTES.has(last.text.toLowerCase())) return AFTER_VALUE.filter(({ text }) => text === 'is' || text === 'in');
  return [...metrics.map(described), ...BEFORE_VALUE];
}

const JOINING = new Set(['and', 'or', 'then', 'for', 'within']);
const ATTRIBUTES = new Set(['session', 'symbol', 'exchange', 'type', 'sector']);

function described(metric: Metric): Completion {
  return { text: metric.name, kind: 'metric', unit: metric.unit, says: metric.formula, more: metricFacts(metric) };
}

const SESSION_SAYS: Record<string, string> = {
  day: 'known from 04:00 to 20:00', pre: 'known before the open', regular: 'known in the regular session', post: 'known after the close',
  'after open': 'known from 09:30 on',
};
const NEEDS_SAYS: Record<string, string> = { reference: 'from reference data', quotes: 'from quotes', index: 'from an index fund' };

/** What beside its formula a person should know of a metric: when it is known, and what it is made of. */
export function metricFacts({ name, warm_up, session, needs, back, source }: Metric): string {
  const facts = [
    warm_up && `needs ${warm_up}`, SESSION_SAYS[session ?? ''], NEEDS_SAYS[needs ?? ''], source,
    back && `${name}[1]${back > 1 ? ` to [${back}]` : ''}: closed candles before`,
  ];
  return facts.filter(Boolean).join(' · ');
}

/** Metrics alone, for a field that takes one. */
export function metricsLike(typed: string, metrics: Metric[]): Completion[] {
  return ranked(metrics.map(described), typed);
}

/** The best first: by how the name begins, then how its words begin, then letters in order ("rvol": relative_volume). */
export function ranked(items: Completion[], typed: string): Completion[] {
  const wanted = typed.toLowerCase();
  return items
    .map((item, place) => ({ item, place, rank: rank(item.text.toLowerCase(), wanted) }))
    .filter(({ rank }) => rank < Infinity)
    .sort((a, b) => a.rank - b.rank || a.place - b.place)
    .slice(0, MOST)
    .map(({ item }) => item);
}

function rank(name: string, wanted: string): number {
  if (name === wanted) return 0;
  if (name.startsWith(wanted)) return 1;
  if (name.includes(`_${wanted}`)) return 2;
  if (name.includes(wanted)) return 3;
  let at = -1;
  for (const letter of wanted) {
    at = name.indexOf(letter, at + 1);
    if (at < 0) return Infinity;
  }
  return name[0] === wanted[0] ? 4 : Infinity;
}
