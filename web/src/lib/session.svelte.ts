/**
 * Who is signed in. Where the server has no accounts nothing here ever happens. The access token is in this page's memory
 * only; what renews it is a cookie that no script can read. One instance, `session`.
 */

const AUTH = '/api/v1/auth';
const NAME_KEY = 'tapewatch.name.v1'; // who was signed in last: the page asks for them first, and their name is filled in
const AHEAD_MS = 90_000; // so long before its end a token is renewed
const AGAIN_MS = 5_000;
const PATIENCE_MS = 10_000;

export interface User { name: string; role: string }
const OUTCOMES = new Map([
  ['again', 'That took too long, or was begun in another window. Try again.'],
  ['denied', 'The provider did not let you in.'],
  ['refused', 'That sign-in was not accepted. Try again, or tell who runs this server.'],
  ['stranger', 'You have no account here. Ask who runs this server.'],
  ['unavailable', 'The provider cannot be reached now. A password still works.'],
  ['wait', 'Too many tries. Wait a few minutes.'],
]);
type Renewal = 'renewed' | 'refused' | 'unreachable';

/** When to renew a token that ends in so many seconds: well before, but never at once. */
export function renewInMs(expiresInS: number): number {
  const lastsMs = expiresInS * 1_000;
  return Math.max(1_000, lastsMs - Math.min(AHEAD_MS, lastsMs / 2));
}

function remembered(): string {
  try {
    return localStorage.getItem(NAME_KEY) ?? '';
  } catch {
    return '';
  }
}

function remember(name: string): void {
  try {
    if (name) localStorage.setItem(NAME_KEY, name);
    else localStorage.removeItem(NAME_KEY);
  } catch {
    // Storage is forbidden: the name is typed each time.
  }
}

/** One page of this browser at a time: what the cookie holds is good once. */
function alone<T>(work: () => Promise<T>): Promise<T> {
  return 'locks' in navigator ? (navigator.locks.request('tapewatch.session', work) as Promise<T>) : work();
}

export class Session {
  user = $state.raw<User | null>(null);
  ready = $state(false); // whoever was signed in has been asked for
  asked = $state(false); // the server wants to know who asks, and nobody is signed in
  name = $state(remembered());
  busy = $state(false);
  problem = $state('');
  waitS = $state(0); // seconds until the next try to log in
  provider = $state(''); // through which one can log in, too; '' where there is none
  token: string | undefined;

  /** Where there is something to show: the server asks nobody, or somebody is or was signed in. */
  readonly inside = $derived(this.ready && (!this.asked || this.user !== null));

  #renewing: Promise<Renewal> | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #countdown: ReturnType<typeof setInterval> | undefined;
  #fresh = new Set<(token: string) => void>();

  headers(): Record<string, string> {
    return this.token === undefined ? {} : { authorization: `Bearer ${this.token}` };
  }

  /** Tells of each new token, until the returned function is called. */
  onToken(tell: (token: string) => void): () => void {
    this.#fresh.add(tell);
    return () => void this.#fresh.delete(tell);
  }

  /** At page load. A browser in which nobody was signed in goes on at once; the server says if it must not. */
  async begin(): Promise<void> {
    const outcome = back();
    if ((this.name || outcome === 'done') && (await this.#renew()) === 'refused') remember(''); // maybe nobody has to be, any more
    const problem = OUTCOMES.get(outcome);
    if (problem !== undefined && this.user === null) {
      this.problem = problem;
      this.#ask();
    }
    this.ready = true;
  }

  /** The server refused `used`. True once there is another token to try; else the person is asked. */
  async regain(used: string | undefined): Promise<boolean> {
    if (this.asked) return false;
    if (this.token !== undefined && this.token !== used) return true;
    const renewal = await this.#renew();
    if (renewal === 'refused') this.#ask();
    return renewal === 'renewed';
  }

  async logIn(name: string, password: string): Promise<void> {
    this.busy = true;
    this.problem = '';
    try {
      const answer = await post('/login', { name, password, cookie: true });
      if (answer.ok) await this.#take(await answer.json(), name);
      else await this.#explain(answer);
    } catch {
      this.problem = 'The server cannot be reached.';
    } finally {
      this.busy = false;
    }
  }

  /** Which ways to log in there are. */
  async look(): Promise<void> {
    try {
      const answer = await fetch(`${AUTH}/methods`, { signal: AbortSignal.timeout(PATIENCE_MS) });
      if (answer.ok) this.provider = ((await answer.json()) as { openid: string | null }).openid ?? '';
    } catch {
      // A password will do.
    }
  }

  /** Leaves the page for the provider, which sends the browser back. */
  async logInElsewhere(): Promise<void> {
    this.busy = true;
    this.problem = '';
    try {
      const answer = await post('/openid/begin');
      const given = (await answer.json().catch(() => ({}))) as { authorization_url?: string; detail?: string };
      if (answer.ok && given.authorization_url) location.assign(given.authorization_url);
      else this.problem = given.detail ?? `The server answered ${answer.status}.`;
    } catch {
      this.problem = 'The server cannot be reached.';
    } finally {
      this.busy = false;
    }
  }

  /** Also forgets all that the page has shown. */
  async logOut(): Promise<void> {
    try {
      const answer = await post('/logout', undefined, this.headers());
      if (!answer.ok && answer.status !== 401) throw new Error();
    } catch {
      this.problem = 'The server cannot be reached: you are still logged in.';
      return;
    }
    remember('');
    location.reload();
  }

  /** Renews before the timer would. */
  async renewNow(): Promise<void> {
    if (!this.asked && (await this.#renew()) === 'refused') this.#ask();
  }

  #renew(): Promise<Renewal> {
    this.#renewing ??= alone(() => this.#refresh()).finally(() => (this.#renewing = undefined));
    return this.#renewing;
  }

  async #refresh(): Promise<Renewal> {
    clearTimeout(this.#timer);
    try {
      const answer = await post('/refresh');
      if (answer.ok) {
        await this.#take(await answer.json(), this.name);
        return 'renewed';
      }
      if (answer.status < 429) return 'refused';
    } catch {
      // Not reached: the token may be good for a while.
    }
    if (this.token !== undefined) this.#timer = setTimeout(() => void this.renewNow(), AGAIN_MS);
    return 'unreachable';
  }

  #ask(): void {
    this.token = undefined;
    this.asked = true;
  }

  async #take(given: { access_token: string; expires_in: number }, name: string): Promise<void> {
    this.token = given.access_token;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.renewNow(), renewInMs(given.expires_in));
    const profile = await this.#profile();
    const user = { name: profile?.name ?? name, role: profile?.role ?? this.user?.role ?? '' };
    remember(user.name);
    if (this.user !== null && this.user.name !== user.name) {
      location.reload(); // what is on the page belongs to another
      return;
    }
    this.name = user.name;
    this.user = user;
    this.asked = false;
    for (const tell of this.#fresh) tell(given.access_token);
  }

  async #profile(): Promise<User | undefined> {
    try {
      const answer = await fetch('/api/v1/user/profile', { headers: this.headers(), signal: AbortSignal.timeout(PATIENCE_MS) });
      return answer.ok ? ((await answer.json()) as User) : undefined;
    } catch {
      return undefined; // the name that was typed will do
    }
  }

  async #explain(answer: Response): Promise<void> {
    const problem = (await answer.json().catch(() => ({}))) as { detail?: string };
    if (answer.status === 401) this.problem = 'The name or the password is wrong.';
    else if (answer.status === 429) this.#wait(Number(answer.headers.get('retry-after')) || 1);
    else this.problem = problem.detail ?? `The server answered ${answer.status}.`;
  }

  #wait(seconds: number): void {
    this.waitS = Math.ceil(seconds);
    this.problem = 'Too many tries.';
    clearInterval(this.#countdown);
    this.#countdown = setInterval(() => {
      this.waitS -= 1;
      if (this.waitS > 0) return;
      clearInterval(this.#countdown);
      this.problem = '';
    }, 1_000);
  }
}

/** How it went at the provider, from where the browser has just come; '' if it comes from elsewhere. */
function back(): string {
  const [, outcome] = /^#sign-in=(\w+)$/.exec(location.hash ?? '') ?? [];
  if (outcome === undefined) return '';
  history.replaceState(null, '', location.pathname); // so that loading the page again tells nothing old
  return outcome;
}

function post(path: string, body?: object, headers: Record<string, string> = {}): Promise<Response> {
  return fetch(`${AUTH}${path}`, {
    method: 'POST',
    signal: AbortSignal.timeout(PATIENCE_MS),
    ...(body === undefined ? { headers } : { headers: { ...headers, 'content-type': 'application/json' }, body: JSON.stringify(body) }),
  });
}

export const session = new Session();
