"""A small market whose tape the oracle and the engine both read, and a pipeline that can be broken on purpose."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tapewatch.documents import Rule, load_rule_file, ruleset
from tapewatch.eligibility import load_profile
from tapewatch.engine.bars import LATENESS_NS, BarBuilder
from tapewatch.engine.columns import Bars, Batch, Kind, make_batch
from tapewatch.engine.rules import Match
from tapewatch.engine.scanner import Scanner
from tapewatch.ledger.asked import asked, listed
from tapewatch.ledger.booking import Bar
from tapewatch.ledger.conditions import read_eligibility
from tapewatch.ledger.days import MINUTE, SECOND, days_around
from tapewatch.ledger.expected import Expected
from tapewatch.ledger.oracle import Oracle
from tapewatch.ledger.tape import PULSE, Item, Mark, Row
from tapewatch.ledger.witnesses import Client, FoundAlert, FoundBar, Heard, Witnesses
from tapewatch.nyse import day_of, trading_days

OPEN_NS = day_of("2025-03-03")[1]
_KINDS = {"trade": Kind.TRADE, "cancel": Kind.CANCEL, "correction": Kind.CORRECTION}

MARKET_RULES = """
rule above-ten when price > 10.05
rule busy when volume_1m > 900 cooldown 2m
rule break when price crosses_above high_1m[1]
rule high-of-day when price > high_day_before cooldown 1m
rule steady when price > vwap_session for 20s
"""


def marked(rows: Iterable[Row], *, end: bool = True) -> list[Item]:
    """Rows with a mark wherever time passes a tenth of a second, as a feed places them."""
    items: list[Item] = []
    now = -1
    for row in rows:
        if row.ts_ns // PULSE > now // PULSE:
            items.append(Mark(row.ts_ns // PULSE * PULSE))
        now = max(now, row.ts_ns)
        items.append(row)
    if end and now >= 0:
        items.append(Mark((now // MINUTE + 2) * MINUTE))
    return items


def batches(items: Sequence[Item], *, each: int = 50) -> list[Batch]:
    """The same tape in columns, so many items a batch."""
    return [_batch(items[at : at + each]) for at in range(0, len(items), each)]


def _batch(items: Sequence[Item]) -> Batch:
    rows = [item for item in items if isinstance(item, Row)]
    symbols = tuple(dict.fromkeys(row.symbol for row in rows))
    conditions = tuple(dict.fromkeys(row.conditions for row in rows)) or ("",)
    marks_row: list[int] = []
    marks_ns: list[int] = []
    before = 0
    for item in items:
        if isinstance(item, Mark):
            marks_row.append(before)
            marks_ns.append(item.ns)
        else:
            before += 1
    return make_batch(
        symbols=symbols,
        conditions=conditions,
        symbol=[symbols.index(row.symbol) for row in rows],
        condition=[conditions.index(row.conditions) for row in rows],
        kind=[_KINDS[row.kind] for row in rows],
        ts_ns=[row.ts_ns for row in rows],
        price=[row.price for row in rows],
        size=[row.size for row in rows],
        tape=[ord(row.tape) if row.tape else 0 for row in rows],
        exchange=[ord(row.exchange) if row.exchange else 0 for row in rows],
        trade_id=[row.trade_id for row in rows],
        marks_row=marks_row,
        marks_ns=marks_ns,
    )


def found_bars(parts: Iterable[Bars]) -> list[FoundBar]:
    """Every bar of these parts, in their order."""
    found = []
    for bars in parts:
        columns = zip(*(getattr(bars, name).tolist() for name in Bar._fields), strict=True)
        symbols = (bars.symbols[code] for code in bars.symbol.tolist())
        found += [FoundBar(s, ns, Bar(*row)) for s, ns, row in zip(symbols, bars.ts_ns.tolist(), columns, strict=True)]
    return found


def kept(published: Iterable[FoundBar], *, guarded: bool = True) -> list[FoundBar]:
    """What a store keeps of it; `guarded`: a lower revision never replaces a higher one."""
    store: dict[tuple[str, int], FoundBar] = {}
    for bar in published:
        before = store.get((bar.symbol, bar.ts_ns))
        if before is None or not guarded or bar.bar.revision >= before.bar.revision:
            store[bar.symbol, bar.ts_ns] = bar
    return [bar for bar in store.values() if bar.bar.close == bar.bar.close]


def found_alert(match: Match) -> FoundAlert:
    return FoundAlert(
        match.alert_id, match.rule.id, match.rule.version, match.symbol, match.fired_at_ns, float(match.price)
    )


@dataclass
class Pipeline:
    """Bars and alerts as the product makes them of batches, with the places where it can be broken."""

    rules: list[Rule]
    lateness_ns: int = LATENESS_NS
    scan_interval_ns: int = SECOND
    published: list[FoundBar] = field(default_factory=list)
    alerts: list[FoundAlert] = field(default_factory=list)

    def builder(self) -> BarBuilder:
        return BarBuilder(days=trading_days(), profile=load_profile("alpaca"), lateness_ns=self.lateness_ns)

    def scanner(self) -> Scanner:
        scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"), scan_interval_ns=self.scan_interval_ns)
        scanner.apply(ruleset(1, self.rules))
        return scanner

    def make_bars(self, parts: Iterable[Batch], builder: BarBuilder | None = None) -> None:
        builder = builder or self.builder()
        self.published += found_bars(builder.step(batch) for batch in parts)

    def scan(
        self,
        parts: Sequence[Batch],
        scanner: Scanner | None = None,
        *,
        between: Callable[[int, Scanner], Any] | None = None,
    ) -> None:
        """`between` is called before each batch with its number, and may do harm."""
        scanner = scanner or self.scanner()
        for number, batch in enumerate(parts):
            if between is not None:
                scanner = between(number, scanner) or scanner
            self.alerts += map(found_alert, scanner.step(batch).matches)

    def witnesses(self, *, guarded: bool = True) -> Witnesses:
        """A store that keeps each alert id once, and two clients that heard all of it."""
        history = list({alert.alert_id: alert for alert in reversed(self.alerts)}.values())[::-1]
        clients = [
            Client(name=name, raw=[Heard(alert) for alert in history], application=history) for name in ("k", "l")
        ]
        return Witnesses(
            bars=kept(self.published, guarded=guarded), published=self.published, alerts=history, clients=clients
        )


@dataclass
class Market:
    """Seven minutes from the open: six stocks that trade all the time, a quiet one, and what makes bars hard."""

    rows: list[Row]
    rules: list[Rule]

    @property
    def items(self) -> list[Item]:
        return marked(self.rows)

    def batches(self, items: Sequence[Item] | None = None) -> list[Batch]:
        return batches(self.items if items is None else items)

    def pipeline(self, **settings: Any) -> Pipeline:
        return Pipeline(self.rules, **settings)

    def expected(self, items: Iterable[Item] | None = None, rules: Iterable[Rule] | None = None) -> Expected:
        oracle = Oracle(
            [asked(rule) for rule in (self.rules if rules is None else rules)],
            days=days_around(OPEN_NS, OPEN_NS),
            eligibility=read_eligibility("alpaca"),
            watchlists=listed([]),
            amendable=True,
        )
        oracle.take(self.items if items is None else items)
        return oracle.expected()

    def run(self) -> Pipeline:
        """The correct one."""
        pipeline = self.pipeline()
        pipeline.make_bars(self.batches())
        pipeline.scan(self.batches())
        return pipeline


STOCKS = ("AAA", "BBB", "CCC", "DDD", "EEE", "FFF")


def made_rows() -> list[Row]:
    dice = random.Random(7)
    price = dict.fromkeys(STOCKS, 10.0)
    rows: list[Row] = []
    number = 0
    for tenth in range(4_200):
        ns = OPEN_NS + tenth * PULSE + dice.randrange(PULSE)
        for symbol in STOCKS:
            if dice.random() > 0.06:
                continue
            number += 1
            price[symbol] = round(max(1.0, price[symbol] + dice.choice((-0.02, -0.01, 0, 0.01, 0.02))), 2)
            size, conditions = float(dice.choice((100, 100, 200))), "@"
            shown = price[symbol]
            if dice.random() < 0.1:
                size, conditions, shown = float(dice.randrange(1, 100)), "@ I", shown + 0.5
            elif dice.random() < 0.05:
                shown += 0.005  # between two cents, as midpoint prints are
            rows.append(Row(symbol, ns, shown, size, conditions, "C", "Q", number))
    rows += [Row("QUIET", OPEN_NS + 20 * SECOND, 7.0, 500.0, "@", "C", "Q", 900_001)]
    # Two prints of one instant, of which the later arrival is the close.
    rows += [
        Row("AAA", OPEN_NS + MINUTE - 1, 10.4 + cents / 100, 100.0, "@", "C", "Q", 900_010 + cents) for cents in (1, 2)
    ]
    # A minute's last print that comes when the minute is over, but has not closed.
    rows.sort(key=lambda row: row.ts_ns)
    _insert(rows, OPEN_NS + 181 * SECOND, Row("BBB", OPEN_NS + 179 * SECOND, 9.0, 100.0, "@", "C", "Q", 900_020))
    # Prints that come when it has closed.
    for second, symbol in ((200, "CCC"), (260, "DDD")):
        late = Row(symbol, OPEN_NS + (second - 90) * SECOND, 12.0, 300.0, "@", "C", "Q", 900_030 + second)
        _insert(rows, OPEN_NS + second * SECOND, late)
    # A print that is cancelled, and one that is corrected.
    wrong = Row("EEE", OPEN_NS + 130 * SECOND, 15.0, 100.0, "@", "C", "Q", 900_040)
    _insert(rows, wrong.ts_ns, wrong)
    _insert(rows, OPEN_NS + 215 * SECOND, wrong._replace(ts_ns=OPEN_NS + 215 * SECOND, kind="cancel"))
    typo = Row("FFF", OPEN_NS + 245 * SECOND, 16.0, 100.0, "@", "C", "Q", 900_050)
    _insert(rows, typo.ts_ns, typo)
    right = typo._replace(ts_ns=OPEN_NS + 250 * SECOND, price=10.6, kind="correction")
    _insert(rows, right.ts_ns, right)
    return rows


def _insert(rows: list[Row], at_ns: int, row: Row) -> None:
    """Where it arrives."""
    place = next(i for i, other in enumerate(rows) if other.ts_ns >= at_ns and other.kind == "trade")
    rows.insert(place, row)


@pytest.fixture(scope="session")
def market() -> Market:
    rules, _ = load_rule_file(MARKET_RULES, where="market.rules")
    return Market(made_rows(), [rule for rule in rules if rule.id != "high-of-day"])


@pytest.fixture(scope="session")
def correct(market: Market) -> tuple[Expected, Pipeline]:
    """What must exist, and a run that has it."""
    return market.expected(), market.run()


@pytest.fixture
def as_marked() -> Callable[..., list[Item]]:
    return marked


@pytest.fixture
def as_batches() -> Callable[..., list[Batch]]:
    return batches


@pytest.fixture
def open_ns() -> int:
    return OPEN_NS


@pytest.fixture
def write_tape(tmp_path: Path) -> Callable[..., Path]:
    """Rows as a tape file."""

    def write(rows: Sequence[Any], name: str = "tape.parquet", **more: Sequence[Any]) -> Path:
        fields = ("symbol", "ts_ns", "price", "size", "conditions", "exchange", "tape")
        columns = {field: [getattr(row, field) for row in rows] for field in fields}
        if any(row.trade_id for row in rows):
            columns["trade_id"] = [row.trade_id for row in rows]
        path = tmp_path / name
        pq.write_table(pa.table({**columns, **more}), path)
        return path

    return write
