/** Where this page is in the alerts of each partition, so that it misses none when the line is cut. Knows no socket. */

import type { ServerMessage } from './socket';

export interface ResumeMessage { type: 'resume'; data: { last_id?: string; places: Record<string, string> } }
/** show: for the page. drop: it comes again. whole: nothing is missing. missed: something may be. */
export type Verdict = 'show' | 'drop' | 'whole' | 'missed';

export class Places {
  #places: Record<string, string> = {};
  #lastId: string | undefined;
  #resuming = false;
  #then: Record<string, string> | undefined; // where we are once `#left` more frames have come
  #left = 0;

  /** What to say first on a new line; undefined where there is nothing to go on from. */
  begin(): ResumeMessage | undefined {
    this.#then = undefined;
    this.#resuming = Object.keys(this.#places).length > 0;
    if (!this.#resuming) return undefined;
    return { type: 'resume', data: { ...(this.#lastId && { last_id: this.#lastId }), places: { ...this.#places } } };
  }

  /** Each message from the server passes here. */
  take(message: ServerMessage): Verdict {
    switch (message.type) {
      case 'welcome':
        if (!this.#resuming) this.#places = { ...message.data.places };
        return 'show';
      case 'alert':
      case 'alert_note':
        if (this.#resuming) return 'drop';
        this.#pass(message);
        return 'show';
      case 'places':
        if (!this.#resuming) this.#places = { ...this.#places, ...message.data.places };
        return 'show';
      case 'resumed':
        this.#resuming = false;
        this.#left = message.data.alerts;
        this.#then = message.data.places;
        this.#arrive();
        return message.data.recovered === true ? 'whole' : 'missed';
      case 'error':
        if (!this.#resuming) return 'show';
        this.#resuming = false; // it does not know these places, and goes on from its welcome
        this.#places = {};
        return 'missed';
      default:
        return 'show';
    }
  }

  #pass(message: ServerMessage & { type: 'alert' | 'alert_note' }): void {
    const colon = message.at?.indexOf(':') ?? -1;
    if (message.at && colon > 0) this.#places[message.at.slice(0, colon)] = message.at.slice(colon + 1);
    if (message.type === 'alert') this.#lastId = message.data.alert_id;
    this.#left -= 1;
    this.#arrive();
  }

  #arrive(): void {
    if (!this.#then || this.#left > 0) return;
    this.#places = { ...this.#then };
    this.#then = undefined;
  }
}
