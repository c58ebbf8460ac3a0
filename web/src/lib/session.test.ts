import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { api, ApiError } from './api';
import { renewInMs, Session, session } from './session.svelte';

interface Asked { path: string; method: string; token: string | null; body: unknown }
const asked: Asked[] = [];
const stored = new Map<string, string>();
let answers: Record<string, () => Response>;
const reload = vi.fn();
const away = vi.fn();
const replaced = vi.fn();
const comeBack = (hash: string) => vi.stubGlobal('location', { reload, assign: away, hash, pathname: '/' });

const json = (content: object, status = 200, headers: Record<string, string> = {}) => new Response(JSON.stringify(content), { status, headers });
const admitted = (token: string) => json({ access_token: token, expires_in: 900 });
const paths = () => asked.map(({ path }) => path);

beforeEach(() => {
  vi.useFakeTimers();
  asked.length = 0;
  stored.clear();
  reload.mockClear();
  answers = { '/api/v1/user/profile': () => json({ name: 'ada', role: 'trader' }) };
  vi.stubGlobal('localStorage', {
    getItem: (key: string) => stored.get(key) ?? null,
    setItem: (key: string, value: string) => stored.set(key, value),
    removeItem: (key: string) => stored.delete(key),
  });
  away.mockClear();
  comeBack('');
  vi.stubGlobal('history', { replaceState: replaced });
  vi.stubGlobal('navigator', {});
  vi.stubGlobal('fetch', async (path: string, init: RequestInit = {}) => {
    const headers = new Headers(init.headers);
    asked.push({ path, method: init.method ?? 'GET', token: headers.get('authorization'), body: init.body && JSON.parse(String(init.body)) });
    const answer = answers[path];
    if (!answer) throw new TypeError('not reached');
    return answer();
  });
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

test('who comes back from the provider is logged in by the cookie, whoever was before, and the address tells nothing on', async () => {
  comeBack('#sign-in=done');
  answers['/api/v1/auth/refresh'] = () => admitted('t1');
  const fresh = new Session();
  await fresh.begin();
  expect([fresh.user?.name, fresh.asked, fresh.problem]).toEqual(['ada', false, '']);
  expect(replaced).toHaveBeenCalledWith(null, '', '/');
});

test('who comes back in vain is told why, and may try again; who is logged in hears nothing', async () => {
  comeBack('#sign-in=stranger');
  const fresh = new Session();
  await fresh.begin();
  expect([fresh.asked, fresh.problem]).toEqual([true, 'You have no account here. Ask who runs this server.']);
  stored.set('tapewatch.name.v1', 'ada');
  answers['/api/v1/auth/refresh'] = () => admitted('t1');
  const known = new Session();
  await known.begin();
  expect([known.asked, known.problem, known.user?.name]).toEqual([false, '', 'ada']);
});

test.each(['#sign-in=toString', '#sign-in=<b>', '#elsewhere', ''])('the address %s means nothing', async (hash) => {
  comeBack(hash);
  const fresh = new Session();
  await fresh.begin();
  expect([fresh.asked, fresh.problem, asked]).toEqual([false, '', []]);
});

test('a provider is offered where there is one, and leads away', async () => {
  const fresh = new Session();
  await fresh.look();
  expect(fresh.provider).toBe('');
  answers['/api/v1/auth/methods'] = () => json({ password: true, openid: 'Example' });
  await fresh.look();
  expect(fresh.provider).toBe('Example');
  answers['/api/v1/auth/openid/begin'] = () => json({ detail: 'Example cannot be reached now; a password still works' }, 503);
  await fresh.logInElsewhere();
  expect([fresh.problem, fresh.busy, away.mock.calls]).toEqual(['Example cannot be reached now; a password still works', false, []]);
  answers['/api/v1/auth/openid/begin'] = () => json({ authorization_url: 'https://id.example.com/authorize?state=s' });
  await fresh.logInElsewhere();
  expect(away).toHaveBeenCalledWith('https://id.example.com/authorize?state=s');
});

test('a token is renewed well before its end, and a short one at half of its life', () => {
  expect([900, 120, 10, 0].map(renewInMs)).toEqual([810_000, 60_000, 5_000, 1_000]);
});

test('where nobody was signed in nothing is asked', async () => {
  const fresh = new Session();
  await fresh.begin();
  expect([fresh.inside, fresh.asked, fresh.user, asked]).toEqual([true, false, null, []]);
});

test('who was signed in is again, by the cookie, before anything else', async () => {
  stored.set('tapewatch.name.v1', 'ada');
  answers['/api/v1/auth/refresh'] = () => admitted('t1');
  const fresh = new Session();
  expect(fresh.inside).toBe(false);
  await fresh.begin();
  expect([fresh.inside, fresh.user, fresh.headers()]).toEqual([true, { name: 'ada', role: 'trader' }, { authorization: 'Bearer t1' }]);
  expect(asked[0]).toEqual({ path: '/api/v1/auth/refresh', method: 'POST', token: null, body: undefined });
});

test('a cookie that is refused says nothing until the server does', async () => {
  stored.set('tapewatch.name.v1', 'ada');
  answers['/api/v1/auth/refresh'] = () => json({}, 401);
  const fresh = new Session();
  await fresh.begin();
  expect([fresh.inside, fresh.asked, fresh.name, stored.size]).toEqual([true, false, 'ada', 0]);
  expect(await fresh.regain(undefined)).toBe(false);
  expect([fresh.inside, fresh.asked]).toEqual([false, true]);
  await fresh.regain(undefined);
  expect(paths().filter((path) => path.endsWith('/refresh')).length).toBe(2); // while the person is asked, nobody else is
});

test('the login sends name and password once, keeps the token out of storage, and tells who waits', async () => {
  const fresh = new Session();
  const told: string[] = [];
  fresh.onToken((token) => told.push(token));
  answers['/api/v1/auth/login'] = () => admitted('secret-1');
  fresh.asked = true;
  await fresh.logIn('ada', 'correct horse');
  expect(asked[0]?.body).toEqual({ name: 'ada', password: 'correct horse', cookie: true });
  expect([fresh.asked, fresh.user?.name, told]).toEqual([false, 'ada', ['secret-1']]);
  expect([...stored.values()]).toEqual(['ada']);
});

test('the token is renewed in time, and the session that ended asks', async () => {
  const fresh = new Session();
  await fresh.begin();
  answers['/api/v1/auth/login'] = () => admitted('t1');
  await fresh.logIn('ada', 'x');
  answers['/api/v1/auth/refresh'] = () => admitted('t2');
  await vi.advanceTimersByTimeAsync(809_000);
  expect(fresh.token).toBe('t1');
  await vi.advanceTimersByTimeAsync(2_000);
  expect(fresh.token).toBe('t2');
  delete answers['/api/v1/auth/refresh'];
  await vi.advanceTimersByTimeAsync(850_000); // not reached: it tries on, and nobody is asked
  expect([fresh.token, fresh.asked]).toEqual(['t2', false]);
  answers['/api/v1/auth/refresh'] = () => json({}, 401);
  await vi.advanceTimersByTimeAsync(10_000);
  expect([fresh.token, fresh.asked, fresh.user?.name, fresh.inside]).toEqual([undefined, true, 'ada', true]);
});

test('errors of the login are in words, and too many tries are counted down', async () => {
  const fresh = new Session();
  const tries: [() => Response, string][] = [
    [() => json({ detail: 'no' }, 401), 'The name or the password is wrong.'],
    [() => json({ detail: 'name: must be shorter' }, 422), 'name: must be shorter'],
    [() => json({}, 503), 'The server answered 503.'],
  ];
  for (const [answer, text] of tries) {
    answers['/api/v1/auth/login'] = answer;
    await fresh.logIn('ada', 'x');
    expect(fresh.problem).toBe(text);
  }
  delete answers['/api/v1/auth/login'];
  await fresh.logIn('ada', 'x');
  expect(fresh.problem).toBe('The server cannot be reached.');
  answers['/api/v1/auth/login'] = () => json({}, 429, { 'retry-after': '3' });
  await fresh.logIn('ada', 'x');
  expect([fresh.problem, fresh.waitS]).toEqual(['Too many tries.', 3]);
  await vi.advanceTimersByTimeAsync(2_000);
  expect(fresh.waitS).toBe(1);
  await vi.advanceTimersByTimeAsync(1_000);
  expect([fresh.problem, fresh.waitS]).toEqual(['', 0]);
});

test('another user on the same page begins with an empty one', async () => {
  const fresh = new Session();
  answers['/api/v1/auth/login'] = () => admitted('t');
  await fresh.logIn('ada', 'x');
  answers['/api/v1/user/profile'] = () => json({ name: 'bob', role: 'viewer' });
  await fresh.logIn('bob', 'x');
  expect(reload).toHaveBeenCalledOnce();
  expect(fresh.user?.name).toBe('ada');
});

test('logging out ends the session at the server and forgets the page, or says that it could not', async () => {
  const fresh = new Session();
  answers['/api/v1/auth/login'] = () => admitted('t');
  await fresh.logIn('ada', 'x');
  await fresh.logOut();
  expect([fresh.problem !== '', reload.mock.calls.length, stored.size]).toEqual([true, 0, 1]);
  answers['/api/v1/auth/logout'] = () => new Response(null, { status: 204 });
  await fresh.logOut();
  expect(asked.at(-1)).toMatchObject({ path: '/api/v1/auth/logout', method: 'POST', token: 'Bearer t' });
  expect([reload.mock.calls.length, stored.size]).toEqual([1, 0]);
});

test('calls carry the token, and one renewal serves all that were refused', async () => {
  let good = 't1';
  let renewals = 0;
  answers['/api/v1/auth/login'] = () => admitted('t1');
  answers['/api/v1/auth/refresh'] = () => admitted((good = `t${(renewals += 1) + 1}`));
  answers['/api/v1/system/status'] = () => (asked.at(-1)?.token === `Bearer ${good}` ? json({ state: 'running' }) : json({ title: 'Unauthorized' }, 401));
  await session.logIn('ada', 'x');
  await api.status();
  good = 'none';
  const both = await Promise.all([api.status(), api.status()]);
  expect([both.map(({ state }) => state), renewals]).toEqual([['running', 'running'], 1]);
  good = 'none';
  answers['/api/v1/auth/refresh'] = () => json({}, 401);
  await expect(api.status()).rejects.toThrow(ApiError);
  expect(session.asked).toBe(true);
});
