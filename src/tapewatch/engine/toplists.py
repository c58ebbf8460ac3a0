"""Ranked lists: sortings of the board. System lists are the same for everybody; users' lists have conditions of their
own, asked as rules ask them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from tapewatch.engine.board import BoardRows
from tapewatch.engine.columns import F64, I64, Bool
from tapewatch.engine.rules.questions import LONG_AGO, Question, Questions, Scene
from tapewatch.engine.rules.tree import Condition, operands

STALE_PRICE_S = 60.0
"""A symbol that has set no price for so long is stale."""
MARKS = ("price_age", "halted")
"""The rows that say which symbols are stale, and which are halted."""
_SHARED_END = 3
"""How much longer than a list the end of a metric is that is sorted for all lists which rank by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Toplist:
    """A system list: every symbol whose `metric` is known, in order of it."""

    id: str
    title: str
    metric: str
    window: str
    descending: bool = True

    @property
    def key(self) -> str:
        """Where the ranking stands in hot state, such as ``toplist:change_pct:5m``.

        A list in ascending order shares the ranking of its descending twin: it is the same order read from the end.
        """
        return f"toplist:{self.metric.removesuffix(f'_{self.window}')}:{self.window}"


_WINDOWS = ("1m", "5m", "15m", "1h", "day")


def _system() -> list[Toplist]:
    lists: list[Toplist] = []
    for window in _WINDOWS:
        change = f"change_pct_{window}"
        lists += [
            Toplist(id=f"gainers_{window}", title=f"Gainers {window}", metric=change, window=window),
            Toplist(id=f"losers_{window}", title=f"Losers {window}", metric=change, window=window, descending=False),
            Toplist(id=f"volume_{window}", title=f"Volume {window}", metric=f"volume_{window}", window=window),
        ]
    lists += [
        Toplist(id=f"relative_volume_{w}", title=f"Relative volume {w}", metric=f"relative_volume_{w}", window=w)
        for w in ("1m", "5m", "15m", "1h")
    ]
    for w in _WINDOWS:
        suffix = "" if w == "1m" else f"_{w}"
        lists += _ends(("rsi_high", "RSI 14 highest"), ("rsi_low", "RSI 14 lowest"), suffix, f"rsi_14_{w}", w)
    above, below = ("vwap_above", "Furthest above VWAP"), ("vwap_below", "Furthest below VWAP")
    lists += _ends(above, below, "", "vwap_distance_pct", "session")
    for w in _WINDOWS:
        lists += _ends(above, below, f"_{w}", f"vwap_{w}_distance_pct", w)
    return lists


def _ends(top: tuple[str, str], bottom: tuple[str, str], suffix: str, metric: str, window: str) -> list[Toplist]:
    """The two ends of a ranking, each with the beginning of its id and of its title."""
    return [
        Toplist(
            id=f"{name}{suffix}",
            title=f"{title}{suffix.replace('_', ' ')}",
            metric=metric,
            window=window,
            descending=descending,
        )
        for (name, title), descending in ((top, True), (bottom, False))
    ]


SYSTEM_TOPLISTS: dict[str, Toplist] = {toplist.id: toplist for toplist in _system()}


def system_toplist(toplist_id: str) -> Toplist | None:
    """By its id, in which ``1d`` is another word for ``day`` and ``_1m`` may stand where only one window is meant."""
    spelt = toplist_id.removesuffix("_1d") + "_day" if toplist_id.endswith("_1d") else toplist_id
    spelt = {"rsi_high_1m": "rsi_high", "rsi_low_1m": "rsi_low"}.get(spelt, spelt)
    return SYSTEM_TOPLISTS.get(spelt)


def rank(values: F64, *, descending: bool, limit: int, offset: int = 0) -> I64:
    """Indices of `values` (shape (n,)) from place `offset` on, `limit` at most; unknown is left out, ties by index."""
    known = np.flatnonzero(~np.isnan(values))
    keys = values[known]
    return _first(known, -keys if descending else keys, limit=offset + limit)[offset:]


def _first(candidates: I64, keys: F64, *, limit: int) -> I64:
    """Of `candidates`, which ascend, the `limit` with the smallest keys, in order of these and then of themselves."""
    if limit < len(candidates):
        # Everything up to the last wanted value, ties included, so that the stable sort below settles them by index.
        edge = np.partition(keys, limit - 1)[limit - 1]
        near = keys <= edge
        candidates, keys = candidates[near], keys[near]
    return candidates[np.argsort(keys, kind="stable")][:limit]


# -- users' lists -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedBy:
    """What a user's list ranks: the symbols for which `where` is true (None: all) and `metric` is known."""

    metric: str
    descending: bool = True
    where: Condition | None = None
    """Nothing in it remembers."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The rows of the board that it needs."""
        return tuple(dict.fromkeys((self.metric, *(operand.name for operand in operands(self.where)))))


class Ranking(NamedTuple):
    symbols: I64
    """Indices on the board, the first place first."""
    total: int
    """Symbols that the list holds, with those that were not asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What conditions ask for beside the board."""

    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By attribute (exchange, type, sector): what each symbol is; a symbol that is missing is unknown."""
    watchlists: Mapping[str, frozenset[str]] = field(default_factory=dict)


class UserRankings:
    """Many lists over one board after the other. Equal conditions are asked once a board, equal lists ranked once, and
    the ends of a metric by which several lists rank are sorted once.
    """

    def __init__(self, lists: Sequence[RankedBy], surroundings: Surroundings | None = None) -> None:
        self._around = surroundings or Surroundings()
        different = {one: place for place, one in enumerate(dict.fromkeys(lists))}
        self._places = [different[one] for one in lists]
        self._reads = frozenset(name for one in different for name in one.reads)
        questions = Questions()
        asked = {one.where: questions.of(one.where, 0) for one in different if one.where is not None}
        if questions.remembering:
            raise ValueError("a toplist cannot remember")
        numbers = {condition: number for number, condition in enumerate(asked)}
        self._asked: list[Question] = list(asked.values())
        self._groups: dict[tuple[str, bool], list[tuple[int, int | None]]] = {}
        """Of one metric in one order: the places of different lists, and the numbers of what they ask."""
        for one, place in different.items():
            asks = None if one.where is None else numbers[one.where]
            self._groups.setdefault((one.metric, one.descending), []).append((place, asks))
        self._labels: dict[str, list[str]] = {}
        self._symbols: tuple[str, ...] | None = None
        self._version = 0
        self._scans = 0

    def rank(self, board: BoardRows, *, limit: int) -> list[Ranking]:
        """Of each list, in their order, the first `limit`; ties by index. A row that the board lacks is unknown."""
        scene = self._scene(board)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            masks = [question(scene).true for question in self._asked]
        found: dict[int, Ranking] = {}
        for (metric, descending), lists in self._groups.items():
            values = scene.row(metric)
            known = ~np.isnan(values)
            keys = -values if descending else values
            end = np.zeros(0, np.intp)
            if len(lists) > 1:
                candidates = np.flatnonzero(known)
                end = _first(candidates, keys[candidates], limit=_SHARED_END * limit)
            for place, asks in lists:
                mask = known if asks is None else known & masks[asks]
                total = int(np.count_nonzero(mask))
                through = end[mask[end]]
                if len(through) < min(limit, total):
                    candidates = np.flatnonzero(mask)
                    through = _first(candidates, keys[candidates], limit=limit)
                found[place] = Ranking(through[:limit], total)
        return [found[place] for place in self._places]

    def _scene(self, board: BoardRows) -> Scene:
        if self._symbols is not board.symbols and self._symbols != board.symbols:
            self._version += 1
            self._labels = {
                name: [texts.get(symbol, "") for symbol in board.symbols] for name, texts in self._around.labels.items()
            }
        self._symbols = board.symbols
        row_of = {name: row for row, name in enumerate(board.metrics)}
        values = board.values
        missing = self._reads - row_of.keys()
        if missing:
            values = np.vstack([values, np.full((1, values.shape[1]), np.nan)])
            row_of |= dict.fromkeys(missing, len(board.metrics))
        self._scans += 1
        return Scene(
            number=self._scans,
            values=values,
            row_of=row_of,
            now_ns=board.ts_ns,
            symbols=board.symbols,
            session=board.session,
            labels=self._labels,
            labels_version=self._version,
            watchlists=self._around.watchlists,
            made_ns=LONG_AGO,
            before_ns=LONG_AGO,
        )


def marks(price_age_s: F64, halted: F64, *, covered: bool) -> tuple[Bool, Bool]:
    """Which symbols are stale, and which are halted. While no trades arrive all are stale; what is unknown is not."""
    stale = price_age_s > STALE_PRICE_S if covered else np.ones(len(price_age_s), np.bool_)
    return stale, halted > 0.0


# -- what happened in a list ------------------------------------------------------------------------------------------

EventKind: TypeAlias = Literal["entered", "left", "jumped"]


class ListEvent(NamedTuple):
    kind: EventKind
    symbol: str
    rank: int | None
    """From 1; None for one that left."""
    before: int | None
    """None for one that entered."""


def list_events(before: Sequence[str], after: Sequence[str], *, jump_ranks: int) -> list[ListEvent]:
    """What became of a list between two rankings: those that entered and jumped (by `jump_ranks` places or more, up or
    down) in their order now, then those that left in their order before.
    """
    was = {symbol: place for place, symbol in enumerate(before, start=1)}
    now = {symbol: place for place, symbol in enumerate(after, start=1)}
    events: list[ListEvent] = []
    for symbol, place in now.items():
        old = was.get(symbol)
        if old is None:
            events.append(ListEvent("entered", symbol, place, None))
        elif abs(old - place) >= jump_ranks:
            events.append(ListEvent("jumped", symbol, place, old))
    return events + [ListEvent("left", symbol, None, old) for symbol, old in was.items() if symbol not in now]
