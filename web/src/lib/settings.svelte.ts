/** What the person chose, kept in this browser. Anything unreadable falls back to the defaults. */

import { NOTIFY, type Notify } from './notices';

export interface Panel { list: string; rows: number }
export const ROW_CHOICES = [10, 15, 25, 50];
export const THEMES = ['dark', 'light', 'system'] as const;
export type Theme = (typeof THEMES)[number];

const KEY = 'tapewatch.settings.v1';
const DEFAULT_LISTS = ['gainers_5m', 'losers_5m', 'gainers_day', 'volume_day', 'relative_volume_5m', 'vwap_above'];

export const EDITORS = ['rows', 'text'] as const; // how a rule is written
export type Editor = (typeof EDITORS)[number];

interface Saved { panels: Panel[]; theme: Theme; sound: boolean; editor: Editor; notify: Notify }

/** What `text` says, as far as it makes sense; the defaults for the rest. */
export function readSettings(text: string | null): Saved {
  let saved: Partial<Record<keyof Saved, unknown>> = {};
  try {
    saved = Object(JSON.parse(text ?? '{}'));
  } catch {
    // Not ours, or cut short: as if nothing had been saved.
  }
  const panels = DEFAULT_LISTS.map((list, place) => {
    const panel = Object((saved.panels as unknown[] | undefined)?.[place]) as Partial<Panel>;
    return {
      list: typeof panel.list === 'string' ? panel.list : list,
      rows: ROW_CHOICES.find((rows) => rows === panel.rows) ?? 15,
    };
  });
  return {
    panels,
    theme: THEMES.find((theme) => theme === saved.theme) ?? 'dark',
    sound: saved.sound === true,
    editor: EDITORS.find((editor) => editor === saved.editor) ?? 'rows',
    notify: NOTIFY.find((notify) => notify === saved.notify) ?? 'off',
  };
}

function stored(): string | null {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null; // storage is forbidden: the page works, its choices last until it closes
  }
}

class Settings {
  panels = $state<Panel[]>([]);
  theme = $state<Theme>('dark');
  sound = $state(false);
  editor = $state<Editor>('rows');
  notify = $state<Notify>('off');

  constructor() {
    Object.assign(this, readSettings(stored()));
  }

  /** Called in an effect, so that every change is kept. */
  keep(): void {
    const { panels, theme, sound, editor, notify } = this;
    const text = JSON.stringify({ panels, theme, sound, editor, notify });
    try {
      localStorage.setItem(KEY, text);
    } catch {
      // As above.
    }
  }
}

export const settings = new Settings();
