/** The WebSocket: stays connected, goes on where it was, and never trusts a silent line. It knows no screens. */

import type { Alert, ToplistData } from './api';
import { Places } from './places';

export type SocketState = 'connecting' | 'open' | 'waiting';
export type ServerMessage =
  | { type: 'authenticated'; data: { user: string; role: string; scopes: string[]; expires_at: string | null } }
  | { type: 'token_expiring'; data: { expires_at: string } }
  | { type: 'welcome'; data: { places?: Record<string, string> } }
  | { type: 'alert' | 'alert_note'; at?: string; data: Alert }
  | { type: 'resumed'; data: { recovered: boolean | 'history'; alerts: number; places: Record<string, string> } }
  | { type: 'places'; data: { places: Record<string, string> } } // alerts of others have brought us here
  | { type: 'toplist_update'; data: ToplistData }
  | { type: 'toplist_event'; data: object }
  | { type: 'pong' }
  | { type: 'error'; data: { code: string | number; message: string } };

export interface SocketHandlers {
  state(state: SocketState): void;
  message(message: ServerMessage): void;
  missed(): void; // alerts or notes of before this connection may be missing
  token(): string | undefined; // said first on each connection
  refused(token: string | undefined): Promise<boolean>; // false: there is nobody to ask for, until `renew` brings a token
}

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15_000;
const STEADY_MS = 5_000; // a connection that lived this long was a good one: the next wait starts small again
const UNAUTHORIZED = 4401;
const ASK_AFTER_MS = 8_000; // silence after which we ask "are you there?"
const DEAD_AFTER_MS = 20_000; // silence after which a half-open connection is given up

/** The wait before try `attempt` (0, 1, …): anywhere between 0.5 s and a ceiling that doubles from 1 s to 15 s. */
export function backoffMs(attempt: number, random: () => number = Math.random): number {
  const ceiling = Math.min(LONGEST_WAIT_MS, 2 * FIRST_WAIT_MS * 2 ** attempt);
  return FIRST_WAIT_MS + random() * (ceiling - FIRST_WAIT_MS);
}

export class TapeSocket {
  #url: string;
  #handlers: SocketHandlers;
  #socket: WebSocket | undefined;
  #retry: ReturnType<typeof setTimeout> | undefined;
  #watch: ReturnType<typeof setInterval> | undefined;
  #places = new Places();
  #followers = new Map<string, number>(); // two panels may show one list
  #attempt = 0;
  #openedAt = 0;
  #heardAt = 0;
  #token: string | undefined; // what this connection was opened with
  #shut = true; // nobody wants a connection, or nobody knows who asks

  constructor(url: string, handlers: SocketHandlers) {
    this.#url = url;
    this.#handlers = handlers;
  }

  open(): void {
    clearTimeout(this.#retry);
    this.#shut = false;
    this.#handlers.state('connecting');
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    this.#openedAt = 0;
    this.#heardAt = Date.now();
    this.#watch ??= setInterval(() => this.#check(), 2_000);
    socket.onopen = () => {
      this.#openedAt = this.#heardAt = Date.now();
      this.#token = this.#handlers.token();
      if (this.#token !== undefined) this.#authenticate(this.#token);
      const resume = this.#places.begin();
      if (resume) this.#send(resume);
      for (const id of this.#followers.keys()) this.#ask('subscribe_toplist', id);
      this.#handlers.state('open');
      if (!resume) this.#handlers.missed();
    };
    socket.onmessage = (event: MessageEvent<string>) => {
      this.#heardAt = Date.now();
      const message = JSON.parse(event.data) as ServerMessage;
      const verdict = this.#places.take(message);
      if (verdict === 'missed') this.#handlers.missed();
      else if (verdict === 'show') this.#handlers.message(message);
    };
    socket.onclose = (event?: CloseEvent) => (event?.code === UNAUTHORIZED ? void this.#unknown() : this.#lost());
  }

  /** Goes on with another token: on the open connection, or on a new one where the last was refused. */
  renew(token: string): void {
    this.#token = token;
    this.#authenticate(token);
    if (!this.#shut && !this.#socket) this.open();
  }

  /** Ends the connection and its retries; `open` starts again. */
  close(): void {
    this.#shut = true;
    clearTimeout(this.#retry);
    clearInterval(this.#watch);
    this.#watch = undefined;
    this.#drop();
  }

  follow(id: string): void {
    const followers = this.#followers.get(id) ?? 0;
    this.#followers.set(id, followers + 1);
    if (followers === 0) this.#ask('subscribe_toplist', id);
  }

  /** True if nobody follows the list any more. */
  leave(id: string): boolean {
    const followers = (this.#followers.get(id) ?? 0) - 1;
    if (followers > 0) {
      this.#followers.set(id, followers);
      return false;
    }
    this.#followers.delete(id);
    this.#ask('unsubscribe_toplist', id);
    return true;
  }

  #ask(type: 'subscribe_toplist' | 'unsubscribe_toplist', id: string): void {
    this.#send({ type, toplist_id: id });
  }

  #send(message: object): void {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #authenticate(token: string): void {
    this.#send({ type: 'authenticate', data: { token } });
  }

  async #unknown(): Promise<void> {
    this.#wait();
    const again = await this.#handlers.refused(this.#token);
    if (again && !this.#shut && !this.#socket) this.#later(); // `renew` may have been faster
  }

  #check(): void {
    const silent = Date.now() - this.#heardAt;
    if (this.#socket && silent > DEAD_AFTER_MS) this.#lost();
    else if (silent > ASK_AFTER_MS) this.#send({ type: 'ping' });
  }

  /** Forgets the socket at once: the closing handshake of a dead line can take minutes. */
  #drop(): void {
    const socket = this.#socket;
    this.#socket = undefined;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }

  #lost(): void {
    this.#wait();
    this.#later();
  }

  #wait(): void {
    this.#drop();
    if (this.#openedAt && Date.now() - this.#openedAt > STEADY_MS) this.#attempt = 0;
    this.#handlers.state('waiting');
  }

  #later(): void {
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.open(), backoffMs(this.#attempt++));
  }
}
