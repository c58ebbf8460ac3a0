"""Rules as code: folders of rule files, what they would change in an installation, and the change itself.

An installation is a store on this machine or a server's REST; both are asked for the same few things. A rule is the
same when everything that its author writes is the same; versions and times are the installation's.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import quote

import httpx

from tapewatch.documents import Rule, RuleDraft, Watchlist, WatchlistDraft, load_rule_file, rfc3339
from tapewatch.engine.rules.cost import cost
from tapewatch.errors import ConfigError, Invalid, NotFound, TapewatchError, Unauthorized, Unavailable, VersionConflict
from tapewatch.ports import Clock, Store

SUFFIXES = (".rules", ".json")
UNREADABLE = (AttributeError, KeyError, TypeError, ValueError)
"""Raised by reading an answer of JSON that is not what was asked for."""
_PAGE = 500
_TIMEOUT_S = 10.0

Document = Rule | Watchlist
D = TypeVar("D", Rule, Watchlist)


@dataclass(frozen=True, slots=True)
class RuleBook:
    """What is written, or what an installation has."""

    rules: dict[str, Rule]
    watchlists: dict[str, Watchlist]


@dataclass(frozen=True, slots=True)
class Change:
    """What applying would do to one document."""

    kind: Literal["new", "changed", "same", "extra"]
    """extra: the installation has it, and the files do not."""
    what: Literal["rule", "watchlist"]
    id: str
    before: Document | None
    after: Document | None

    def lines(self) -> Iterator[str]:
        """The difference as `diff -u` shows it."""
        before, after = (document.written().splitlines() if document else [] for document in (self.before, self.after))
        yield from unified_diff(before, after, f"installed/{self.id}", f"files/{self.id}", lineterm="", n=20)


def rule_files(paths: Sequence[Path]) -> list[Path]:
    """The rule files among these files and folders, in order; `Invalid` if there is none."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        else:
            found.append(path)
    if not found:
        raise Invalid(str(paths[0]), f"holds no rule file ({', '.join(f'*{suffix}' for suffix in SUFFIXES)})")
    return found


def read_rule_book(paths: Sequence[Path]) -> RuleBook:
    """All rules of these files and folders. `Invalid` if two share an id, or one costs more than a rule may."""
    rules: dict[str, Rule] = {}
    watchlists: dict[str, Watchlist] = {}
    origin: dict[tuple[str, str], Path] = {}
    for path in rule_files(paths):
        try:
            text = path.read_bytes()
        except OSError as error:
            raise Invalid(str(path), f"cannot be read: {error.strerror}") from None
        for document in (item for group in load_rule_file(text, where=str(path)) for item in group):
            what = "rule" if isinstance(document, Rule) else "watchlist"
            if (what, document.id) in origin:
                raise Invalid(str(path), f"{what} {document.id} is in {origin[what, document.id]} already")
            origin[what, document.id] = path
            if isinstance(document, Rule):
                _check_cost(document, path)
                rules[document.id] = document
            else:
                watchlists[document.id] = document
    return RuleBook(rules, watchlists)


def _check_cost(rule: Rule, path: Path) -> None:
    spec = rule.spec()
    if refusal := cost(spec.when, spec.gate, spec.rearm).refusal:
        raise Invalid(f"{path}: rule {rule.id}", refusal)


def changes(wanted: RuleBook, found: RuleBook) -> list[Change]:
    """Watchlists first, since rules name them; by id."""
    return [
        *_changes("watchlist", WatchlistDraft, wanted.watchlists, found.watchlists),
        *_changes("rule", RuleDraft, wanted.rules, found.rules),
    ]


def _changes(
    what: Literal["rule", "watchlist"],
    draft: type[RuleDraft | WatchlistDraft],
    wanted: dict[str, Any],
    found: dict[str, Any],
) -> Iterator[Change]:
    for name in sorted({*wanted, *found}):
        after, before = wanted.get(name), found.get(name)
        if after is None:
            yield Change("extra", what, name, before, None)
        elif before is None:
            yield Change("new", what, name, None, after)
        else:
            same = all(getattr(after, field) == getattr(before, field) for field in _asked(draft))
            yield Change("same" if same else "changed", what, name, before, after)


def _asked(draft: type[RuleDraft | WatchlistDraft]) -> list[str]:
    """What an author writes: `when` says all that `conditions` do, which are one of several ways to say it."""
    return [name for name in draft.model_fields if name != "conditions"]


class Installation(Protocol):
    """Where rules live."""

    async def found(self) -> RuleBook: ...

    async def save(self, change: Change) -> None:
        """Write `change.after` over `change.before`; `VersionConflict` if that is no longer what is there."""
        ...

    async def remove(self, change: Change) -> None: ...

    async def close(self) -> None: ...


async def apply(installation: Installation, planned: Iterable[Change], *, prune: bool) -> None:
    """Carry the changes out; what the files do not have goes only with `prune`, rules before the lists they name."""
    planned = list(planned)
    for change in planned:
        if change.kind in {"new", "changed"}:
            await installation.save(change)
    for change in reversed(planned):
        if prune and change.kind == "extra":
            await installation.remove(change)


class InStore:
    """A store on this machine; a running server notices within seconds."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock

    async def found(self) -> RuleBook:
        snapshot = await self._store.rules()
        return RuleBook({rule.id: rule for rule in snapshot.rules}, {w.id: w for w in await self._store.watchlists()})

    async def save(self, change: Change) -> None:
        now = rfc3339(self._clock.now_ns())
        version = change.before.version + 1 if change.before else 1
        fields = {"version": version, "created_at": now, "updated_at": now}
        if isinstance(change.after, Rule):
            await self._store.save_rule(change.after.model_copy(update=fields), actor="command line")
        elif change.after is not None:
            await self._store.save_watchlist(change.after.model_copy(update=fields), actor="command line")

    async def remove(self, change: Change) -> None:
        if change.what == "rule":
            await self._store.delete_rule(change.id, actor="command line")
        else:
            await self._store.delete_watchlist(change.id, actor="command line")

    async def close(self) -> None:
        await self._store.close()


def _proof() -> dict[str, str]:
    """The header that says who asks, of a server that has accounts."""
    token = os.environ.get("TAPEWATCH_TOKEN", "")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigError("TAPEWATCH_TOKEN does not look like a token: spaces, line ends or other letters are in it")
    return {"Authorization": f"Bearer {token}"} if token else {}


class OnServer:
    """A server's REST; `TAPEWATCH_TOKEN` says who asks."""

    def __init__(self, url: str) -> None:
        try:
            base = httpx.URL(url)
        except httpx.InvalidURL:
            base = httpx.URL()
        if base.userinfo or base.query:  # it would stand in what we say of the server
            raise ConfigError("--url: has a user or a query; TAPEWATCH_TOKEN says who asks")
        if base.scheme not in {"http", "https"} or not base.host:
            raise ConfigError(f"--url: {url!r} is not an address such as http://127.0.0.1:8000")
        self._client = httpx.AsyncClient(base_url=base, timeout=_TIMEOUT_S, trust_env=False, headers=_proof())

    async def found(self) -> RuleBook:
        rules, watchlists = await self._all("rules", Rule), await self._all("watchlists", Watchlist)
        return RuleBook({rule.id: rule for rule in rules}, {watchlist.id: watchlist for watchlist in watchlists})

    async def save(self, change: Change) -> None:
        draft = RuleDraft if change.what == "rule" else WatchlistDraft
        body = {name: getattr(change.after, name) for name in _asked(draft)}
        if change.before is None:
            await self._send("POST", f"{change.what}s", json={**body, "id": change.id})
        else:
            await self._send("PUT", f"{change.what}s/{change.id}", json=body, headers=_if_still(change.before))

    async def remove(self, change: Change) -> None:
        await self._send("DELETE", f"{change.what}s/{change.id}", headers=_if_still(change.before))

    async def explain(self, rule_id: str, symbol: str | None) -> Any:
        """What the last scan made of a rule for a symbol; without one, its near misses."""
        what = "near-misses" if symbol is None else "explain"
        path = f"rules/{quote(rule_id, safe='', errors='replace')}/{what}"
        params = {} if symbol is None else {"symbol": symbol.encode(errors="replace").decode()}
        return _json(await self._send("GET", path, params=params))

    async def close(self) -> None:
        await self._client.aclose()

    async def _all(self, what: str, model: type[D]) -> list[D]:
        items: list[D] = []
        while True:
            answer = await self._send("GET", what, params={"limit": _PAGE, "offset": len(items)})
            page = _json(answer)
            try:
                found = [model(**raw) for raw in page["items"]]
                total = int(page["total"])
            except UNREADABLE:
                raise stranger(answer.url) from None
            items += found
            if len(items) >= total or not found:
                return items

    async def _send(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            answer = await self._client.request(method, f"/api/v1/{path}", **more)
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise Unavailable(f"{self._client.base_url} does not answer: {why}") from None
        if answer.is_success:
            return answer
        raise _refusal(answer, path)


def _if_still(known: Document | None) -> dict[str, str]:
    return {"If-Match": f'"{known.version}"'} if known else {}


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        raise stranger(answer.url) from None


def stranger(url: object) -> TapewatchError:
    """For an answer that cannot be read."""
    return Unavailable(f"{url} answers, but not as a tapewatch of this release does")


def _refusal(answer: httpx.Response, path: str) -> TapewatchError:
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"HTTP {answer.status_code}"
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        return Unauthorized(f"{answer.url.host} has accounts: set TAPEWATCH_TOKEN to a token that is good")
    if answer.status_code == httpx.codes.NOT_FOUND:
        return NotFound(f"{path}: {detail}")
    if answer.status_code in {httpx.codes.CONFLICT, httpx.codes.PRECONDITION_FAILED}:
        return VersionConflict(f"{path}: {detail}")
    return Invalid(path, detail) if answer.is_client_error else Unavailable(f"{path}: {detail}")
