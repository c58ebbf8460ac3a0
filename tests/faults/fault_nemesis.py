"""Faults on a schedule, and how long the system takes to recover from each. The seed is printed; the same seed makes
the same schedule.

Time to recover runs from the end of the fault, or from the kill where nothing is given back, until a sign of life. Each
sign is timed for itself: no lag, all ready, the next alert at a witness.
"""

import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fault_cluster import Cluster
from fault_processes import LOOK_AGAIN_S
from fault_witness import Witness

Sign = Callable[[int], bool]
"""Whether the system is well again, given the wall clock in nanoseconds at which the fault ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong, and its end."""

    name: str
    begin: Callable[[], object]
    end: Callable[[], object] | None = None
    """None: nothing is given back, and the system must do without."""
    hold_s: tuple[float, float] = (0.5, 2.0)
    """It lasts between these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Appointment:
    """A fault, when after the start, and how long."""

    fault: Fault
    at_s: float
    hold_s: float


@dataclass(slots=True, kw_only=True)
class Suffered:
    """One fault as it happened; times in seconds after the start."""

    fault: str
    began_s: float
    ended_s: float
    recovered_s: dict[str, float | None] = field(default_factory=dict)
    """After the end, by sign; None: not in time."""


class Nemesis:
    """`run` keeps the schedule; `suffered` is what came of it, and stands in the log as JSON lines."""

    def __init__(
        self,
        *,
        seed: int,
        faults: Sequence[Fault],
        signs: Mapping[str, Sign],
        log: Path,
        cluster: Cluster | None = None,
        patience_s: float = 30.0,
    ) -> None:
        """Members of `cluster` that end by themselves are started again meanwhile."""
        self.seed = seed
        self.suffered: list[Suffered] = []
        self._faults = list(faults)
        self._signs = dict(signs)
        self._log = log
        self._cluster = cluster
        self._patience_s = patience_s
        self._rng = random.Random(seed)

    def schedule(self, *, seconds: float, pause_s: tuple[float, float] = (2.0, 6.0)) -> list[Appointment]:
        """One after the other, each fault about equally often, with a pause after each."""
        appointments: list[Appointment] = []
        at_s = self._rng.uniform(*pause_s)
        while at_s < seconds:
            round_ = self._rng.sample(self._faults, len(self._faults))
            for fault in round_:
                hold_s = self._rng.uniform(*fault.hold_s)
                if at_s + hold_s > seconds:
                    return appointments
                appointments.append(Appointment(fault=fault, at_s=at_s, hold_s=hold_s))
                at_s += hold_s + self._rng.uniform(*pause_s)
        return appointments

    def run(self, appointments: Sequence[Appointment]) -> list[Suffered]:
        """Returns when the last one is recovered from, or had its time. A fault that is late begins at once."""
        print(f"nemesis: seed {self.seed}, {len(appointments)} faults")  # noqa: T201  # a failure is repeated from it
        started_s = time.monotonic()
        for appointment in appointments:
            for _ in self._moments(started_s + appointment.at_s):
                pass
            suffered = self._suffer(appointment, started_s)
            self.suffered.append(suffered)
            with self._log.open("a", encoding="utf-8") as log:
                log.write(json.dumps({"seed": self.seed, **asdict(suffered)}) + "\n")
        return self.suffered

    def report(self) -> str:
        """Times to recover by fault and sign: how many, median, longest, and how many were not in time."""
        rows: dict[tuple[str, str], list[float | None]] = {}
        for suffered in self.suffered:
            for sign, seconds in suffered.recovered_s.items():
                rows.setdefault((suffered.fault, sign), []).append(seconds)
        lines = [f"nemesis: seed {self.seed}"]
        for (fault, sign), times in sorted(rows.items()):
            timely = [seconds for seconds in times if seconds is not None]
            figures = f"median {statistics.median(timely):.2f} s, longest {max(timely):.2f} s" if timely else "never"
            lines.append(f"{fault}, {sign}: {len(times)} times, {figures}, {len(times) - len(timely)} not in time")
        return "\n".join(lines)

    def _suffer(self, appointment: Appointment, started_s: float) -> Suffered:
        fault = appointment.fault
        began_s = time.monotonic()
        fault.begin()
        # Without an end, what was taken away counts as gone from the moment it went.
        ended_s, ended_ns = time.monotonic(), time.time_ns()
        if fault.end is not None:
            try:
                for _ in self._moments(began_s + appointment.hold_s):
                    pass
            finally:
                fault.end()
            ended_s, ended_ns = time.monotonic(), time.time_ns()
        suffered = Suffered(fault=fault.name, began_s=began_s - started_s, ended_s=ended_s - started_s)
        suffered.recovered_s = dict.fromkeys(self._signs)
        for _ in self._moments(ended_s + self._patience_s):
            for sign, seconds in suffered.recovered_s.items():
                if seconds is None and self._signs[sign](ended_ns):
                    suffered.recovered_s[sign] = time.monotonic() - ended_s
            if None not in suffered.recovered_s.values():
                break
        return suffered

    def _moments(self, until_s: float) -> Iterator[None]:
        """One now and then until that time, by the monotonic clock; the cluster is tended meanwhile."""
        while True:
            if self._cluster is not None:
                self._cluster.tend()
            yield
            if time.monotonic() >= until_s:
                return
            time.sleep(LOOK_AGAIN_S)


# -- signs ------------------------------------------------------------------------------------------------------------


def all_ready(cluster: Cluster) -> Sign:
    return lambda _ended_ns: cluster.ready()


def lag_below(cluster: Cluster, metric: str, *, least: float) -> Sign:
    """The worst of a metric among all members is under `least`; nobody who has it is no sign of health."""

    def is_low(_ended_ns: int) -> bool:
        worst = cluster.worst(metric)
        return worst is not None and worst < least

    return is_low


def next_alert(witness: Witness) -> Sign:
    return lambda ended_ns: witness.first_alert_after(ended_ns) is not None
