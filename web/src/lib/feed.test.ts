import { expect, test } from 'vitest';
import type { FeedConnection, FeedStatus, SystemStatus } from './api';
import { feedView } from './feed';

const connection = (name: string, role: FeedConnection['role'], state: FeedConnection['state'], problem = ''): FeedConnection => ({
  name, role, state, problem, reason: '',
});
const status = (state: string, feed: Partial<FeedStatus> = {}): SystemStatus => ({
  state, feed: { name: 'alpaca', state: 'running', age_s: 0.4, gap: null, connections: [], ...feed },
});

test('the light is green only while data flows from the primary', () => {
  expect(feedView(status('running'))).toEqual({ light: 'good', text: 'Feed alpaca', flows: true, banners: [] });
  const lights: [SystemStatus | null, string, string][] = [
    [null, 'warn', 'Feed unknown'],
    [status('starting'), 'warn', 'Feed alpaca starting'],
    [status('lost', { state: 'lost' }), 'bad', 'Feed lost'],
    [status('refused', { state: 'refused' }), 'bad', 'Feed refused'],
    [status('stale', { age_s: 31.7 }), 'bad', 'No data for 31 s'],
    [status('stale', { age_s: 400 }), 'bad', 'No data for 6 min'],
    [status('ended', { state: 'ended' }), 'warn', 'Feed ended'],
  ];
  for (const [said, light, text] of lights) expect(feedView(said)).toMatchObject({ light, text, flows: light !== 'bad' });
});

test('an open gap says since when in New York, and why', () => {
  const gap = { since: '2025-03-06T14:31:02.000000000Z', reason: 'silent' };
  const view = feedView(status('degraded', { gap, connections: [connection('alpaca', 'primary', 'lost', 'nothing came for 10 s')] }));
  expect(view).toMatchObject({ light: 'bad', text: 'No data', flows: false });
  expect(view.banners).toEqual(['No data since 09:31:02 (New York): silent; rules wait', 'alpaca: nothing came for 10 s']);
});

test('on the fallback the page names both, and what the primary said', () => {
  const connections = [connection('alpaca', 'primary', 'open', 'too many connections'), connection('massive', 'fallback', 'running')];
  expect(feedView(status('degraded', { connections }))).toEqual({
    light: 'warn', text: 'On fallback massive', flows: true, banners: ['Running on massive; alpaca: too many connections'],
  });
  const silent = [connection('alpaca', 'primary', 'open'), connection('massive', 'fallback', 'running')];
  expect(feedView(status('degraded', { connections: silent })).banners).toEqual(['Running on massive; alpaca: left alone for a while']);
});

test('a fallback that stands by, or runs beside a primary that is back, is no news', () => {
  const standing = [connection('alpaca', 'primary', 'running'), connection('massive', 'fallback', 'waiting')];
  expect(feedView(status('running', { connections: standing }))).toMatchObject({ light: 'good', text: 'Feed alpaca', banners: [] });
  const both = [connection('alpaca', 'primary', 'running'), connection('massive', 'fallback', 'running')];
  expect(feedView(status('running', { connections: both })).banners).toEqual([]);
});

test('a server that tells neither gaps nor connections is believed', () => {
  expect(feedView({ state: 'running', feed: { name: 'synthetic', state: 'running', age_s: null } })).toMatchObject({ light: 'good', banners: [] });
});
