/** What lies on the desk beside the lists: one sheet, and a symbol over it. One instance, `desk`. */

import type { SeenAlert } from './alerts.svelte';

export const TABS = ['edit', 'why', 'score', 'versions'] as const;
export type Tab = (typeof TABS)[number];
export type Sheet =
  | { kind: 'rule'; id: string | null; tab: Tab; symbol?: string } // null: a new one
  | { kind: 'list'; id: string | null; made: (id: string) => void } // null: a new one
  | { kind: 'alert'; alert: SeenAlert }
  | { kind: 'scoreboard' };

class Desk {
  symbol = $state<string | null>(null);
  sheet = $state.raw<Sheet | null>(null);
  #unsaved = $state(false);
  turns = $state(0); // how many sheets there were: what a sheet remembers ends with it
  asked = $state.raw<{ sheet: Sheet | null } | null>(null); // what waits for an answer about them

  /** Whether the sheet holds changes that would be lost. */
  get unsaved(): boolean {
    return this.#unsaved;
  }

  set unsaved(unsaved: boolean) {
    this.#unsaved = unsaved;
    if (!unsaved) this.asked = null;
  }

  readonly open = (symbol: string): void => {
    this.symbol = symbol;
  };

  /** Another sheet, or none; where changes would be lost, only once the person has agreed. */
  readonly show = (sheet: Sheet | null): void => {
    if (this.unsaved) this.asked = { sheet };
    else this.#turnTo(sheet);
  };

  readonly discard = (): void => {
    const next = this.asked;
    this.unsaved = false;
    if (next) this.#turnTo(next.sheet);
  };

  readonly keep = (): void => {
    this.asked = null;
  };

  #turnTo(sheet: Sheet | null): void {
    this.asked = null;
    this.turns += 1;
    this.sheet = sheet;
  }
}

export const desk = new Desk();
