import { expect, test } from 'vitest';
import { complete, metricFacts, metricsLike } from './complete';

const metrics = ['price', 'change_pct_5m', 'relative_volume_5m', 'volume_5m', 'rsi_14_1m', 'vwap_session'].map((name) => ({ name, unit: '%', formula: `what ${name} is` }));
const known = { metrics, watchlists: ['tech', 'banks'] };
const at = (text: string, asked = false) => {
  const caret = text.indexOf('|');
  const { start, end, items } = complete(text.replace('|', ''), caret, known, asked);
  return { span: [start, end], texts: items.map((item) => item.text) };
};

test('the beginning of a name comes first, then the beginning of its words, then letters in order', () => {
  expect(at('vol|').texts.slice(0, 2)).toEqual(['volume_5m', 'relative_volume_5m']);
  expect(at('rvol|').texts).toEqual(['relative_volume_5m']);
  expect(metricsLike('vwap', metrics)[0]).toEqual({ text: 'vwap_session', kind: 'metric', unit: '%', says: 'what vwap_session is', more: '' });
});

test('the whole word under the cursor is replaced', () => {
  expect(at('price > 5 and ch|ange > 2').span).toEqual([14, 20]);
  expect(at('price > 5 and |', true).span).toEqual([14, 14]);
});

test('behind a value come words that join and last, not metrics', () => {
  expect(at('price > 5 |', true).texts).toContain('and');
  expect(at('price > 5 |', true).texts).not.toContain('rsi_14_1m');
  expect(at('price cro|').texts).toEqual(['crosses_above', 'crosses_below']);
  expect(at('price > |', true).texts).toContain('rsi_14_1m');
});

test('lists and sessions are known', () => {
  expect(at('symbol in watchlist t|').texts).toEqual(['tech']);
  expect(at('session is |', true).texts).toEqual(['pre', 'regular', 'post', 'closed']);
  expect(at('session in (pre, re|').texts).toContain('regular');
  expect(at('symbol is A|').texts).toEqual([]);
  expect(at('session is regular and pri|').texts).toEqual(['price']);
});

test('nothing is offered unasked, inside of comments, quotes and numbers', () => {
  for (const text of ['price > |', '# pri|', 'sector is "pri|"', 'price > 5m|']) expect(at(text).texts, text).toEqual([]);
});

test('what a metric needs is told in words', () => {
  const metric = { name: 'rsi_14_5m', unit: 'index', formula: '', warm_up: '15 closed candles', session: 'after open', needs: '', back: 10, source: 'TA-Lib RSI' };
  expect(metricFacts(metric)).toBe('needs 15 closed candles · known from 09:30 on · TA-Lib RSI · rsi_14_5m[1] to [10]: closed candles before');
  expect(metricFacts({ name: 'price', unit: '$', formula: '' })).toBe('');
});
