/** What changed between two versions of a rule, word by word. Pure. */

import type { RuleDraft } from './api';
import { readable, tokenise } from './ruletext';

export interface Part { kind: 'same' | 'gone' | 'new'; text: string }
export interface Change { field: string; parts: Part[] }

/** The longest common run of words stays; neighbours of one kind are one part. */
export function diffWords(before: string, after: string): Part[] {
  const [a, b] = [before, after].map((text) => tokenise(text).map((token) => token.text)) as [string[], string[]];
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head += 1;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail += 1;
  return joined([
    ...a.slice(0, head).map((text) => ({ kind: 'same', text }) as Part),
    ...between(a.slice(head, a.length - tail), b.slice(head, b.length - tail)),
    ...a.slice(a.length - tail).map((text) => ({ kind: 'same', text }) as Part),
  ]);
}

function between(a: string[], b: string[]): Part[] {
  const width = b.length + 1;
  const longest = new Uint16Array((a.length + 1) * width); // of a[i:] and b[j:]
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      longest[i * width + j] =
        a[i] === b[j]
          ? longest[(i + 1) * width + j + 1]! + 1
          : Math.max(longest[(i + 1) * width + j]!, longest[i * width + j + 1]!);
    }
  }
  const parts: Part[] = [];
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      parts.push({ kind: 'same', text: a[i]! });
      [i, j] = [i + 1, j + 1];
    } else if (i < a.length && (j === b.length || longest[(i + 1) * width + j]! >= longest[i * width + j + 1]!)) {
      parts.push({ kind: 'gone', text: a[i]! });
      i += 1;
    } else {
      parts.push({ kind: 'new', text: b[j]! });
      j += 1;
    }
  }
  return parts;
}

function joined(parts: Part[]): Part[] {
  const found: Part[] = [];
  for (const part of parts) {
    const last = found.at(-1);
    if (last?.kind === part.kind) last.text += part.text;
    else found.push({ ...part });
  }
  return found;
}

const FIELDS: [string, (rule: RuleDraft) => string][] = [
  ['name', (rule) => rule.name],
  ['description', (rule) => rule.description],
  ['when', (rule) => readable(rule.when)],
  ['gate', (rule) => readable(rule.gate)],
  ['rearm', (rule) => readable(rule.rearm)],
  ['fire', (rule) => rule.fire],
  ['cooldown', (rule) => `${rule.cooldown} s`],
  ['severity', (rule) => rule.severity],
  ['tags', (rule) => rule.tags.join(', ')],
  ['on', (rule) => (rule.enabled ? 'yes' : 'no')],
];

/** Only the fields that differ. */
export function changes(before: RuleDraft, after: RuleDraft): Change[] {
  return FIELDS.flatMap(([field, text]) => {
    const [was, is] = [text(before), text(after)];
    return was === is ? [] : [{ field, parts: diffWords(was, is) }];
  });
}
