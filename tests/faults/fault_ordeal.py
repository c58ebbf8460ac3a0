"""One run: a tape through the whole system, faults one after the other, and a verdict at the end.

A fault begins when the one before is recovered from, or had its time. At the end the run prints how long each recovery
took, by sign, and the oracle's report:

    tape     the tape goes on
    owners   each partition of each role has an owner
    readers  each reader has handled what came within a second of the fault's end; this sign takes a second at least
    client   the next alert at every client
    store    an alert that came to a client since is in history, as the API tells it
    ready    every process says so
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fault_judge import Evidence, evidence, expected_of, resumes_of
from fault_nemesis import Appointment, Fault, Nemesis, Sign, Suffered, all_ready, next_alert
from fault_processes import until
from fault_redis import RedisNode, SentinelSet
from fault_system import System, system
from fault_tapes import Tape
from fault_watch import WRITES, Stretch, Watch
from fault_witness import Witness

from tapewatch.adapters.redis import RedisBus
from tapewatch.engine.columns import Batch
from tapewatch.ledger.witnesses import Counts
from tapewatch.ports import Alerts, Entry

PARTITIONS = 4
SERVED_S = 5.0
"""A partition that moves is served again within this."""
WITHIN_S = 45.0
"""Every sign of recovery comes within this, on a machine that does other things too."""
_READY_EACH_S = 0.5
_BEGIN_S, _PLAYED_S = 120.0, 180.0
_FIRST_ALERTS = 15
_HURRY = 600.0
"""Speed of what is left of the tape when the faults are over."""


class Ordeal:
    """What a test of a run holds in its hands."""

    def __init__(self, running: System, watch: Watch, *, name: str) -> None:
        self.running, self.watch = running, watch
        self.cluster = running.cluster
        self._name = name
        signs: dict[str, Sign] = {
            **watch.signs(),
            "client": every([next_alert(witness) for witness in running.witnesses]),
            "store": seldom(self._is_stored),
            "ready": seldom(all_ready(running.cluster)),
        }
        self._nemesis = Nemesis(
            seed=0,
            faults=[],
            signs=signs,
            log=running.folder / "nemesis.ndjson",
            cluster=running.cluster,
            patience_s=WITHIN_S,
        )
        self.handed_over: dict[str, list[Stretch]] = {}
        """By fault."""
        self.times_ns: dict[str, tuple[int, int]] = {}
        """By fault, when it began and when it was recovered from."""
        self._began_ns = self._over_ns = time.time_ns()

    @property
    def suffered(self) -> list[Suffered]:
        return self._nemesis.suffered

    @property
    def witness(self) -> Witness:
        return self.running.witnesses[0]

    def suffer(self, *faults: Fault, pause_s: float = 0.5) -> None:
        """One after the other, each for the shortest time that it lasts."""
        for fault in faults:
            feed = self.running.tape
            assert not self._tape_is_over(), f"the tape of {feed.rows} rows was over before: {fault.name}"
            began_ns = time.time_ns() + round(pause_s * 1e9)
            self._nemesis.run([Appointment(fault=fault, at_s=pause_s, hold_s=fault.hold_s[0])])
            self.times_ns[fault.name] = began_ns, time.time_ns()
            self.handed_over[fault.name] = self.watch.handed_over(began_ns)

    def finish(self) -> Evidence:
        """Play what is left of the tape, fast, and collect what everybody says."""
        self._over_ns = time.time_ns()
        if not self._tape_is_over():
            self.running.hurry(_HURRY)
        self.running.wait_played(within_s=_PLAYED_S)
        tape, expected = self.running.tape, expected_of(self.running.tape)
        rows = asyncio.run(rows_on_tape(self.running.node.url))
        # What is too late stands on the tape, and is refused by those who make bars.
        accepted = rows - expected.rejected["too_late"]
        counts = Counts(accepted, expected.counts["rejected"], expected.counts["duplicates"])
        return evidence(tape, self.running.database, self.running.witnesses, counts=counts)

    def judge(self) -> Evidence:
        """The verdict: nothing is wrong, and the judge would have said so."""
        found = self.finish()
        verdict = found.verdict()
        print(self.report())  # noqa: T201  # figures, for those who run with -s or look at a failure
        print(found.told())  # noqa: T201  # the same
        assert verdict.bars > 1_000
        assert verdict.alerts > 150
        assert not verdict.unchecked
        assert verdict.identity is not None and verdict.identity.balanced  # noqa: PT018  # of what is there
        assert all(len(client.raw) >= verdict.alerts for client in found.witnesses.clients)
        assert verdict.ok, found.told()
        assert all(witness.losses() == [] for witness in self.running.witnesses)
        for what, word, spoiled in found.planted():
            assert word in spoiled.counts, f"{what}: the verdict is {dict(spoiled.counts)}"
        late = [(one.fault, one.recovered_s) for one in self.suffered if None in one.recovered_s.values()]
        assert not late, f"not recovered within {WITHIN_S:g} s: {late}"
        return found

    def report(self) -> str:
        """A line for each fault, and the longest times without an owner."""
        signs = list(self.suffered[0].recovered_s) if self.suffered else []
        lines = [f"{self._name}: {len(self.suffered)} faults", _row(["fault", "lasted", *signs, "new owner"])]
        for one in self.suffered:
            moved = self.handed_over.get(one.fault, [])
            times = [one.recovered_s[sign] for sign in signs]
            cells = [one.fault, f"{one.ended_s - one.began_s:.1f}", *(_seconds(time_s) for time_s in times)]
            lines.append(_row([*cells, str(moved[-1]) if moved else "-"]))
        resumes = {witness.program.name: resumes_of(witness) for witness in self.running.witnesses}
        took_s, rest_s = (self._over_ns - self._began_ns) / 1e9, (time.time_ns() - self._over_ns) / 1e9
        while_ = {"since_ns": self._began_ns, "until_ns": self._over_ns}
        lines += [
            f"longest without an owner: {self.watch.longest_unowned(**while_)}",
            *(f"longest silence of {role}: {self.watch.longest_silence(role, **while_)}" for role in WRITES),
            f"faults took {took_s:.0f} s, the rest {rest_s:.0f} s",
            f"clients were taken back: {resumes}",
            f"processes started again by the supervisor: {self.cluster.restarts}",
        ]
        return "\n".join(lines)

    def _is_stored(self, ended_ns: int) -> bool:
        came = [event for event in self.witness.events() if event["kind"] == "alert" and event["at_ns"] > ended_ns]
        return bool(came) and came[0]["data"]["alert_id"] in self.running.newest_ids()

    def _tape_is_over(self) -> bool:
        return (self.running.status().get("feed") or {}).get("state") == "ended"


@contextmanager
def ordeal(
    folder: Path,
    *,
    name: str,
    tape: Tape,
    database: str,
    workers: Mapping[str, int],
    witnesses: int = 2,
    redis: RedisNode | SentinelSet | None = None,
    before: Callable[[System], None] = lambda _running: None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Ordeal]:
    """The tape plays, and clients have their first alerts. `before` is called when the servers run and no role does."""
    with system(
        folder, tape=tape, database=database, partitions=PARTITIONS, workers=workers, redis=redis, env=env
    ) as running:
        before(running)
        with Watch(server=lambda: running.node, partitions=PARTITIONS) as watch:
            running.begin(witnesses=witnesses, within_s=_BEGIN_S)
            ordeal_ = Ordeal(running, watch, name=name)
            until(
                lambda: all(len(witness.ids()) >= _FIRST_ALERTS for witness in running.witnesses),
                f"clients have their first {_FIRST_ALERTS} alerts",
                within_s=_BEGIN_S,
            )
            yield ordeal_


def alerts_between(witness: Witness, since_ns: int, until_ns: int) -> int:
    """How many alerts came to it, by the wall clock."""
    return sum(event["kind"] == "alert" and since_ns <= event["at_ns"] < until_ns for event in witness.events())


async def entries_of(url: str, topic: str) -> list[tuple[str, Entry]]:
    """What the streams of a topic hold, one partition after the other."""
    bus = RedisBus(url)
    found: list[tuple[str, Entry]] = []
    try:
        for stream in (f"{topic}:{p}" for p in range(PARTITIONS)):
            end = await bus.tail(stream)
            if end is not None:
                async for position, entry in bus.read(stream):
                    found.append((stream, entry))
                    if position == end:
                        break
    finally:
        await bus.close()
    return found


async def rows_on_tape(url: str) -> int:
    """Trades in all batches of ticks; a batch that stands there twice, which its arrival tells, counts once."""
    batches = [(stream, entry) for stream, entry in await entries_of(url, "ticks") if isinstance(entry, Batch)]
    return sum({(stream, batch.received_ns): len(batch) for stream, batch in batches}.values())


async def repeated_alerts(url: str, topic: str) -> int:
    """How many alerts stand on the streams of that topic more than once, notes left out."""
    entries = [entry for _, entry in await entries_of(url, topic) if isinstance(entry, Alerts)]
    told = Counter(alert.alert_id for entry in entries for alert in entry.alerts if not alert.note)
    return sum(count > 1 for count in told.values())


def every(signs: Sequence[Sign]) -> Sign:
    return lambda ended_ns: all(sign(ended_ns) for sign in signs)


def at_once(name: str, *faults: Fault) -> Fault:
    """All of them, for as long as the first one lasts."""

    def begin() -> None:
        for fault in faults:
            fault.begin()

    def end() -> None:
        for fault in faults:
            if fault.end is not None:
                fault.end()

    return Fault(name=name, begin=begin, end=end, hold_s=faults[0].hold_s)


def seldom(sign: Sign) -> Sign:
    """The same, asked twice a second."""
    asked_s = 0.0

    def asked(ended_ns: int) -> bool:
        nonlocal asked_s
        if time.monotonic() < asked_s + _READY_EACH_S:
            return False
        asked_s = time.monotonic()
        return sign(ended_ns)

    return asked


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f}"


def _row(cells: Sequence[str]) -> str:
    first, *others = cells
    return f"{first:<44}" + "".join(f"{cell:>9}" for cell in others[:-1]) + f"  {others[-1]}"
