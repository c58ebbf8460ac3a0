"""What witnesses say: the store, whoever published bars, and clients."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tapewatch.documents import Alert
from tapewatch.ledger.booking import Bar
from tapewatch.ports import AlertQuery, Store

_BARS_AT_ONCE = 10_000
_ALERTS_AT_ONCE = 1_000


class FoundBar(NamedTuple):
    symbol: str
    ts_ns: int
    bar: Bar


class FoundAlert(NamedTuple):
    alert_id: str
    rule_id: str
    rule_version: int
    symbol: str
    fired_at_ns: int
    price: float

    @classmethod
    def of(cls, alert: Alert) -> "FoundAlert":
        return cls(
            alert.alert_id, alert.rule_id, alert.rule_version, alert.symbol, alert.fired_at_ns, float(alert.price)
        )


class Heard(NamedTuple):
    """An alert's frame as it came over a socket."""

    alert: FoundAlert
    received_ns: int = 0
    connection: int = 0
    """The client's so many-th connection."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """What one client received, and what its application was shown; notes that were added to an alert later are left
    out of both.
    """

    name: str
    raw: Sequence[Heard]
    application: Sequence[FoundAlert]
    wants: Callable[[str, str], bool] = lambda _rule_id, _symbol: True
    """Whether it should hear alerts of this rule and symbol."""


class Stretch(NamedTuple):
    """A declared gap: trades with times in [start_ns, end_ns) may be missing."""

    start_ns: int
    end_ns: int


class Counts(NamedTuple):
    """What a system says of the rows it was sent."""

    accepted: int
    rejected: int
    duplicates: int
    declared_lost: int = 0


@dataclass(frozen=True, kw_only=True)
class Witnesses:
    """None: nobody was asked."""

    bars: Sequence[FoundBar] | None = None
    """As the store holds them."""
    published: Sequence[FoundBar] = ()
    """Every revision, in the order of publication; one without a close was withdrawn."""
    alerts: Sequence[FoundAlert] | None = None
    """The history in the store."""
    clients: Sequence[Client] = ()
    gaps: Sequence[Stretch] = ()
    """What was declared."""
    counts: Counts | None = None
    other_rules: frozenset[tuple[str, int]] = frozenset()
    """Ids and versions of further rules that may have alerts."""


async def stored_bars(
    store: Store,
    symbols: Iterable[str],
    *,
    start_ns: int,
    end_ns: int,
    on_progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[FoundBar]:
    """The bars of these symbols that start in [start_ns, end_ns)."""
    found: list[FoundBar] = []
    names = list(symbols)
    for done, symbol in enumerate(names, start=1):
        before_ns = end_ns
        while True:
            bars = await store.bars(symbol, start_ns=start_ns, end_ns=before_ns, limit=_BARS_AT_ONCE)
            columns = [getattr(bars, name) for name in Bar._fields]
            rows = zip(*(column.tolist() for column in columns), strict=True)
            found += (FoundBar(symbol, ts_ns, Bar(*row)) for ts_ns, row in zip(bars.ts_ns.tolist(), rows, strict=True))
            if len(bars) < _BARS_AT_ONCE:
                break
            before_ns = int(bars.ts_ns[0])
        on_progress(done, len(names))
    return found


async def stored_alerts(store: Store, *, start_ns: int, end_ns: int) -> list[FoundAlert]:
    """The alerts that fired in [start_ns, end_ns), oldest first."""
    found: list[FoundAlert] = []
    before: tuple[int, str] | None = None
    while True:
        query = AlertQuery(since_ns=start_ns, until_ns=end_ns, before=before, limit=_ALERTS_AT_ONCE)
        page = await store.alerts(query)
        found += map(FoundAlert.of, page)
        if len(page) < _ALERTS_AT_ONCE:
            return found[::-1]
        before = page[-1].fired_at_ns, page[-1].alert_id
