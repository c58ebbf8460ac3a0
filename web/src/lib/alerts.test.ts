import { expect, test } from 'vitest';
import { AlertLog, KEPT } from './alerts.svelte';
import type { Alert } from './api';

const alert = (id: string, fired_at: string): Alert => ({
  alert_id: id, rule_id: 'r', rule_version: 1, rule_name: 'Rule', symbol: 'A', fired_at, price: 1, values: {}, session: 'regular', note: null, severity: 'info', tags: [],
});
const second = (n: number) => `2013-10-07T13:${String(30 + Math.floor(n / 60)).padStart(2, '0')}:${String(n % 60).padStart(2, '0')}.000000000Z`;

test('an alert is listed and counted once, newest first, whichever way it came', () => {
  const log = new AlertLog();
  log.add([alert('b', second(2))], 100);
  const added = log.add([alert('b', second(2)), alert('a', second(1)), alert('c', second(3))], null);
  expect(added.map(({ alert_id }) => alert_id)).toEqual(['a', 'c']);
  expect(log.items.map(({ alert_id }) => alert_id)).toEqual(['c', 'b', 'a']);
  expect([log.count, log.day]).toEqual([3, '2013-10-07']);
});

test('nanoseconds decide the order, and of equal instants the later arrival is on top', () => {
  const log = new AlertLog();
  log.add([alert('x', '2013-10-07T13:30:00.000000001Z'), alert('y', '2013-10-07T13:30:00.000000002Z')], 0);
  log.add([alert('z', '2013-10-07T13:30:00.000000002Z')], 0);
  expect(log.items.map(({ alert_id }) => alert_id)).toEqual(['z', 'y', 'x']);
});

test('the list is bounded, the count is not, and a new day starts at one', () => {
  const log = new AlertLog();
  log.add(Array.from({ length: KEPT + 100 }, (_, n) => alert(`n${n}`, second(n))), 0);
  expect([log.items.length, log.items[0]?.alert_id, log.count]).toEqual([KEPT, `n${KEPT + 99}`, KEPT + 100]);
  log.add([alert('next', '2013-10-08T13:30:00.000000000Z')], 0);
  expect([log.count, log.day]).toEqual([1, '2013-10-08']);
  expect(log.countOlder([alert('n5', second(5))])).toBe(false);
});

test('a note is taken into the list whichever way it comes, and neither counts nor is news', () => {
  const log = new AlertLog();
  const [a, b] = [alert('a', second(1)), alert('b', second(2))];
  log.add([a, b], 100);
  expect(log.add([{ ...a, note: 'cancelled' }], null)).toEqual([]);
  expect(log.items.map(({ alert_id, note }) => [alert_id, note])).toEqual([['b', null], ['a', 'cancelled']]);
  log.add([{ ...a, note: 'cancelled\ncorrected' }], null);
  log.add([a, { ...a, note: 'cancelled' }], null); // an answer that was on its way when the notes came
  expect(log.items.at(-1)).toMatchObject({ note: 'cancelled\ncorrected', arrivedAt: 100 });
  expect(log.count).toBe(2);
});

test('an alert and its note in one flush are one alert with a note', () => {
  const log = new AlertLog();
  const a = alert('a', second(1));
  expect(log.add([a, { ...a, note: 'cancelled' }], 100).length).toBe(1);
  expect(log.items.map(({ note }) => note)).toEqual(['cancelled']);
});
