"""The distributed system as processes: one for each role and number, on private ports, with its log in a file.

A member keeps its number, its ports and its folder when it is started again, so that clients and journals find them.
"""

import http.client
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from fault_netns import Namespace
from fault_processes import PATIENCE_S, Program, private_port, until
from prometheus_client.parser import text_string_to_metric_families

_PROBE_S = 2.0


def tapewatch(role: str) -> list[str]:
    """The product's own command for a role, or for several in one process: ``bars+indicators``."""
    return [sys.executable, "-m", "tapewatch", "run", *role.split("+")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the members of a role are started."""

    role: str
    options: tuple[str, ...] = ()
    """``{port}`` and ``{folder}`` stand for the member's own."""
    bus: str
    store: str
    env: Mapping[str, str] = field(default_factory=dict)
    namespace: Namespace | None = None


class Answer(NamedTuple):
    status: int
    """0: nobody answered in time."""
    text: str


class Member:
    """One process of a role."""

    def __init__(self, plan: Plan, number: int, *, folder: Path, command: Sequence[str], partitions: int) -> None:
        self.plan = plan
        self.number = number
        self.name = f"{plan.role}-{number}"
        self.port, self.probe_port = private_port(), private_port()
        self.folder = folder / self.name
        self.folder.mkdir(parents=True)
        self.wanted = False
        """Whether the test wants it to run."""
        options = [option.format(port=self.port, folder=self.folder) for option in plan.options]
        self.program = Program(
            self.name,
            [*command, "--probe-port", str(self.probe_port), *options],
            log=folder / f"{self.name}.log",
            env={
                "TAPEWATCH_BUS": plan.bus,
                "TAPEWATCH_STORE": plan.store,
                "TAPEWATCH_PARTITIONS": str(partitions),
                **plan.env,
            },
            prefix=plan.namespace.prefix if plan.namespace else (),
        )

    def start(self) -> None:
        self.wanted = True
        self.program.start()

    def kill(self) -> None:
        """SIGKILL."""
        self.wanted = False
        self.program.kill()

    def stop(self, *, within_s: float = PATIENCE_S) -> int | None:
        """SIGTERM, and how it ended."""
        self.wanted = False
        return self.program.stop(within_s=within_s)

    def pause(self) -> None:
        self.program.pause()

    def resume(self) -> None:
        self.program.resume()

    def ask(self, path: str) -> Answer:
        """What its probe server says."""
        return _ask(self._connect, path)

    def ready(self) -> bool:
        return self.program.running and self.ask("/ready").status == 200

    def healthy(self) -> bool:
        return self.program.running and self.ask("/health").status == 200

    def metric(self, name: str, *, worst: Callable[[list[float]], float] = max) -> float | None:
        """The worst of that name over all labels; None when it is away or has no such metric."""
        answer = self.ask("/metrics")
        if answer.status != 200:
            return None
        families = text_string_to_metric_families(answer.text)
        values = [sample.value for family in families for sample in family.samples if sample.name == name]
        return worst(values) if values else None

    def _connect(self) -> socket.socket:
        if self.plan.namespace is not None:
            return self.plan.namespace.connect(self.probe_port, within_s=_PROBE_S)
        return socket.create_connection(("127.0.0.1", self.probe_port), _PROBE_S)


class Cluster:
    """A context manager: at its end every member is killed, and an error takes the ends of all logs along."""

    def __init__(
        self,
        folder: Path,
        *,
        bus: str,
        store: str,
        partitions: int,
        env: Mapping[str, str] | None = None,
        command: Callable[[str], list[str]] = tapewatch,
    ) -> None:
        self.restarts = 0
        """Of members that ended by themselves and were started again."""
        self._folder = folder
        self._bus, self._store, self._partitions = bus, store, partitions
        self._env = dict(env or {})
        self._command = command
        self._members: dict[str, list[Member]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        report = self.report() if error is not None else ""
        for member in self.members():
            member.kill()
        if error is not None:
            error.add_note(report)

    # -- who is there -------------------------------------------------------------------------------------------------

    def members(self, role: str | None = None) -> list[Member]:
        """In the order in which roles were added; of a role by number, those that do not run too."""
        if role is not None:
            return list(self._members.get(role, ()))
        return [member for members in self._members.values() for member in members]

    def member(self, role: str, number: int = 0) -> Member:
        return self._members[role][number]

    def running(self, role: str) -> list[Member]:
        return [member for member in self.members(role) if member.program.running]

    # -- starting and ending ------------------------------------------------------------------------------------------

    def add(
        self,
        role: str,
        *options: str,
        count: int = 1,
        bus: str | None = None,
        store: str | None = None,
        env: Mapping[str, str] | None = None,
        namespace: Namespace | None = None,
    ) -> list[Member]:
        """Start so many more members of a role; `bus` and `store` may be those behind a proxy."""
        plan = Plan(
            role=role,
            options=options,
            bus=bus or self._bus,
            store=store or self._store,
            env={**self._env, **(env or {})},
            namespace=namespace,
        )
        return [self._add(plan) for _ in range(count)]

    def scale(self, role: str, count: int) -> None:
        """As many running members: new ones are started as the first was, those with the highest numbers get SIGTERM.
        Members that had been ended stay so.
        """
        running = self.running(role)
        for member in running[count:]:
            member.stop()
        plan = replace(self.member(role).plan, namespace=None)
        for _ in range(count - len(running)):
            self._add(plan)

    def kill(self, role: str, number: int = 0) -> Member:
        member = self.member(role, number)
        member.kill()
        return member

    def restart(self, role: str, number: int = 0) -> Member:
        """Kill it, if it runs, and start it again."""
        member = self.kill(role, number)
        member.start()
        return member

    def tend(self) -> list[Member]:
        """Start again those that ended by themselves, as a supervisor would; says which."""
        ended = [member for member in self.members() if member.wanted and not member.program.running]
        for member in ended:
            self.restarts += 1
            member.start()
        return ended

    # -- how it is ----------------------------------------------------------------------------------------------------

    def ready(self, *roles: str) -> bool:
        """Whether all wanted members of these roles (none: of all) are ready."""
        chosen = [m for m in self.members() if m.wanted and (not roles or m.plan.role in roles)]
        return all(member.ready() for member in chosen)

    def wait_ready(self, *roles: str, within_s: float = 60.0) -> None:
        """Fails at once when a member ends by itself."""

        def all_ready() -> bool:
            ended = [member for member in self.members() if member.wanted and not member.program.running]
            if ended:
                raise RuntimeError(f"{ended[0].name} ended\n{ended[0].program.tail()}")
            return self.ready(*roles)

        until(all_ready, f"{', '.join(roles) or 'all'} ready", within_s=within_s)

    def worst(self, metric: str, *roles: str) -> float | None:
        """The greatest value of a metric among running members; None if none of them has it."""
        chosen = [m for m in self.members() if m.program.running and (not roles or m.plan.role in roles)]
        values = [value for member in chosen if (value := member.metric(metric)) is not None]
        return max(values, default=None)

    def report(self) -> str:
        """The ends of all logs."""
        return "\n\n".join(member.program.tail() for member in self.members())

    def _add(self, plan: Plan) -> Member:
        members = self._members.setdefault(plan.role, [])
        member = Member(
            plan, len(members), folder=self._folder, command=self._command(plan.role), partitions=self._partitions
        )
        members.append(member)
        member.start()
        return member


def _ask(connect: Callable[[], socket.socket], path: str) -> Answer:
    try:
        with connect() as made:
            made.settimeout(_PROBE_S)
            asking = http.client.HTTPConnection("127.0.0.1")
            asking.sock = made
            asking.request("GET", path)
            said = asking.getresponse()
            return Answer(said.status, said.read().decode(errors="replace"))
    except (OSError, http.client.HTTPException):
        return Answer(0, "")
