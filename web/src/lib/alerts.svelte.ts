/** The alerts that this page has seen: newest first, each once, bounded. Knows no transport. */

import type { Alert } from './api';
import { dayOf, parseTime } from './format';

export interface SeenAlert extends Alert { firedMs: number; arrivedAt: number | null } // null: history, not news

export const KEPT = 500;
const REMEMBERED = 20_000;

export class AlertLog {
  items = $state.raw<SeenAlert[]>([]);
  day = $state('');
  count = $state(0);
  counted = $state(true); // false while older alerts of the day may be missing from `count`
  #ids = new Set<string>();

  /**
   * Adds those not seen before and returns them; of the others it takes the note. `arrivedAt` is the page's clock, or
   * null for history.
   */
  add(alerts: Alert[], arrivedAt: number | null): SeenAlert[] {
    const added: SeenAlert[] = [];
    const notes = new Map<string, string>();
    for (const alert of alerts) {
      const firedMs = parseTime(alert.fired_at);
      if (this.#tally(alert.alert_id, firedMs)) added.push({ ...alert, firedMs, arrivedAt });
      else if (alert.note) notes.set(alert.alert_id, alert.note);
    }
    if (added.length > 0) {
      const all = [...added.toReversed(), ...this.items]; // of equal instants the last to arrive stays on top
      this.items = all.sort((a, b) => (a.fired_at < b.fired_at ? 1 : a.fired_at > b.fired_at ? -1 : 0)).slice(0, KEPT);
    }
    if (notes.size > 0) this.#annotate(notes);
    return added;
  }

  /** Notes only grow: a shorter one was asked for earlier and has come late. */
  #annotate(notes: Map<string, string>): void {
    this.items = this.items.map((item) => {
      const note = notes.get(item.alert_id) ?? '';
      return note.length > (item.note ?? '').length ? { ...item, note } : item;
    });
  }

  /** Counts older alerts of the day without listing them; false at the first that is of another day. */
  countOlder(alerts: Alert[]): boolean {
    for (const alert of alerts) {
      const firedMs = parseTime(alert.fired_at);
      if (dayOf(firedMs) !== this.day) return false;
      this.#tally(alert.alert_id, firedMs);
    }
    return alerts.length > 0;
  }

  #tally(id: string, firedMs: number): boolean {
    if (this.#ids.has(id)) return false;
    this.#ids.add(id);
    if (this.#ids.size > REMEMBERED) this.#ids.delete(this.#ids.values().next().value as string);
    const day = dayOf(firedMs);
    if (day > this.day) {
      this.day = day;
      this.count = 0;
    }
    if (day === this.day) this.count += 1;
    return true;
  }
}
