import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import type { SeenAlert } from './alerts.svelte';
import { GATHER_MS, MOST_A_SECOND, Notices, passes } from './notices';

const alert = (id: number) => ({ alert_id: String(id) }) as SeenAlert;
const alerts = (from: number, count: number) => Array.from({ length: count }, (_, n) => alert(from + n));

let told: string[];
let notices: Notices;

beforeEach(() => {
  vi.useFakeTimers();
  told = [];
  notices = new Notices(
    (one) => told.push(one.alert_id),
    (count, newest) => told.push(`${count} up to ${newest.alert_id}`),
  );
});
afterEach(() => void vi.useRealTimers());

test('a few a second are told by themselves, and the others together', () => {
  notices.tell(alerts(0, 2), 0);
  notices.tell(alerts(2, 50), 500);
  expect(told).toEqual(['0', '1', '2']);
  notices.tell(alerts(52, 1), 1_600); // joins those that wait
  vi.advanceTimersByTime(GATHER_MS);
  expect(told.slice(3)).toEqual(['50 up to 52']);
  notices.tell(alerts(53, 1), 10_000);
  expect(told.at(-1)).toBe('53');
});

test('a storm without an end is a bounded number of notices', () => {
  for (let ms = 0; ms < 60_000; ms += 250) {
    notices.tell(alerts(ms, 100), ms);
    vi.advanceTimersByTime(250);
  }
  expect(told.length).toBeLessThanOrEqual((60_000 / GATHER_MS) * (MOST_A_SECOND + 1));
  const counted = told.reduce((sum, text) => sum + (Number(/^(\d+) up/.exec(text)?.[1]) || 1), 0);
  expect(counted).toBeGreaterThan(24_000 - 1_000);
});

test('one that waits alone is told as itself, and after a stop nothing is', () => {
  notices.tell(alerts(0, 4), 0);
  vi.advanceTimersByTime(GATHER_MS);
  expect(told).toEqual(['0', '1', '2', '3']);
  notices.tell(alerts(4, 9), 100);
  notices.stop();
  vi.advanceTimersByTime(GATHER_MS * 2);
  expect(told).toEqual(['0', '1', '2', '3']);
});

test('severities rise', () => {
  expect(['info', 'notice', 'warning', 'critical'].map((each) => passes('warning', each as 'info'))).toEqual([false, false, true, true]);
  expect([passes('all', 'info'), passes('off', 'critical')]).toEqual([true, false]);
});
