"""The judge: what the oracle makes of the tape, against the database and what each client was told.

Nothing of the system under test is asked: the oracle reads the tape's file, bars and alerts come out of the database
itself, and clients are what they wrote down. A judge that cannot say no is none, so `planted` takes the same evidence,
spoils one thing of it, and must be given the word for that.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from fault_tapes import Tape
from fault_witness import Witness

from tapewatch.adapters.sql import SqlStore
from tapewatch.documents import load_rule_file
from tapewatch.ledger import report
from tapewatch.ledger.asked import asked
from tapewatch.ledger.checker import Kind, Verdict, check
from tapewatch.ledger.expected import Expected
from tapewatch.ledger.oracle import expect
from tapewatch.ledger.witnesses import (
    Client,
    Counts,
    FoundAlert,
    Heard,
    Witnesses,
    stored_alerts,
    stored_bars,
)

_PLANTED_ROW = 0.4
"""Where on the tape the trade stands that is left out."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    expected: Expected
    witnesses: Witnesses
    tape: Tape

    def verdict(self) -> Verdict:
        return check(self.expected, self.witnesses)

    def told(self) -> str:
        """The report, for people."""
        return "\n".join(report.lines(self.verdict()))

    def planted(self) -> Iterator[tuple[str, Kind, Verdict]]:
        """What was spoiled, the word that must be said of it, and the verdict."""
        seen, alerts = self.witnesses, list(self.witnesses.alerts or ())
        without = replace(seen, alerts=[*alerts[: len(alerts) // 2], *alerts[len(alerts) // 2 + 1 :]])
        yield "an alert is not in history", "lost", check(self.expected, without)
        yield (
            "history has an alert twice",
            "duplicate",
            check(self.expected, replace(seen, alerts=[*alerts, alerts[0]])),
        )
        strange = alerts[0]._replace(symbol="NEVER", alert_id="0" * 32)
        yield "an alert was made up", "false", check(self.expected, replace(seen, alerts=[*alerts, strange]))
        bars = list(seen.bars or ())
        bars[len(bars) // 2] = bars[len(bars) // 2]._replace(bar=bars[len(bars) // 2].bar._replace(close=0.01))
        yield "a bar is wrong", "value-mismatch", check(self.expected, replace(seen, bars=bars))
        first, *others = seen.clients
        shown = list(first.application)
        again = replace(first, application=[*shown, shown[-1]])
        yield "a client is told twice", "duplicate", check(self.expected, replace(seen, clients=[again, *others]))
        less = replace(first, application=shown[:-1])
        yield "a client is not told", "lost", check(self.expected, replace(seen, clients=[less, *others]))
        yield "a trade is not on the tape", "value-mismatch", check(_expected_without_a_trade(self.tape), seen)


def evidence(tape: Tape, database: str, witnesses: Sequence[Witness], *, counts: Counts | None = None) -> Evidence:
    """What the database at that URL and the clients say."""
    expected = expected_of(tape)
    bars, alerts = asyncio.run(_stored(database, expected))
    clients = [client_of(witness) for witness in witnesses]
    found = Witnesses(bars=bars, alerts=alerts, clients=clients, counts=counts)
    return Evidence(expected=expected, witnesses=found, tape=tape)


@cache
def expected_of(tape: Tape) -> Expected:
    return _expected(tape.path, tape)


@cache
def _expected_without_a_trade(tape: Tape) -> Expected:
    """Of the same tape, but for one plain trade of the most traded symbol."""
    table = pq.read_table(tape.path)
    rows = table.select(["symbol", "size", "correction"]).to_pylist()
    plain = [
        place
        for place, row in enumerate(rows)
        if row["symbol"] == tape.symbols[0] and row["size"] >= 100 and row["correction"] == "00"
    ]
    place = plain[round(len(plain) * _PLANTED_ROW)]
    less = table.take([n for n in range(len(rows)) if n != place])
    path = tape.path.with_name("less.parquet")
    pq.write_table(less, path)
    return _expected(path, tape)


def _expected(path: Path, tape: Tape) -> Expected:
    rules, _ = load_rule_file(tape.rules.read_bytes(), where=tape.rules.name)
    return expect([path], [asked(rule) for rule in rules])


async def _stored(database: str, expected: Expected) -> tuple[list[Any], list[FoundAlert]]:
    store = SqlStore(database)
    try:
        start_ns, end_ns = expected.began_ns // 60_000_000_000 * 60_000_000_000, expected.ended_ns + 1
        bars = await stored_bars(store, sorted(expected.symbols), start_ns=start_ns, end_ns=end_ns)
        return bars, await stored_alerts(store, start_ns=0, end_ns=2**62)
    finally:
        await store.close()


# -- clients ----------------------------------------------------------------------------------------------------------


def client_of(witness: Witness) -> Client:
    raw: list[Heard] = []
    connection = 0
    for line in witness.frames():
        frame = json.loads(line["frame"])
        connection += frame["type"] == "welcome"
        if frame["type"] == "alert":
            raw.append(Heard(_found(frame["data"]), line["at_ns"], connection))
    return Client(name=witness.program.name, raw=raw, application=[_found(alert) for alert in witness.alerts()])


def resumes_of(witness: Witness) -> list[str]:
    """Of each time that the server took the client back, where what it had missed came from."""
    frames = (json.loads(line["frame"]) for line in witness.frames())
    return [str(frame["data"]["recovered"]) for frame in frames if frame["type"] == "resumed"]


def _found(alert: dict[str, Any]) -> FoundAlert:
    return FoundAlert(
        alert["alert_id"],
        alert["rule_id"],
        alert["rule_version"],
        alert["symbol"],
        _ns(alert["fired_at"]),
        float(alert["price"]),
    )


def _ns(text: str) -> int:
    """Of a time with nanoseconds, such as ``2025-03-03T14:31:00.000000000Z``."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(f"{whole}+00:00").timestamp()) * 1_000_000_000 + int(fraction.ljust(9, "0") or 0)
