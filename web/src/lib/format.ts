/** Numbers and times as a trader reads them. Pure. Unknown (null) is a dash here, never zero. */

import type { Known } from './api';

export const DASH = '–';
const MINUS = '−';

const newYork = (options: Intl.DateTimeFormatOptions) =>
  new Intl.DateTimeFormat('en-US', { timeZone: 'America/New_York', hourCycle: 'h23', ...options });
const CLOCK = newYork({ hour: '2-digit', minute: '2-digit', second: '2-digit' });
const MINUTE = newYork({ hour: '2-digit', minute: '2-digit' });
const DATE = newYork({ weekday: 'short', month: 'short', day: 'numeric', year: 'numeric' });
const DAY = new Intl.DateTimeFormat('en-CA', { timeZone: 'America/New_York' }); // 2013-10-07

/** RFC 3339, with up to nanoseconds, as milliseconds since 1970. */
export const parseTime = (text: string): number => Date.parse(text.replace(/(\.\d{3})\d+/, '$1'));
export const clockTime = (ms: number): string => CLOCK.format(ms);
export const clockTimeMs = (ms: number): string =>
  `${CLOCK.format(ms)}.${String(((ms % 1000) + 1000) % 1000).padStart(3, '0')}`;
/** A text with its RFC 3339 times as clock times of New York. */
export const withClockTimes = (text: string): string =>
  text.replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z/g, (time) => `${clockTimeMs(parseTime(time))} ET`);
export const minuteTime = (ms: number): string => MINUTE.format(ms);
export const longDate = (ms: number): string => DATE.format(ms);
/** The New York calendar day, such as 2013-10-07: sorts as text. */
export const dayOf = (ms: number): string => DAY.format(ms);

const fixed = new Map<number, Intl.NumberFormat>();
function decimals(value: number, digits: number): string {
  let format = fixed.get(digits);
  if (!format) {
    format = new Intl.NumberFormat('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits });
    fixed.set(digits, format);
  }
  return format.format(value).replace('-', MINUS);
}

/** Cents from a dollar up, a hundredth of a cent below; BRK.A needs no cents. */
export const price = (value: Known): string =>
  value === null ? DASH : decimals(value, value === 0 ? 2 : Math.abs(value) < 1 ? 4 : Math.abs(value) < 100_000 ? 2 : 0);

export function percent(value: Known): string {
  if (value === null) return DASH;
  const text = decimals(Math.abs(value), Math.abs(value) >= 1000 ? 0 : 2);
  return `${direction(value) === 'up' ? '+' : direction(value) === 'down' ? MINUS : ''}${text}%`;
}

/** As a trader counts all of them: 9,956,046. */
export const whole = (value: number): string => decimals(value, 0);

/** Three or four digits with K, M or B. */
export function compact(value: Known): string {
  if (value === null) return DASH;
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e9, 'B'], [1e6, 'M'], [1e3, 'K']] as const) {
    // 999,999 is 1.000M, not 1000K: round first, then choose the letter.
    if (size >= unit * 0.99995) {
      const scaled = value / unit;
      return decimals(scaled, Math.abs(scaled) >= 99.995 ? 1 : 2) + letter;
    }
  }
  return whole(value);
}

export function byUnit(value: Known, unit: string | undefined): string {
  if (value === null) return DASH;
  if (unit === '%') return percent(value);
  if (unit === '$') return price(value);
  if (unit === 'shares') return compact(value);
  if (unit === 'ratio') return value >= 1000 ? `${compact(value)}×` : `${decimals(value, 2)}×`;
  if (unit === 'flag') return value ? 'yes' : 'no';
  return decimals(value, Number.isInteger(value) ? 0 : 2);
}

/** What the eye is told, as it will be shown: a change that rounds to 0.00 % has no direction. */
export function direction(value: Known): 'up' | 'down' | 'flat' {
  if (value === null || Math.abs(value) < 0.005) return 'flat';
  return value > 0 ? 'up' : 'down';
}

/** A column's heading for a metric: `relative_volume_15m` is "RVol 15m". */
export function heading(metric: string): string {
  const words = metric
    .replace(/^change_pct/, 'Chg')
    .replace(/^relative_volume/, 'RVol')
    .replace(/^volume/, 'Vol')
    .replace(/^rsi_(\d+)(_1m$)?/, 'RSI $1')
    .replace(/^vwap(_\w+)?_distance_pct$/, 'VWAP dist$1')
    .replaceAll('_', ' ');
  return words.charAt(0).toUpperCase() + words.slice(1);
}
