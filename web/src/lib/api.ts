/** The server's REST interface, typed. Every failure is an ApiError that says what the server said. */

export type Known = number | null; // null: the metric is unknown, which is never zero

export interface SystemToplist { id: string; title: string; metric: string; window: string }
export interface Ranking {
  symbol: string;
  rank: number;
  value: Known;
  metadata: { price: Known; change_pct_day: Known; volume_day: Known };
}
export interface ToplistData {
  toplist_id: string;
  title?: string;
  metric?: string;
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
export const OPERATORS = ['>', '>=', '<', '<=', '==', '!='] as const;
export interface Condition { metric: string; operator: (typeof OPERATORS)[number]; value: number }
export interface RuleDraft { name: string; description: string; conditions: Condition[]; cooldown: number; enabled: boolean }
export interface Rule extends RuleDraft { id: string; version: number }
export interface Metric { name: string; unit: string; formula: string }
export interface Bar { ts?: string; ts_ns?: number; open: Known; high: Known; low: Known; close: Known; volume: Known }
export interface SymbolView { symbol: string; as_of: string | null; session: string | null; metrics: Record<string, Known>; bars: Bar[] }
interface Items<T> { items: T[] }
interface AlertPage extends Items<Alert> { next_cursor?: string | null }

export class ApiError extends Error {
  readonly status: number;
  readonly where: string | undefined;

  constructor(status: number, detail: string, where?: string) {
    super(detail);
    this.status = status;
    this.where = where;
  }
}

/** What to tell the person: the problem and, where the server names it, the field. */
export function explain(error: unknown): string {
  if (error instanceof ApiError && error.where) return `${error.where.replace(/^body\./, '')}: ${error.message}`;
  return error instanceof Error ? error.message : String(error);
}

async function call<T>(method: string, path: string, body?: unknown): Promise<T> {
  let response: Response;
  try {
    response = await fetch(`/api/v1${path}`, {
      method,
      signal: AbortSignal.timeout(10_000),
      ...(body === undefined ? {} : { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
    });
  } catch {
    throw new ApiError(0, 'The server cannot be reached.');
  }
  if (response.ok) return (response.status === 204 ? undefined : await response.json()) as T;
  const problem = (await response.json().catch(() => ({}))) as { title?: string; detail?: unknown; where?: string };
  const detail = typeof problem.detail === 'string' && problem.detail ? problem.detail : problem.title;
  throw new ApiError(response.status, detail ?? `The server answered ${response.status}.`, problem.where);
}

function query(parameters: Record<string, string | number | undefined>): string {
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined);
  return new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
}

const at = encodeURIComponent;

export const api = {
  toplists: () => call<Items<SystemToplist>>('GET', '/toplists'),
  toplist: (id: string, limit: number) => call<ToplistData>('GET', `/toplists/system/${at(id)}?${query({ limit })}`),
  metrics: () => call<Items<Metric>>('GET', '/metrics'),
  symbol: (symbol: string) => call<SymbolView>('GET', `/symbols/${at(symbol)}`),
  alerts: (parameters: { limit: number; since?: string; cursor?: string }) =>
    call<AlertPage>('GET', `/alerts?${query(parameters)}`),
  status: () => call<SystemStatus>('GET', '/system/status'),
  rules: () => call<Items<Rule>>('GET', '/rules?limit=500'),
  createRule: (draft: RuleDraft) => call<Rule>('POST', '/rules', draft),
  changeRule: (id: string, draft: RuleDraft) => call<Rule>('PUT', `/rules/${at(id)}`, draft),
  deleteRule: (id: string) => call<void>('DELETE', `/rules/${at(id)}`),
};
