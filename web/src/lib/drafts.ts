/** A rule while it is written. Pure. */

import type { Cost, Rule, RuleDraft } from './api';
import { laidOut } from './ruletext';

export const FIRES = ['edge', 'level', 'once per bar', 'once per session', 'once per day'] as const;
export type FireKind = (typeof FIRES)[number];
export const BARS = ['1m', '2m', '5m', '10m', '15m', '30m', '1h', '4h'] as const;
export const FIRE_SAYS: Record<FireKind, string> = {
  edge: 'when it becomes true',
  level: 'at every scan while it is true',
  'once per bar': 'at most once in each candle',
  'once per session': 'at most once in each session',
  'once per day': 'at most once a day',
};

export const blankDraft = (): RuleDraft => ({
  name: '', description: '', when: '', gate: '', rearm: '', fire: 'edge', cooldown: 60, severity: 'info', tags: [], enabled: true,
});

/** What of a rule its author writes, laid out to be read. */
export function draftOf({ name, description, when, gate, rearm, fire, cooldown, severity, tags, enabled, shared }: Rule): RuleDraft {
  return {
    name, description, when: laidOut(when), gate: laidOut(gate), rearm: laidOut(rearm), fire, cooldown, severity, tags: [...tags], enabled,
    ...(shared && { shared }),
  };
}

/** The draft as it is sent: without what has no meaning beside its other fields. */
export function sent(draft: RuleDraft): RuleDraft {
  return { ...draft, name: draft.name.trim(), rearm: draft.fire === 'edge' ? draft.rearm : '' };
}

export function readFire(fire: string): { kind: FireKind; bar: string } {
  const [, bar] = /^once per bar (\S+)$/.exec(fire) ?? [];
  if (bar) return { kind: 'once per bar', bar };
  return { kind: FIRES.find((kind) => kind === fire) ?? 'edge', bar: '5m' };
}

export const writeFire = (kind: FireKind, bar: string): string => (kind === 'once per bar' ? `${kind} ${bar}` : kind);

/** As they are typed: between commas or spaces, with or without #, each once. */
export function readTags(text: string): string[] {
  return [...new Set(text.split(/[\s,]+/).map((tag) => tag.replace(/^#/, '')))].filter(Boolean);
}

/** What a rule asks of the processor and of memory, in words. */
export function costText({ scan_us, max_scan_us, memory_bytes }: Cost): string {
  const time = scan_us < 1_000 ? `${scan_us.toFixed(0)} µs` : `${(scan_us / 1_000).toFixed(1)} ms`;
  const share = (scan_us / max_scan_us) * 100;
  const memory = memory_bytes < 1_000 ? '' : `, ${memory_bytes < 1e6 ? `${Math.round(memory_bytes / 1e3)} kB` : `${(memory_bytes / 1e6).toFixed(1)} MB`} of memory`;
  return `${time} a scan of 10,000 symbols (${share < 1 ? 'under 1' : share.toFixed(0)} % of what a rule may take)${memory}`;
}
