import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { backoffMs, TapeSocket, type ServerMessage, type SocketState } from './socket';

class FakeSocket {
  static OPEN = 1;
  static made: FakeSocket[] = [];
  readyState = 0;
  sent: { type: string; toplist_id?: string; data?: object }[] = [];
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: string }) => void) | null = null;
  onclose: ((event?: { code: number }) => void) | null = null;
  constructor() { FakeSocket.made.push(this); }
  send(text: string) { this.sent.push(JSON.parse(text)); }
  close() { this.readyState = 3; }
  accept() { this.readyState = 1; this.onopen?.(); }
  say(message: object) { this.onmessage?.({ data: JSON.stringify(message) }); }
}

const states: SocketState[] = [];
const messages: ServerMessage[] = [];
const refused: (string | undefined)[] = [];
let missed = 0;
let token: string | undefined;
let again = false;
let socket: TapeSocket;
const last = () => FakeSocket.made.at(-1)!;

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal('WebSocket', FakeSocket);
  missed = 0;
  [token, again] = [undefined, false];
  for (const list of [FakeSocket.made, states, messages, refused]) list.length = 0;
  socket = new TapeSocket('ws://test/ws', { state: (state) => states.push(state), message: (message) => messages.push(message), missed: () => (missed += 1), token: () => token, refused: async (used) => { refused.push(used); return again; } });
});
afterEach(() => {
  socket.close();
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

test('waits grow from half a second to fifteen, with jitter over the whole range', () => {
  expect([0, 1, 2, 9].map((attempt) => backoffMs(attempt, () => 0))).toEqual([500, 500, 500, 500]);
  expect([0, 1, 2, 9].map((attempt) => backoffMs(attempt, () => 1))).toEqual([1_000, 2_000, 4_000, 15_000]);
});

test('after a loss it connects again and asks for what is still followed', () => {
  socket.follow('gainers_5m');
  socket.follow('losers_5m');
  socket.open();
  last().accept();
  expect(last().sent.map(({ toplist_id }) => toplist_id)).toEqual(['gainers_5m', 'losers_5m']);
  expect(socket.leave('losers_5m')).toBe(true);
  last().onclose?.();
  vi.advanceTimersByTime(1_000);
  last().accept();
  expect(FakeSocket.made.length).toBe(2);
  expect(last().sent).toEqual([{ type: 'subscribe_toplist', toplist_id: 'gainers_5m' }]);
  expect(states).toEqual(['connecting', 'open', 'waiting', 'connecting', 'open']);
});

test('a list that two panels show is asked for once and left with the second', () => {
  socket.open();
  last().accept();
  socket.follow('gainers_5m');
  socket.follow('gainers_5m');
  expect(socket.leave('gainers_5m')).toBe(false);
  expect(socket.leave('gainers_5m')).toBe(true);
  expect(last().sent.map(({ type }) => type)).toEqual(['subscribe_toplist', 'unsubscribe_toplist']);
});

test('it asks on a silent line and gives up a dead one', () => {
  socket.open();
  last().accept();
  last().say({ type: 'welcome', data: {} });
  expect([last().sent, messages]).toEqual([[], [{ type: 'welcome', data: {} }]]);
  vi.advanceTimersByTime(10_000);
  expect(last().sent.at(-1)).toEqual({ type: 'ping' });
  vi.advanceTimersByTime(12_000);
  expect(states.slice(2)).toContain('waiting');
});

test('after a loss it resumes before anything else and shows nothing twice', () => {
  const alert = (id: string, at: string) => ({ type: 'alert', at, data: { alert_id: id } });
  const reconnect = () => {
    last().onclose?.();
    vi.advanceTimersByTime(2_000);
    last().accept();
  };
  socket.follow('gainers_5m');
  socket.open();
  last().accept();
  expect(missed).toBe(1); // nothing to resume from
  last().say({ type: 'welcome', data: { places: { 0: '1-1' } } });
  last().say(alert('a', '0:1-2.0'));
  reconnect();
  expect(last().sent.map(({ type }) => type)).toEqual(['resume', 'subscribe_toplist']);
  expect(last().sent[0]?.data).toEqual({ last_id: 'a', places: { 0: '1-2.0' } });
  messages.length = 0;
  last().say({ type: 'welcome', data: { places: { 0: '1-3' } } });
  last().say(alert('c', '0:1-4.0'));
  last().say({ type: 'resumed', data: { recovered: true, alerts: 2, places: { 0: '1-4' } } });
  last().say(alert('b', '0:1-3.0'));
  last().say(alert('c', '0:1-4.0'));
  expect(messages.map((message) => (message.type === 'alert' ? message.data.alert_id : message.type))).toEqual(['welcome', 'b', 'c']);
  expect(missed).toBe(1);
  reconnect();
  expect(last().sent[0]?.data).toEqual({ last_id: 'c', places: { 0: '1-4' } });
  last().say({ type: 'resumed', data: { recovered: false, alerts: 0, places: { 0: '9-1' } } });
  expect(missed).toBe(2);
});

test('a server that accepts and hangs up is not asked faster and faster', () => {
  vi.spyOn(Math, 'random').mockReturnValue(1);
  socket.open();
  for (const wait of [1_000, 2_000, 4_000, 8_000, 15_000, 15_000]) {
    const before = FakeSocket.made.length;
    last().accept();
    last().onclose?.();
    vi.advanceTimersByTime(wait - 1);
    expect(FakeSocket.made.length).toBe(before);
    vi.advanceTimersByTime(1);
    expect(FakeSocket.made.length).toBe(before + 1);
  }
});

test('a token is said before anything else, and another one on the open line', () => {
  token = 'one';
  socket.follow('gainers_5m');
  socket.open();
  last().accept();
  expect(last().sent.map(({ type, data }) => [type, data])).toEqual([['authenticate', { token: 'one' }], ['subscribe_toplist', undefined]]);
  socket.renew('two');
  expect(last().sent.at(-1)).toEqual({ type: 'authenticate', data: { token: 'two' } });
  expect(FakeSocket.made.length).toBe(1);
  token = 'two';
  last().onclose?.({ code: 1006 });
  vi.advanceTimersByTime(1_000);
  last().accept();
  expect(last().sent[0]).toEqual({ type: 'authenticate', data: { token: 'two' } });
});

test('a refused token is not tried again: the line waits for another', async () => {
  token = 'old';
  socket.open();
  last().accept();
  last().onclose?.({ code: 4401 });
  await vi.advanceTimersByTimeAsync(60_000);
  expect([FakeSocket.made.length, refused]).toEqual([1, ['old']]);
  token = 'new';
  socket.renew('new');
  last().accept();
  expect([FakeSocket.made.length, last().sent[0]?.data]).toEqual([2, { token: 'new' }]);
  socket.close();
  socket.renew('newer');
  expect(FakeSocket.made.length).toBe(2);
});

test('a token that was renewed meanwhile is tried soon', async () => {
  again = true;
  socket.open();
  last().accept();
  last().onclose?.({ code: 4401 });
  await vi.advanceTimersByTimeAsync(1_000);
  expect(FakeSocket.made.length).toBe(2);
});
