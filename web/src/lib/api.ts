/** The server's REST interface, typed. Every failure is an ApiError that says what the server said. */

import { session } from './session.svelte';

export type Known = number | null; // null: the metric is unknown, which is never zero

export interface SystemToplist { id: string; title: string; metric: string; window: string; toplist_type?: string }
export const LIST_WINDOWS = ['1m', '5m', '15m', '1h', '1d'] as const;
export interface ListFilters {
  min_volume: Known; min_change_pct: Known; price_min: Known; price_max: Known;
  market_cap_min: Known; market_cap_max: Known;
  exchanges: string[]; sectors: string[];
  when: string;
}
export interface ColorScheme { positive: string; negative: string; neutral: string }
export interface UserToplistDraft {
  name: string;
  description: string;
  metric: string;
  time_window: (typeof LIST_WINDOWS)[number] | null;
  sort_order: 'asc' | 'desc';
  filters: ListFilters;
  columns: string[];
  color_scheme: ColorScheme;
  enabled: boolean;
  alerts: boolean;
  jump_ranks: number;
}
export interface UserToplist extends UserToplistDraft { id: string; owner: string; version: number; created_at: string; updated_at: string }
export interface Ranking {
  symbol: string;
  rank: number;
  value: Known;
  metadata: Record<string, Known>;
  stale?: boolean; // no price for a minute
  halted?: boolean;
}
export interface ToplistData {
  toplist_id: string;
  title?: string;
  metric?: string;
  version?: number; // of a user's list
  columns?: string[]; // of a user's list
  session: string | null;
  timestamp: string | null; // null: before the first scan
  rankings: Ranking[];
}
export interface Alert {
  alert_id: string;
  rule_id: string;
  rule_version: number;
  rule_name: string;
  symbol: string;
  fired_at: string;
  price: Known;
  values: Record<string, Known>;
  session: string;
  note: string | null; // what was learned after it fired, a line each
  severity: Severity;
  tags: string[];
}
export interface FeedConnection {
  name: string;
  role: 'primary' | 'fallback';
  state: 'waiting' | 'connecting' | 'running' | 'lost' | 'refused' | 'open';
  problem: string;
  reason: string;
}
export interface FeedStatus {
  name: string;
  state: string;
  age_s: number | null; // since the newest trades
  gap?: { since: string; reason: string } | null; // open: nothing arrives
  connections?: FeedConnection[];
}
export interface SystemStatus { state: string; feed: FeedStatus }
export const SEVERITIES = ['info', 'notice', 'warning', 'critical'] as const; // rising
export type Severity = (typeof SEVERITIES)[number];
export interface RuleDraft {
  name: string;
  description: string;
  when: string;
  gate: string; // '': none
  rearm: string;
  fire: string;
  cooldown: number; // seconds
  severity: Severity;
  tags: string[];
  enabled: boolean;
  shared?: boolean; // everybody sees it, and gets its alerts
}
export interface Rule extends RuleDraft { id: string; owner?: string; version: number; created_at: string; updated_at: string }
export interface Template { id: string; name: string; description: string; tags: string[]; text: string; rule: Rule }
export interface Cost { scan_us: number; max_scan_us: number; memory_bytes: number; remembering: number; comparisons: number }
export interface Validity { valid: boolean; when: string; reads: string[]; cost: Cost; warnings: string[] }
export interface DryRun {
  fires: { date: string; fires: number }[];
  symbols: number;
  symbols_share: Known; // 0 to 1
  examples: Alert[];
  seconds: number;
  warnings: string[];
}
export interface Operand {
  name: string;
  value: Known;
  unit: string | null;
  age_s: Known;
  unknown: string | null; // why
  formula: string | null;
  source: string | null;
}
export interface Finding { text: string; true: boolean | null; lacks: Known; operands: Operand[]; parts: Finding[] }
export interface Explanation {
  rule_id: string;
  rule_version: number;
  symbol: string;
  at: string | null;
  session: string;
  verdict: string;
  why: string;
  when: Finding | null;
  gate: Finding | null;
  rearm: Finding | null;
}
export interface NearMiss {
  symbol: string;
  missing: string;
  true: boolean | null;
  unknown: string | null;
  value: Known;
  lacks: Known;
  lacks_pct: Known;
}
export interface AlertExplanation extends Alert { when: string; gate: string | null; operands: Operand[] }
export interface Score { known: number; positive_pct: Known; mean_pct: Known; median_pct: Known; highest_pct: Known; lowest_pct: Known }
export interface RuleScore {
  name: string;
  rule_id: string;
  rule_version: number;
  alerts: number;
  symbols: number;
  unfollowed: number;
  outcomes: Record<string, Score>;
  too_broad: string | null;
}
export interface Scoreboard { date: string | null; as_of: string | null; alerts: number; rules: RuleScore[] }
export interface Watchlist { id: string; name: string; symbols: string[] }
export interface Metric {
  name: string;
  unit: string;
  formula: string;
  timeframe?: string;
  warm_up?: string;
  session?: string;
  freshness?: string;
  source?: string;
  needs?: string;
  back?: number; // closed candles that name[n] may reach
}
export interface Bar { ts?: string; ts_ns?: number; open: Known; high: Known; low: Known; close: Known; volume: Known }
export interface SymbolView { symbol: string; as_of: string | null; session: string | null; metrics: Record<string, Known>; bars: Bar[] }
interface Items<T> { items: T[] }
interface AlertPage extends Items<Alert> { next_cursor?: string | null }

/** In a text: both from 1, columns in characters. */
export interface Place { line: number; column: number }

export class ApiError extends Error {
  readonly status: number;
  readonly where: string | undefined;
  readonly place: Place | undefined;

  constructor(status: number, detail: string, where?: string, place?: Place) {
    super(detail);
    this.status = status;
    this.where = where;
    this.place = place;
  }
}

/** What to tell the person: the problem and, where the server names it, the field. */
export function explain(error: unknown): string {
  if (error instanceof ApiError && error.where) return `${error.where.replace(/^body\./, '')}: ${error.message}`;
  return error instanceof Error ? error.message : String(error);
}

const PATIENCE_MS = 10_000;
const DRY_RUN_MS = 135_000; // the server itself gives up after two minutes

interface Manner { signal?: AbortSignal | undefined; patienceMs?: number }

async function call<T>(method: string, path: string, body?: unknown, { signal, patienceMs = PATIENCE_MS }: Manner = {}): Promise<T> {
  const ended = new AbortController();
  const end = () => ended.abort();
  const patience = setTimeout(end, patienceMs);
  signal?.addEventListener('abort', end);
  const ask = () =>
    fetch(`/api/v1${path}`, {
      method,
      signal: ended.signal,
      headers: { ...session.headers(), ...(body === undefined ? {} : { 'content-type': 'application/json' }) },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
  let response: Response;
  try {
    const token = session.token;
    response = await ask();
    if (response.status === 401 && (await session.regain(token))) response = await ask();
  } catch {
    throw new ApiError(0, signal?.aborted ? 'Stopped.' : 'The server cannot be reached.');
  } finally {
    clearTimeout(patience);
    signal?.removeEventListener('abort', end);
  }
  if (response.ok) return (response.status === 204 ? undefined : await response.json()) as T;
  const problem = (await response.json().catch(() => ({}))) as {
    title?: string; detail?: unknown; where?: string; line?: number; column?: number;
  };
  const detail = typeof problem.detail === 'string' && problem.detail ? problem.detail : problem.title;
  const { line, column } = problem;
  const place = line !== undefined && column !== undefined ? { line, column } : undefined;
  throw new ApiError(response.status, detail ?? `The server answered ${response.status}.`, problem.where, place);
}

function query(parameters: Record<string, string | number | undefined>): string {
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined);
  return new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
}

const at = encodeURIComponent;

export const api = {
  toplists: () => call<Items<SystemToplist>>('GET', '/toplists'),
  toplist: (id: string, limit: number) => call<ToplistData>('GET', `/toplists/system/${at(id)}?${query({ limit })}`),
  ownToplists: () => call<Items<UserToplist>>('GET', '/toplists/user?limit=500'),
  createToplist: (draft: UserToplistDraft) => call<UserToplist>('POST', '/toplists/user', draft),
  /** Only if `version` is still the stored one. */
  changeToplist: (id: string, version: number, draft: UserToplistDraft) => call<UserToplist>('PUT', `/toplists/user/${at(id)}`, { ...draft, version }),
  deleteToplist: (id: string) => call<void>('DELETE', `/toplists/user/${at(id)}`),
  metrics: () => call<Items<Metric>>('GET', '/metrics'),
  symbol: (symbol: string) => call<SymbolView>('GET', `/symbols/${at(symbol)}`),
  alerts: (parameters: { limit: number; since?: string; cursor?: string }) =>
    call<AlertPage>('GET', `/alerts?${query(parameters)}`),
  status: () => call<SystemStatus>('GET', '/system/status'),
  explainAlert: (id: string) => call<AlertExplanation>('GET', `/alerts/${at(id)}/explanation`),
  scoreboard: () => call<Scoreboard>('GET', '/scoreboard'),
  watchlists: () => call<Items<Watchlist>>('GET', '/watchlists?limit=500'),
  rules: (filter: { q?: string; tag?: string }) =>
    call<Items<Rule> & { total: number }>('GET', `/rules?${query({ limit: 500, ...filter })}`),
  rule: (id: string) => call<Rule>('GET', `/rules/${at(id)}`),
  templates: () => call<Items<Template>>('GET', '/rules/templates'),
  validate: (draft: RuleDraft, signal?: AbortSignal) => call<Validity>('POST', '/rules/validate', draft, { signal }),
  dryRun: (draft: RuleDraft, signal?: AbortSignal) =>
    call<DryRun>('POST', '/rules/dry-run', draft, { signal, patienceMs: DRY_RUN_MS }),
  createRule: (draft: RuleDraft) => call<Rule>('POST', '/rules', draft),
  /** Only if `version` is still the stored one. */
  changeRule: (id: string, version: number, draft: RuleDraft) => call<Rule>('PUT', `/rules/${at(id)}`, { ...draft, version }),
  switchRule: (id: string, on: boolean) => call<Rule>('POST', `/rules/${at(id)}/${on ? 'enable' : 'disable'}`),
  deleteRule: (id: string) => call<void>('DELETE', `/rules/${at(id)}`),
  versions: (id: string) => call<Items<Rule>>('GET', `/rules/${at(id)}/versions?limit=500`),
  rollBack: (id: string, version: number) => call<Rule>('POST', `/rules/${at(id)}/rollback`, { version }),
  explain: (id: string, symbol: string) => call<Explanation>('GET', `/rules/${at(id)}/explain?${query({ symbol })}`),
  nearMisses: (id: string, limit: number) => call<Items<NearMiss>>('GET', `/rules/${at(id)}/near-misses?${query({ limit })}`),
};
