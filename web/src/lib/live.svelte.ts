/** The live market as this page knows it: connection, clock, lists, alerts and the catalogue. One instance, `live`. */

import { SvelteMap } from 'svelte/reactivity';
import { AlertLog, KEPT, type SeenAlert } from './alerts.svelte';
import { api, explain, type Alert, type Metric, type Ranking, type SystemStatus, type SystemToplist, type ToplistData, type UserToplist } from './api';
import { feedView } from './feed';
import { parseTime } from './format';
import { isOwn, Movement } from './lists';
import { session } from './session.svelte';
import { TapeSocket, type ServerMessage, type SocketState } from './socket';

export interface ListView { rankings: Ranking[]; moves: Map<string, number | null>; metric: string | undefined; columns: string[] | undefined }
export type DataState = 'fresh' | 'slow' | 'stale';

const SLOW_MS = 3_000;
const STALE_MS = 10_000;
const FLUSH_MS = 250; // a rule that fires for a whole market at once is drawn four times a second, not ten thousand
const OVERLAP_MS = 60_000; // partitions end their seconds at different moments: look a little further back than the newest alert
const COUNT_PAGES = 25;
const STATUS_EVERY_MS = 4_000;

export function dataState(ageMs: number): DataState {
  return ageMs < SLOW_MS ? 'fresh' : ageMs < STALE_MS ? 'slow' : 'stale';
}

class Live {
  socket = $state<SocketState>('connecting');
  now = $state(performance.now());
  session = $state('');
  eventMs = $state<number | null>(null);
  progressAt = $state<number | null>(null); // when event time last moved forward
  notice = $state('');
  status = $state.raw<SystemStatus | null>(null); // null: it cannot be had
  toplists = $state.raw<SystemToplist[]>([]);
  own = $state.raw<UserToplist[] | null>(null); // lists of users that this one sees; null: not known yet
  metrics = $state.raw<Metric[]>([]);
  lists = new SvelteMap<string, ListView>();
  alerts = new AlertLog();
  news = $state.raw<SeenAlert[]>([]); // what the last flush added

  readonly dataAgeMs = $derived(this.progressAt === null ? Infinity : Math.max(0, this.now - this.progressAt));
  readonly feed = $derived(feedView(this.status));
  readonly data = $derived(this.feed.flows ? dataState(this.dataAgeMs) : 'stale'); // time may go on where nothing arrives
  readonly units = $derived(new Map(this.metrics.map((metric) => [metric.name, metric.unit])));

  /** Of a metric, or of a candle of it such as close_5m[1]. */
  unitOf(name: string): string | undefined {
    return this.units.get(name.replace(/\[\d+\]$/, ''));
  }

  #socket = new TapeSocket(`${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/ws`, {
    state: (state) => this.#connection(state),
    message: (message) => this.#receive(message),
    token: () => session.token,
    refused: async (token) => (await session.regain(token)) || !session.asked,
    missed: () => this.#historyLoaded && void this.#loadMissed().catch((error: unknown) => (this.notice = explain(error))),
  });
  #movements = new Map<string, Movement>();
  #newestMs = -Infinity;
  #arrived: Alert[] = [];
  #noted: Alert[] = [];
  #flush: ReturnType<typeof setTimeout> | undefined;
  #flushedAt = -Infinity;
  #historyLoaded = false;
  #looking = false;

  /** Connects; the returned function ends everything. */
  start(): () => void {
    const tick = setInterval(() => (this.now = performance.now()), 500);
    const look = setInterval(() => document.hidden || void this.#look(), STATUS_EVERY_MS);
    const shown = () => document.hidden || void this.#look();
    document.addEventListener('visibilitychange', shown);
    this.#socket.open();
    const forget = session.onToken((token) => {
      this.notice = '';
      this.#socket.renew(token);
    });
    return () => {
      forget();
      clearInterval(tick);
      clearInterval(look);
      document.removeEventListener('visibilitychange', shown);
      this.#socket.close();
    };
  }

  /** Keeps a list current until the returned function is called. */
  follow(id: string): () => void {
    this.#socket.follow(id);
    if (!this.#movements.has(id)) this.#movements.set(id, new Movement());
    if (!isOwn(id)) api.toplist(id, 50).then(
      (data) => this.lists.has(id) || this.#rank({ ...data, toplist_id: id }),
      () => undefined, // the socket brings the same within a second, and its light tells if it does not
    );
    return () => {
      if (!this.#socket.leave(id)) return;
      this.lists.delete(id);
      this.#movements.delete(id);
    };
  }

  #connection(state: SocketState): void {
    this.socket = state;
    if (state !== 'open') {
      this.status = null;
      return;
    }
    void this.#look();
    this.#newestMs = -Infinity; // after a restart event time may begin earlier
    this.notice = '';
    void this.#load().catch((error: unknown) => (this.notice = explain(error)));
  }

  /** A status that cannot be had is null: the light says so, and the next look is soon. */
  async #look(): Promise<void> {
    if (this.#looking) return;
    this.#looking = true;
    const status = this.socket === 'open' ? await api.status().catch(() => null) : null;
    this.status = this.socket === 'open' ? status : null;
    this.#looking = false;
  }

  async #load(): Promise<void> {
    if (this.toplists.length === 0) this.toplists = (await api.toplists()).items.filter(({ id }) => !isOwn(id));
    await this.loadOwn();
    if (this.metrics.length === 0) this.metrics = (await api.metrics()).items;
    if (!this.#historyLoaded) await this.#loadHistory();
  }

  async loadOwn(): Promise<void> {
    this.own = (await api.ownToplists()).items;
  }

  async #loadHistory(): Promise<void> {
    let page = await api.alerts({ limit: 50 });
    this.alerts.add(page.items, null);
    this.#historyLoaded = true;
    let more = this.alerts.countOlder(page.items);
    for (let pages = 0; more && page.next_cursor; pages += 1) {
      this.alerts.counted = false;
      if (pages === COUNT_PAGES) return;
      page = await api.alerts({ limit: 200, cursor: page.next_cursor });
      more = this.alerts.countOlder(page.items);
    }
    this.alerts.counted = true;
  }

  /** As far back as the list goes, because notes may have come to any of its alerts. */
  async #loadMissed(): Promise<void> {
    const [newest, oldest] = [this.alerts.items[0], this.alerts.items.at(-1)];
    const known = newest ? newest.firedMs - OVERLAP_MS : -Infinity; // from there on back no alert is missing
    const since = oldest && new Date(Math.min(known, oldest.firedMs)).toISOString();
    let cursor: string | null | undefined;
    let reached = Infinity;
    let loaded = 0;
    do {
      const page = await api.alerts({ limit: 200, ...(since && { since }), ...(cursor && { cursor }) });
      this.#announce(this.alerts.add(page.items, this.now));
      cursor = page.next_cursor;
      reached = parseTime(page.items.at(-1)?.fired_at ?? '');
      loaded += page.items.length;
    } while (cursor && loaded < KEPT);
    if (cursor && reached > known) this.alerts.counted = false;
  }

  #receive(message: ServerMessage): void {
    if (message.type === 'toplist_update') this.#update(message.data);
    else if (message.type === 'token_expiring') void session.renewNow();
    else if (message.type === 'error' && message.data.code === 'unknown_toplist') void this.loadOwn().catch(() => undefined); // one is gone
    else if (message.type === 'error') this.notice = message.data.message;
    else if (message.type === 'alert' || message.type === 'alert_note') {
      (message.type === 'alert' ? this.#arrived : this.#noted).push(message.data);
      this.#flush ??= setTimeout(() => this.#show(), Math.max(0, this.#flushedAt + FLUSH_MS - performance.now()));
    }
  }

  #show(): void {
    this.#flush = undefined;
    this.#flushedAt = this.now = performance.now();
    this.#announce(this.alerts.add(this.#arrived.splice(0), this.now));
    this.alerts.add(this.#noted.splice(0), null); // of alerts that the page has or had, or of before it was opened
  }

  #announce(added: SeenAlert[]): void {
    if (added.length > 0) this.news = added;
  }

  #update(data: ToplistData): void {
    const ms = parseTime(data.timestamp ?? '');
    if (ms > this.#newestMs) {
      this.#newestMs = this.eventMs = ms;
      this.session = data.session ?? '';
      this.progressAt = this.now = performance.now();
    }
    this.#rank(data);
  }

  #rank(data: ToplistData): void {
    const id = data.toplist_id;
    const movement = this.#movements.get(id);
    if (!movement || data.timestamp === null) return; // no longer asked for, or before the first scan
    const moves = movement.next(parseTime(data.timestamp), data.rankings);
    const metric = data.metric ?? this.toplists.find((list) => list.id === id)?.metric;
    this.lists.set(id, { rankings: data.rankings, moves, metric, columns: data.columns });
    const known = this.own?.find((list) => list.id === id);
    if (known && data.version !== undefined && data.version > known.version) void this.loadOwn().catch(() => undefined); // changed elsewhere
  }
}

export const live = new Live();
