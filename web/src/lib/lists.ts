/** Ranked lists, the pure part: families of system lists for the panel's two selects, and movement in rank. */

import type { ColorScheme, Known, ListFilters, Ranking, SystemToplist, UserToplist, UserToplistDraft } from './api';

/** Ids that the server makes for users' lists have a dash, those of system lists have none. */
export const isOwn = (id: string): boolean => id.includes('-');

const NO_FILTERS: ListFilters = {
  min_volume: null, min_change_pct: null, price_min: null, price_max: null, market_cap_min: null, market_cap_max: null,
  exchanges: [], sectors: [], when: '',
};
export const blankList = (): UserToplistDraft => ({
  name: '', description: '', metric: 'change_pct_5m', time_window: null, sort_order: 'desc', filters: { ...NO_FILTERS },
  columns: ['price', 'change_pct_day', 'volume_day'],
  color_scheme: { positive: 'default', negative: 'default', neutral: 'default' }, enabled: true, alerts: false, jump_ranks: 10,
});

/** What its author wrote, without what the server adds. */
export function listDraftOf({ id: _id, owner: _owner, version: _version, created_at: _made, updated_at: _changed, ...draft }: UserToplist): UserToplistDraft {
  return { ...draft, filters: { ...NO_FILTERS, ...draft.filters }, color_scheme: { ...draft.color_scheme }, columns: [...draft.columns] };
}

/** Words between commas, each once. */
export const wordsOf = (text: string): string[] => [...new Set(text.split(',').map((word) => word.trim()).filter(Boolean))];

export const COLOURS: Record<string, string> = {
  green: 'var(--up)', red: 'var(--down)', blue: 'var(--accent)', orange: 'var(--figure)', yellow: 'var(--warn)',
  purple: 'var(--word)', teal: 'light-dark(#0b7285, #3bc9db)', grey: 'var(--dim)',
};

/** The colour of a value by its sign; undefined where the page's own is meant. */
export function colourOf(value: Known, scheme: ColorScheme | undefined): string | undefined {
  if (value === null || !scheme) return undefined;
  const named = value > 0 ? scheme.positive : value < 0 ? scheme.negative : scheme.neutral;
  return COLOURS[named] ?? (/^#[0-9a-f]{6}$/i.test(named) ? named : undefined);
}

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

const CANDLES_NEEDED = /^rsi_(\d+)_/; // an RSI of 14 candles compares 15 closed ones
const AT_ONCE = /^vwap_/; // known from a window's first trade on
const WINDOW = /^(\d+)([mh])$/;

/** Why a list shows no symbol although there is data: its metric still lacks minutes of the tape, or nobody has it. */
export function whyEmpty(list: SystemToplist | undefined): string {
  const metric = list?.metric ?? '';
  const window = WINDOW.exec(list?.window ?? '');
  if (!window || AT_ONCE.test(metric)) return 'No symbol has this value yet.';
  const candles = CANDLES_NEEDED.exec(metric);
  const minutes = Number(window[1]) * (window[2] === 'h' ? 60 : 1) * (candles ? Number(candles[1]) + 1 : 1);
  if (minutes > 240) return `Warming up: needs ${Math.ceil(minutes / 60)} hours of the tape.`;
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
