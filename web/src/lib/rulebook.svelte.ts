/** The rules as the server has them, and how their alerts fared today. One instance, `rulebook`. */

import { untrack } from 'svelte';
import { api, ApiError, explain, type Rule, type RuleScore, type Scoreboard } from './api';

const LOOK_EVERY_MS = 10_000; // other people and other programs change rules too
const SCORES_EVERY_MS = 10_000;

/** What the server is asked for: rules whose name has these words, or with this tag. */
export function ruleFilter(wanted: string): { q?: string; tag?: string } {
  const text = wanted.trim();
  if (text.startsWith('#')) return /^#[A-Za-z0-9][\w.-]{0,63}$/.test(text) ? { tag: text.slice(1) } : {};
  return text === '' ? {} : { q: text.slice(0, 120) };
}

async function found(id: string): Promise<Rule | null> {
  return api.rule(id).catch((error: unknown) => {
    if (error instanceof ApiError && error.status === 404) return null;
    throw error;
  });
}

class RuleBook {
  rules = $state.raw<Rule[] | null>(null); // those that are looked for
  total = $state(0);
  wanted = $state(''); // part of a name, or #tag
  scores = $state.raw<Scoreboard | null>(null);
  problem = $state('');
  busy = $state(false);
  #open = $state.raw<{ id: string; rule: Rule | null; looked: boolean } | null>(null);
  #asked = 0;

  /** Keeps both current until the returned function is called. */
  follow(): () => void {
    untrack(() => void this.load());
    untrack(() => void this.#loadScores());
    const look = setInterval(() => document.hidden || void this.load(), LOOK_EVERY_MS);
    const count = setInterval(() => document.hidden || void this.#loadScores(), SCORES_EVERY_MS);
    return () => {
      clearInterval(look);
      clearInterval(count);
    };
  }

  async load(): Promise<void> {
    const asked = (this.#asked += 1);
    try {
      const { items, total } = await api.rules(ruleFilter(this.wanted));
      const id = this.#open?.id;
      const rule = id === undefined ? null : (items.find((rule) => rule.id === id) ?? (await found(id)));
      if (asked !== this.#asked) return; // a newer question is on its way
      if (this.rules === null) this.problem = '';
      [this.rules, this.total] = [items, total];
      if (id !== undefined && this.#open?.id === id) this.#open = { id, rule, looked: true };
    } catch (error) {
      if (this.rules === null) this.problem = explain(error);
    }
  }

  /** Keeps one rule current even when it is not looked for, until the returned function is called. */
  watch(id: string): () => void {
    untrack(() => {
      const rule = this.rule(id) ?? null;
      this.#open = { id, rule, looked: rule !== null };
      if (rule === null) void this.load();
    });
    return () => {
      if (untrack(() => this.#open?.id) === id) this.#open = null;
    };
  }

  /** Nobody has a rule of this name any more. */
  isGone(id: string): boolean {
    return this.#open?.id === id && this.#open.looked && this.rule(id) === undefined;
  }

  async #loadScores(): Promise<void> {
    this.scores = await api.scoreboard().catch(() => this.scores);
  }

  rule(id: string | null): Rule | undefined {
    const open = this.#open?.id === id ? this.#open?.rule : null;
    return this.rules?.find((rule) => rule.id === id) ?? open ?? undefined;
  }

  /** As the server has just stored it. */
  put(stored: Rule): void {
    if (this.rules?.some(({ id }) => id === stored.id)) this.rules = this.rules.map((rule) => (rule.id === stored.id ? stored : rule));
    else this.#open = { id: stored.id, rule: stored, looked: true };
  }

  /** Of today, the newest version first. */
  scoresOf(id: string): RuleScore[] {
    const found = this.scores?.rules.filter((score) => score.rule_id === id) ?? [];
    return found.sort((a, b) => b.rule_version - a.rule_version);
  }

  /** True if the server agreed. */
  async remove(id: string): Promise<boolean> {
    const done = await this.change(async () => {
      await api.deleteRule(id);
      if (this.#open?.id === id) this.#open = null;
    });
    return done !== null;
  }

  /** Does it and shows the rules as they then are; null if the server did not agree. */
  async change<T>(action: () => Promise<T>): Promise<{ answer: T } | null> {
    this.busy = true;
    this.problem = '';
    try {
      return { answer: await action() };
    } catch (error) {
      this.problem = explain(error);
      return null;
    } finally {
      await this.load();
      this.busy = false;
    }
  }
}

export const rulebook = new RuleBook();
