/** Simple rules as rows of metric, operator and value, and rows as text. Pure. */

import { conjuncts } from './ruletext';

export const OPERATORS = ['>', '>=', '<', '<=', '==', '!=', 'crosses_above', 'crosses_below'] as const;
export interface Row { metric: string; operator: (typeof OPERATORS)[number]; value: string } // a number or a metric

const METRIC = String.raw`[A-Za-z_]\w*(?:\[\d+\])?`;
const NUMBER = String.raw`[-+]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+|[kKMB])?`;
const ROW = new RegExp(String.raw`^(${METRIC})\s*(>=|<=|==|!=|=|>|<|crosses[_\s]above|crosses[_\s]below)\s*(${NUMBER}|${METRIC}|\d\d?:\d\d)$`);
const FLAG = new RegExp(`^(not\\s+)?(${METRIC})$`);

export const blankRow = (): Row => ({ metric: 'change_pct_5m', operator: '>', value: '' });

/** Null for a text that says more than rows can. */
export function rowsOf(text: string): Row[] | null {
  if (text.trim() === '') return [blankRow()];
  const parts = conjuncts(text);
  if (parts === null) return null;
  const rows: Row[] = [];
  for (const part of parts) {
    const [, metric, operator, value] = ROW.exec(part) ?? [];
    const [, not, flag] = FLAG.exec(part) ?? [];
    if (metric && operator && value) {
      const spelt = (operator === '=' ? '==' : operator.replace(/\s/, '_')) as Row['operator'];
      rows.push({ metric, operator: spelt, value });
    } else if (flag) rows.push({ metric: flag, operator: '==', value: not ? '0' : '1' });
    else return null;
  }
  return rows;
}

/** Rows without a metric or a value are not yet written and left out. */
export function textOf(rows: Row[]): string {
  return rows
    .filter(({ metric, value }) => metric.trim() !== '' && value.trim() !== '')
    .map(({ metric, operator, value }) => `${metric.trim()} ${operator} ${value.trim()}`)
    .join('\nand ');
}
