/** Words and numbers of an explanation. Pure. */

import type { Finding, Known, RuleScore, Severity } from './api';
import { SEVERITIES } from './api';
import { byUnit, DASH } from './format';

export const MARKS = { yes: '✓', no: '✗', unknown: '?' } as const;
export type Mark = keyof typeof MARKS;
export const markOf = (truth: boolean | null): Mark => (truth === null ? 'unknown' : truth ? 'yes' : 'no');

const UNITS: Record<string, string> = { seconds: 's', minutes: 'min', sigma: 'σ', shares: 'shares' };

/** A value as its unit reads; a time of day as a clock does. */
export function reading(name: string, value: Known, unit: string | null | undefined): string {
  if (value === null) return DASH;
  if (name === 'time_of_day') return clock(value);
  const suffix = UNITS[unit ?? ''];
  const text = unit === '$' ? `$${byUnit(value, '$')}` : byUnit(value, unit ?? undefined);
  return suffix ? `${text} ${suffix}` : text.replace('$−', '−$');
}

/** The same for narrow places: volumes without their unit. */
export const brief = (...operand: Parameters<typeof reading>): string => reading(...operand).replace(/ shares$/, '');

function clock(minutes: number): string {
  const seconds = Math.round(minutes * 60);
  const two = (value: number) => String(value).padStart(2, '0');
  return `${two(Math.floor(seconds / 3600))}:${two(Math.floor(seconds / 60) % 60)}:${two(seconds % 60)}`;
}

/** "lacks +0.35": with its sign, and enough digits that a small gap is not nothing. */
export function lacksText(finding: Pick<Finding, 'true' | 'lacks'>): string {
  return finding.true === false && finding.lacks ? `lacks ${signed(finding.lacks)}` : '';
}

export function signed(value: Known): string {
  if (value === null) return DASH;
  const size = Math.abs(value);
  const digits = size >= 1_000 ? 0 : size >= 0.1 || size === 0 ? 2 : Math.min(8, 2 - Math.floor(Math.log10(size)) - 1);
  const text = size.toLocaleString('en-US', { minimumFractionDigits: size >= 0.1 ? Math.min(2, digits) : 0, maximumFractionDigits: digits });
  return `${value < 0 ? '−' : '+'}${text}`;
}

/** How old a value is: 0.4 s, 12 s, 3 min, 2 h; a dash where nobody can say. */
export function ageText(seconds: Known): string {
  if (seconds === null) return DASH;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7_200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172_800 ? `${Math.round(seconds / 3_600)} h` : `${Math.round(seconds / 86_400)} days`;
}

// -- alerts -----------------------------------------------------------------------------------------------------------

export interface AlertFilter { text: string; least: Severity; tag: string }

/** A predicate of alerts: part of symbol or rule, at least this severe, with this tag ('': any). */
export function alertFilter({ text, least, tag }: AlertFilter) {
  const [wanted, rank] = [text.trim().toLowerCase(), SEVERITIES.indexOf(least)];
  return (alert: { symbol: string; rule_name: string; severity: Severity; tags: string[] }): boolean =>
    SEVERITIES.indexOf(alert.severity) >= rank &&
    (tag === '' || alert.tags.includes(tag)) &&
    (wanted === '' || `${alert.symbol}\n${alert.rule_name}`.toLowerCase().includes(wanted));
}

// -- scores -----------------------------------------------------------------------------------------------------------

export const HORIZONS = [['1m', '1 min'], ['5m', '5 min'], ['15m', '15 min'], ['60m', '60 min'], ['close', 'Close']] as const;

/** Bars of the mean outcome after each horizon, for a picture of height 2: up from or down to the middle. Null: unknown. */
export function sparkBars(score: RuleScore): ({ y: number; height: number; up: boolean } | null)[] {
  const means = HORIZONS.map(([horizon]) => score.outcomes[`return_pct_${horizon}`]?.mean_pct ?? null);
  const largest = Math.max(0, ...means.map((mean) => Math.abs(mean ?? 0)));
  return means.map((mean) => {
    if (mean === null) return null;
    const height = largest === 0 ? 0 : Math.abs(mean) / largest;
    return { y: mean > 0 ? 1 - height : 1, height, up: mean > 0 };
  });
}
