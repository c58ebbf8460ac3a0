"""Who owns which partition, how far the streams and their readers have come: asked of Redis ten times a second, beside
the system and not through its links.
"""

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self

from fault_nemesis import Sign
from fault_redis import RedisNode
from redis import Redis
from redis.exceptions import RedisError

from tapewatch.adapters.redis_streams import TAIL, key_of, position_of
from tapewatch.ports import Position

EVERY_S = 0.1
READS: Mapping[str, str] = {"bars": "ticks", "scanner": "ticks", "indicators": "bars.finalized", "alerts": "alerts"}
"""The topic that each partitioned role reads."""
WRITES: Mapping[str, str] = {"ingest": "ticks", "scanner": "board"}
"""A topic to which a role adds many entries in each second, so that its silence shows."""
_SINGLE = ("ingest", "toplists")
_TOPICS = ("ticks", "board", "bars.finalized", "alerts", "alerts.filtered")
_LATER_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What Redis said at one moment."""

    at_s: float
    """Monotonic."""
    at_ns: int
    """By the wall clock."""
    tails: Mapping[str, Position]
    reached: Mapping[tuple[str, int], Position]
    """By role and partition."""
    owners: Mapping[tuple[str, int], str | None]
    """The token that holds the lease."""


class Stretch(NamedTuple):
    seconds: float
    role: str
    partition: int

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s ({self.role} {self.partition})"


@dataclass(slots=True)
class Watch:
    """A context manager with a thread of its own. `server` says which one is the master now."""

    server: Callable[[], RedisNode]
    partitions: int
    looks: list[Look] = field(default_factory=list)
    unanswered: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    # -- signs --------------------------------------------------------------------------------------------------------

    def tape_goes_on(self, ended_ns: int) -> bool:
        """Every partition's tape is longer than it was."""
        before, now = self._at(ended_ns), self._newest(ended_ns)
        if before is None or now is None:
            return False
        return all(now.tails[s] > before.tails[s] for s in self._streams("ticks"))

    def readers_follow(self, ended_ns: int) -> bool:
        """Every reader has handled what was on its stream a second after the fault ended."""
        before, now = self._at(ended_ns + round(_LATER_S * 1e9)), self._newest(ended_ns)
        if before is None or now is None or before.at_ns < ended_ns + round(_LATER_S * 1e9):
            return False
        return all(
            now.reached.get((role, p), Position(0, 0)) >= before.tails[f"{topic}:{p}"]
            for role, topic in READS.items()
            for p in range(self.partitions)
        )

    def all_owned(self, ended_ns: int) -> bool:
        now = self._newest(ended_ns)
        return now is not None and None not in now.owners.values()

    def signs(self) -> dict[str, Sign]:
        return {"tape": self.tape_goes_on, "owners": self.all_owned, "readers": self.readers_follow}

    # -- figures ------------------------------------------------------------------------------------------------------

    def drained(self) -> bool:
        """Every reader is at the end of its stream."""
        now = self.looks[-1] if self.looks else None
        return now is not None and all(
            now.reached.get((role, p), Position(0, 0)) >= now.tails[f"{topic}:{p}"]
            for role, topic in READS.items()
            for p in range(self.partitions)
        )

    def longest_unowned(self, *roles: str, since_ns: int = 0, until_ns: int = 2**63) -> Stretch:
        """The longest time for which a partition of these roles (none: of any) that had had an owner had none, while
        Redis answered.
        """
        found = self._unowned(since_ns, until_ns)
        return max((each for each in found if not roles or each.role in roles), default=Stretch(0.0, "", 0))

    def longest_silence(self, role: str, *, since_ns: int = 0, until_ns: int = 2**63) -> Stretch:
        """The longest time in which a role that writes all the time added nothing to a partition's stream."""
        longest = Stretch(0.0, role, 0)
        for p in range(self.partitions):
            stream, last = f"{WRITES[role]}:{p}", None
            for look in self._between(since_ns, until_ns):
                if last is None or look.tails[stream] != last.tails[stream]:
                    last = look
                longest = max(longest, Stretch(look.at_s - last.at_s, role, p))
        return longest

    def handed_over(self, began_ns: int, until_ns: int = 2**63) -> list[Stretch]:
        """Of each lease that changed hands, how long after `began_ns` somebody else had it."""
        before = self._at(began_ns)
        if before is None:
            return []
        moved: dict[tuple[str, int], Stretch] = {}
        for look in self._between(began_ns, until_ns):
            for key, token in look.owners.items():
                if key not in moved and token is not None and before.owners[key] not in {None, token}:
                    moved[key] = Stretch((look.at_ns - began_ns) / 1e9, *key)
        return sorted(moved.values())

    def owners_of(self, role: str) -> int:
        """How many members own a partition of that role now."""
        owners = self.looks[-1].owners.items() if self.looks else ()
        return len({token for (name, _), token in owners if name == role and token is not None})

    # -- inside -------------------------------------------------------------------------------------------------------

    def _unowned(self, since_ns: int, until_ns: int) -> Iterator[Stretch]:
        since: dict[tuple[str, int], float] = {}
        owned: set[tuple[str, int]] = set()
        for look in self._between(since_ns, until_ns):
            for key, token in look.owners.items():
                if token is not None:
                    owned.add(key)
                    since.pop(key, None)
                elif key in owned:
                    since.setdefault(key, look.at_s)
                    yield Stretch(look.at_s - since[key], *key)

    def _between(self, since_ns: int, until_ns: int) -> list[Look]:
        return [look for look in tuple(self.looks) if since_ns <= look.at_ns < until_ns]

    def _at(self, at_ns: int) -> Look | None:
        """The first look at or after that instant."""
        place = bisect_left(self.looks, at_ns, key=lambda look: look.at_ns)
        return self.looks[place] if place < len(self.looks) else None

    def _newest(self, since_ns: int) -> Look | None:
        return self.looks[-1] if self.looks and self.looks[-1].at_ns >= since_ns else None

    def _streams(self, topic: str) -> list[str]:
        return [f"{topic}:{p}" for p in range(self.partitions)]

    def _run(self) -> None:
        client: Redis | None = None
        while not self._stop.wait(EVERY_S):
            try:
                client = client or self.server().client()
                self.looks.append(self._look(client))
            except RedisError:
                self.unanswered += 1
                if client is not None:
                    client.close()
                client = None
        if client is not None:
            client.close()

    def _look(self, client: "Redis") -> Look:
        streams = [stream for topic in _TOPICS for stream in self._streams(topic)]
        leases = [(role, p) for role in READS for p in range(self.partitions)] + [(role, 0) for role in _SINGLE]
        at_s, at_ns = time.monotonic(), time.time_ns()
        read = [stream for stream in streams if stream.partition(":")[0] in READS.values()]
        with client.pipeline(transaction=False) as pipeline:
            for stream in streams:
                pipeline.eval(TAIL, 1, key_of(stream))
            for stream in read:
                pipeline.xinfo_groups(key_of(stream))
            pipeline.mget([f"lease:{role}:{p}" for role, p in leases])
            replies: list[Any] = pipeline.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, RedisError) and "no such key" not in str(reply):
                raise reply
        groups = dict(zip(read, replies[len(streams) : len(streams) + len(read)], strict=True))
        reached: dict[tuple[str, int], Position] = {}
        for role, topic in READS.items():
            for p in range(self.partitions):
                for group in groups[f"{topic}:{p}"] if isinstance(groups[f"{topic}:{p}"], list) else ():
                    if group["name"] == role.encode():
                        reached[role, p] = position_of(group["last-delivered-id"])
        return Look(
            at_s=at_s,
            at_ns=at_ns,
            tails={stream: position_of(reply) for stream, reply in zip(streams, replies, strict=False)},
            reached=reached,
            owners={
                key: None if token is None else token.decode() for key, token in zip(leases, replies[-1], strict=True)
            },
        )
