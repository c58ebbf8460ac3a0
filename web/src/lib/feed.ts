/** Whether data flows, in words: a pure reading of the system status. */

import type { FeedConnection, SystemStatus } from './api';
import { clockTime, parseTime } from './format';

export interface FeedView {
  light: 'good' | 'warn' | 'bad';
  text: string; // beside the light
  flows: boolean;
  banners: string[];
}

const UNWELL = new Set<FeedConnection['state']>(['lost', 'refused', 'open']);

/** What the page says of the feed. `status` is null while it cannot be had. */
export function feedView(status: SystemStatus | null): FeedView {
  if (status === null) return { light: 'warn', text: 'Feed unknown', flows: true, banners: [] };
  const { name, state, gap, connections = [] } = status.feed;
  const fallback = connections.find((connection) => connection.role === 'fallback' && connection.state === 'running');
  const primary = connections.find((connection) => connection.role === 'primary');
  const banners: string[] = [];
  if (gap) banners.push(`No data since ${clockTime(parseTime(gap.since))} (New York): ${gap.reason}; rules wait`);
  if (fallback && primary && primary.state !== 'running') {
    banners.push(`Running on ${fallback.name}; ${primary.name}: ${trouble(primary)}`);
  } else if (gap) {
    banners.push(...connections.filter(({ state }) => UNWELL.has(state)).map((it) => `${it.name}: ${trouble(it)}`));
  }
  const view = (light: FeedView['light'], text: string): FeedView => ({ light, text, flows: light !== 'bad', banners });
  if (gap) return view('bad', 'No data');
  if (state === 'lost' || state === 'refused') return view('bad', `Feed ${state}`);
  if (status.state === 'stale') return view('bad', `No data for ${age(status.feed.age_s)}`);
  if (state === 'ended') return view('warn', 'Feed ended');
  if (fallback) return view('warn', `On fallback ${fallback.name}`);
  if (state !== 'running' || status.state === 'starting') return view('warn', `Feed ${name} starting`);
  return view('good', `Feed ${connections.find((connection) => connection.state === 'running')?.name ?? name}`);
}

function trouble({ problem, reason, state }: FeedConnection): string {
  return problem || reason || (state === 'open' ? 'left alone for a while' : state);
}

function age(seconds: number | null): string {
  if (seconds === null) return 'a while';
  return seconds < 120 ? `${Math.floor(seconds)} s` : `${Math.floor(seconds / 60)} min`;
}
