/** Which alerts the browser tells by themselves: a few a second, and what comes beside them in one more. */

import type { SeenAlert } from './alerts.svelte';
import { SEVERITIES, type Severity } from './api';

export const NOTIFY = ['off', 'all', 'warning'] as const; // all alerts, or those of at least this severity
export type Notify = (typeof NOTIFY)[number];

export const MOST_A_SECOND = 3;
export const GATHER_MS = 2_000;

export function passes(notify: Notify, severity: Severity): boolean {
  return notify !== 'off' && (notify === 'all' || SEVERITIES.indexOf(severity) >= SEVERITIES.indexOf(notify));
}

/** While some are gathered, all that come join them: the order stays, and a storm is one notice each two seconds. */
export class Notices {
  #toldAt: number[] = [];
  #count = 0; // of those that are gathered
  #newest: SeenAlert | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly one: (alert: SeenAlert) => void,
    private readonly many: (count: number, newest: SeenAlert) => void,
  ) {}

  tell(alerts: SeenAlert[], nowMs: number): void {
    for (const alert of alerts) {
      this.#toldAt = this.#toldAt.filter((at) => at > nowMs - 1_000);
      if (this.#count === 0 && this.#toldAt.length < MOST_A_SECOND) {
        this.#toldAt.push(nowMs);
        this.one(alert);
      } else {
        this.#count += 1;
        this.#newest = alert;
        this.#timer ??= setTimeout(() => this.#summary(), GATHER_MS);
      }
    }
  }

  /** What is gathered is not told. */
  stop(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#count = 0;
    this.#newest = undefined;
  }

  #summary(): void {
    const [count, newest] = [this.#count, this.#newest];
    this.stop();
    if (newest === undefined) return;
    if (count === 1) this.one(newest);
    else this.many(count, newest);
  }
}
