/** Ranked lists, the pure part: families of system lists for the panel's two selects, and movement in rank. */

import type { Ranking, SystemToplist } from './api';

export interface Family { key: string; title: string; lists: SystemToplist[] }

/** Lists that differ only in their window, in the server's order: `gainers_5m`, `gainers_day` are "Gainers". */
export function families(lists: SystemToplist[]): Family[] {
  const found = new Map<string, Family>();
  for (const list of lists) {
    const suffix = `_${list.window}`;
    const windowed = list.id.endsWith(suffix);
    const key = windowed ? list.id.slice(0, -suffix.length) : list.id;
    const title = windowed && list.title.endsWith(` ${list.window}`) ? list.title.slice(0, -suffix.length) : list.title;
    const family = found.get(key) ?? { key, title, lists: [] };
    family.lists.push(list);
    found.set(key, family);
  }
  return [...found.values()];
}

/** The list of another family, in the same window if it has it. */
export function inFamily(family: Family, window: string | undefined): string | undefined {
  return (family.lists.find((list) => list.window === window) ?? family.lists[0])?.id;
}

const BARS_NEEDED = /^rsi_(\d+)_1m$/; // an RSI of 14 minutes compares 15 closed bars
const WINDOW = /^(\d+)([mh])$/;

/** Why a list shows no symbol although there is data: its metric still lacks minutes of the tape, or nobody has it. */
export function whyEmpty(list: SystemToplist | undefined): string {
  const bars = BARS_NEEDED.exec(list?.metric ?? '');
  const window = WINDOW.exec(list?.window ?? '');
  const minutes = bars ? Number(bars[1]) + 1 : window ? Number(window[1]) * (window[2] === 'h' ? 60 : 1) : 0;
  if (minutes === 0) return 'No symbol has this value yet.';
  return `Warming up: needs ${minutes} ${minutes === 1 ? 'minute' : 'minutes'} of the tape.`;
}

const LOOK_BACK_MS = 30_000;
const SETTLED_MS = 5_000; // before that, everything would be "new"

/** Remembers half a minute of ranks, in event time, and says how far each symbol has come. */
export class Movement {
  #past: { ms: number; ranks: Map<string, number> }[] = [];

  /** Places won (positive) or lost since the oldest remembered ranking; null for a symbol that was not in it. */
  next(ms: number, rankings: Ranking[]): Map<string, number | null> {
    const ranks = new Map(rankings.map((row) => [row.symbol, row.rank]));
    if ((this.#past.at(-1)?.ms ?? ms) > ms) this.#past = []; // the tape was started again
    this.#past = this.#past.filter((entry) => ms - entry.ms <= LOOK_BACK_MS);
    const oldest = this.#past[0];
    this.#past.push({ ms, ranks });
    const moves = new Map<string, number | null>();
    if (!oldest || ms - oldest.ms < SETTLED_MS) return moves;
    for (const [symbol, rank] of ranks) {
      const before = oldest.ranks.get(symbol);
      moves.set(symbol, before === undefined ? null : before - rank);
    }
    return moves;
  }
}
