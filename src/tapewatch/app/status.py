"""What a process says about itself: whether it is ready, and the system status as JSON."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from tapewatch import __version__
from tapewatch.config import PARTITIONED, ROLES, RunConfig, UpConfig
from tapewatch.documents import rfc3339
from tapewatch.engine.columns import SECOND_NS
from tapewatch.engine.scanner import Scanner
from tapewatch.errors import Unavailable
from tapewatch.patience import waits
from tapewatch.ports import Bus, Clock, FeedStatus, HotState
from tapewatch.roles.ingest import Ingest
from tapewatch.roles.leases import SLOTS
from tapewatch.telemetry import CONSUMER_LAG, STREAM_ENTRIES_LOST_TOTAL

if TYPE_CHECKING:
    from tapewatch.app.distributed import Distributed
    from tapewatch.app.embedded import Embedded

STALE_S = 5.0
_UNUSABLE_SHARE, _FEW_ROWS = 0.01, 1_000
"""Of what a connection sent, of so many at least, may be rejected before the status says so."""


class EmbeddedStatus:
    """What `/ready` and `/api/v1/system/status` say."""

    def __init__(self, embedded: "Embedded", config: UpConfig, feed: str, clock: Clock) -> None:
        self._embedded, self._config, self._feed, self._clock = embedded, config, feed, clock
        self._started_ns = clock.now_ns()

    def ready(self) -> tuple[bool, str]:
        scanned = self._embedded.board.as_of() is not None
        trouble = feed_trouble(feed_status(self._embedded.ingest, self._clock, name=self._feed))
        return scanned, trouble or ("running" if scanned else "waiting for the first scan")

    def describe(self) -> dict[str, Any]:
        embedded, ingest, now_ns = self._embedded, self._embedded.ingest, self._clock.now_ns()
        age_s = (now_ns - ingest.batch_ns) / SECOND_NS if ingest.batch_ns else None
        live, phase = self.ready()
        state: str = ingest.state
        if state == "running":
            state = "starting" if not live else "stale" if age_s is not None and age_s > STALE_S else "running"
        if state == "running" and phase != "running":
            state = "degraded"
        return {
            "version": __version__,
            "state": state,
            "phase": phase,
            "uptime_s": round((now_ns - self._started_ns) / SECOND_NS, 1),
            "feed": feed_status(ingest, self._clock, name=self._feed),
            "parity": [parity.describe() for parity in embedded.parities],
            "scanner": scanner_status(embedded.scanners, self._config.scan_interval_ns),
            "gateway": {"clients": embedded.gateway.clients},
            "partitions": {"of": len(embedded.scanners), "missing": {}},
        }


def feed_status(ingest: Ingest, clock: Clock, *, name: str) -> dict[str, Any]:
    gap = ingest.gap
    return {
        "name": name,
        "state": ingest.state,
        "problem": ingest.problem or None,
        "age_s": (clock.now_ns() - ingest.batch_ns) / SECOND_NS if ingest.batch_ns else None,
        "market_time": rfc3339(ingest.watermark_ns) if ingest.watermark_ns else None,
        "rows": ingest.rows,
        "duplicates": ingest.duplicates,
        "conflicts": ingest.conflicts,
        "gap": None if gap is None else {"since": rfc3339(gap.start_ns), "reason": gap.reason},
        "connections": [_connection(feed) for feed in ingest.feeds()],
    }


def feed_trouble(feed: Mapping[str, Any]) -> str:
    """What people should know of it; empty if all is well."""
    if feed["state"] in {"lost", "refused"}:
        return f"the feed {'is lost' if feed['state'] == 'lost' else 'refused'}: {feed['problem']}"
    away = [each for each in feed["connections"] if each["problem"] and each["state"] != "running"]
    troubles = [f"{each['name']}: {each['problem']}" for each in away]
    if away:
        troubles.insert(0, "no feed delivers" if len(away) == len(feed["connections"]) else "one feed is away")
    return "; ".join([*troubles, *filter(None, map(_unusable, feed["connections"]))])


def _unusable(connection: Mapping[str, Any]) -> str:
    """A provider that changed its messages delivers and is of no use."""
    rejected: Mapping[str, int] = connection["rejected"]
    count = sum(rejected.values())
    share = count / max(count + connection["rows"], _FEW_ROWS)
    if share <= _UNUSABLE_SHARE:
        return ""
    most = max(rejected, key=rejected.__getitem__)
    return f"{connection['name']}: {share:.0%} of what it sends cannot be used, most of it for {most}"


def scanner_status(scanners: Sequence[Scanner], scan_interval_ns: int) -> dict[str, Any]:
    """Of the scanners of one process; a symbol is one scanner's."""
    first = scanners[0].ruleset if scanners else None
    return {
        "symbols": sum(len(scanner.symbols) for scanner in scanners),
        "rules": 0 if first is None else len(first.rules),
        "ruleset": 0 if first is None else first.number,
        "scan_interval_s": scan_interval_ns / SECOND_NS,
        "cooled_down": sum(scanner.cooled_down for scanner in scanners),
        "gated": sum(scanner.plan.gated for scanner in scanners),
        "crowded": dict(sorted(sum((scanner.plan.crowded for scanner in scanners), Counter()).items())),
        "rows": dict(sorted(sum((scanner.tally for scanner in scanners), Counter()).items())),
    }


def merged_scanners(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of all processes. Rules are as old as those of the scanner that lags most."""
    merged = dict(min(parts, key=lambda part: part["ruleset"])) if parts else scanner_status([], 0)
    for name in ("symbols", "cooled_down", "gated"):
        merged[name] = sum(part[name] for part in parts)
    for name in ("crowded", "rows"):
        merged[name] = dict(sorted(sum((Counter(part[name]) for part in parts), Counter()).items()))
    return merged


def _connection(feed: FeedStatus) -> dict[str, Any]:
    return {
        "name": feed.name,
        "role": feed.role,
        "state": feed.state,
        "circuit": feed.circuit,
        "problem": feed.problem or None,
        "reason": feed.reason or None,
        "failures": feed.failures,
        "connects": feed.connects,
        "losses": dict(feed.losses),
        "age_s": feed.last_data_age_s,
        "rows": feed.rows,
        "overflow_frames": feed.overflow_frames,
        "rejected": dict(feed.rejected),
        "samples": {reason: list(samples) for reason, samples in feed.samples.items()},
    }


_NO_FEED: dict[str, Any] = {
    "name": None,
    "state": "starting",
    "problem": None,
    "age_s": None,
    "gap": None,
    "connections": [],
}
_OPTIONAL = frozenset({"gateway", "deliveries"})
"""Roles that an installation may do without."""
_ROLE_TTL_S = 5.0
_FOLLOW_S = 1.0
_LOSS_NS = 300 * SECOND_NS
"""So long the status tells of entries that were lost."""


class ProcessStatus:
    """Of one process among many: it says how its roles are under `status:{role}:{slot}`; an API reads what all say."""

    def __init__(self, process: "Distributed", config: RunConfig, *, hot: HotState, clock: Clock) -> None:
        self._process, self._config, self._hot, self._clock = process, config, hot, clock
        self._started_ns = clock.now_ns()
        self._lags: dict[str, dict[int, int]] = {}
        self._losses: dict[str, tuple[int, int]] = {}
        """What happened to entries of streams: how many so far, and when the newest."""
        self._all: dict[str, list[dict[str, Any]]] = {}
        """By role what its members said last."""
        self._heard_ns = 0

    # -- this process -------------------------------------------------------------------------------------------------

    async def report(self, bus: Bus) -> None:
        """To whoever watches: how far the readers of this process have come, and how its roles are."""
        for role, readers in self._process.working.items():
            positions = {r.recovery.stream: r.position for r in readers.values() if r.position is not None}
            lags = dict.fromkeys(readers, 0)
            if positions:
                await bus.reached(role, positions)
                found = await bus.lag(role, list(positions))
                lags = {p: found.get(reader.recovery.stream, 0) for p, reader in readers.items()}
            for gone in set(self._lags.get(role, {})) - set(lags):
                CONSUMER_LAG.remove(role, str(gone))
            for p, lag in lags.items():
                CONSUMER_LAG.labels(role, str(p)).set(lag)
            self._lags[role] = lags
        for what, count in bus.lost.items():
            known = self._losses.get(what, (0, 0))[0]
            if count > known:
                self._losses[what] = count, self._clock.now_ns()
                STREAM_ENTRIES_LOST_TOTAL.labels(why=what).inc(count - known)
        documents = {
            f"status:{role}:{ownership.slot}": msgspec.json.encode(self._of_role(role))
            for role, ownership in self._process.ownerships.items()
            if ownership.slot is not None
        }
        await self._hot.put(documents, ttl_s=_ROLE_TTL_S)

    def _lost(self) -> list[str]:
        """In the last minutes, as people are told."""
        since_ns = self._clock.now_ns() - _LOSS_NS
        return [f"{count} entries {what}" for what, (count, at_ns) in self._losses.items() if at_ns > since_ns]

    def _of_role(self, role: str) -> dict[str, Any]:
        ownership = self._process.ownerships[role]
        readers = self._process.working.get(role, {})
        ready, phase = self._phase_of(role)
        document: dict[str, Any] = {
            "role": role,
            "slot": ownership.slot,
            "version": __version__,
            "ready": ready,
            "phase": phase,
            "uptime_s": round((self._clock.now_ns() - self._started_ns) / SECOND_NS, 1),
            "partitions": {
                str(p): readers[p].recovery.phase if p in readers else phase for p, phase in ownership.phases.items()
            },
            "lag": sum(self._lags.get(role, {}).values()),
            "members": ownership.members,
            "waiting_for": waits(),
            "lost": self._lost(),
        }
        if role == "ingest" and self._process.ingest is not None:
            document["feed"] = feed_status(self._process.ingest, self._clock, name=self._config.feed)
        if role == "scanner":
            document["scanner"] = scanner_status(self._process.scanners, self._config.scan_interval_ns)
        if role == "toplists":
            document["parity"] = [parity.describe() for parity in self._process.parities]
        if role in {"gateway", "api"} and self._process.gateway is not None:
            document["clients"] = self._process.gateway.clients
        return document

    def _phase_of(self, role: str) -> tuple[bool, str]:
        """Whether the role does its work, and what it is at."""
        ownership = self._process.ownerships[role]
        if role == "api":
            board = self._process.board
            if not board.caught_up:
                return False, "reading the newest boards"
            return True, "running" if board.as_of() else "no scanner has shown a board yet"
        if role == "gateway":
            return True, "running"
        if ownership.slot is None:
            return False, "joining"
        readers = self._process.working.get(role)
        if readers is None:
            return True, "running" if ownership.owned else "standing by"
        if set(ownership.owned) - set(readers):
            return False, "taking over partitions"
        behind = Counter(reader.recovery.phase for reader in readers.values() if reader.recovery.phase != "running")
        if behind:
            lag = sum(self._lags.get(role, {}).values())
            return False, ", ".join(f"{phase} {count} of {len(readers)}" for phase, count in behind.items()) + (
                f" ({lag} entries behind)" if lag else ""
            )
        return True, "running" if readers else "standing by"

    def ready(self) -> tuple[bool, str]:
        """What `/ready` says."""
        phases = {role: self._phase_of(role) for role in self._process.ownerships}
        ready = all(ready for ready, _ in phases.values())
        said = {phase for _, phase in phases.values()}
        phase = said.pop() if len(said) == 1 else "; ".join(f"{role}: {phase}" for role, (_, phase) in phases.items())
        degraded = "; ".join(f"{where} waits: {why}" for where, why in waits().items())
        if degraded and ready:
            phase = f"degraded: {degraded}"
        return ready, (feed_trouble(self._feed) if "api" in phases else "") or phase

    @property
    def _feed(self) -> dict[str, Any]:
        return next((said["feed"] for said in self._all.get("ingest", []) if "feed" in said), _NO_FEED)

    # -- all of them --------------------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Each second: what all processes say."""
        keys = [f"status:{role}:{slot}" for role in ROLES for slot in range(SLOTS)]
        while True:
            try:
                found = [msgspec.json.decode(body) for body in await self._hot.get(keys) if body is not None]
            except Unavailable:
                found = []
            else:
                self._heard_ns = self._clock.now_ns()
            self._all = {role: [said for said in found if said["role"] == role] for role in ROLES}
            await self._clock.sleep(_FOLLOW_S)

    def describe(self) -> dict[str, Any]:
        """The system status as an API tells it."""
        live, phase = self.ready()
        missing = [role for role in ROLES if not self._all.get(role) and role not in _OPTIONAL]
        members = [said for role in ROLES for said in self._all.get(role, [])]
        troubled = [f"{said['role']}: {said['phase']}" for said in members if not said["ready"]]
        waiting = [f"{said['role']} waits: {why}" for said in members for why in said["waiting_for"].values()]
        feed = self._feed
        lost = [f"{said['role']}: {what}" for said in members for what in said.get("lost", ())]
        problems = [*(f"no {role} runs" for role in missing), *troubled, *waiting, *lost]
        trouble = feed_trouble(feed)
        if feed["state"] in {"lost", "refused"}:
            state = feed["state"]
        elif not live or self._process.board.as_of() is None:
            state = "starting"
        elif feed["age_s"] is not None and feed["age_s"] > STALE_S:
            state = "stale"
        else:
            state = "degraded" if problems or trouble else "running"
        phase = "; ".join(dict.fromkeys([trouble, *problems] if trouble else problems)) or phase
        return {
            "version": __version__,
            "state": state,
            "phase": phase,
            "uptime_s": round((self._clock.now_ns() - self._started_ns) / SECOND_NS, 1),
            "feed": feed
            or {"name": self._config.feed, "state": "starting", "age_s": None, "gap": None, "connections": []},
            "parity": [part for said in members for part in said.get("parity", [])],
            "partitions": {"of": self._config.partitions, "missing": self._missing()},
            "scanner": merged_scanners([said["scanner"] for said in members if "scanner" in said]),
            "gateway": {"clients": sum(said.get("clients", 0) for said in members)},
            "roles": members,
        }

    def _missing(self) -> dict[str, list[int]]:
        """By role, the partitions that nobody works on."""
        every = set(range(self._config.partitions))
        worked = {
            role: {int(p) for said in self._all.get(role, []) for p in said["partitions"]} for role in PARTITIONED
        }
        return {role: sorted(every - those) for role, those in worked.items() if every - those}
