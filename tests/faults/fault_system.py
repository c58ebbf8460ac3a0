"""The whole distributed system over a tape, with a proxy in front of each server and witnesses at the gateways: what a
fault run starts from.

    servers   Redis, or a set of them that Sentinel watches, and a database that the test gives
    links     `bus_link` and `store_link`, through which every role speaks to them; a set has no `bus_link`
    roles     workers first, then API and gateways, then the rules and the witnesses; ingest begins last
"""

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
from fault_cluster import Cluster
from fault_frames import PostgresFrames, RedisFrames
from fault_nemesis import Sign, lag_below
from fault_processes import python, until
from fault_proxy import Proxy
from fault_redis import RedisNode, SentinelSet
from fault_tapes import Tape
from fault_witness import Witness

LAG = "consumer_lag"
WORKERS: Mapping[str, int] = MappingProxyType({"bars+indicators": 2, "scanner": 2, "alerts": 2, "toplists": 1})
"""Processes of each kind; roles that are joined by a + share one."""
_API_S = 5.0
_LOOK_S = 0.5
"""Between two looks at whether the tape is over: each of them asks every process."""


@dataclass(kw_only=True)
class System:
    folder: Path
    tape: Tape
    database: str
    """Its URL beside `store_link`."""
    redis: RedisNode | SentinelSet
    links: Mapping[str, Proxy]
    cluster: Cluster
    workers: Mapping[str, int]
    gateways: int
    witnesses: list[Witness] = field(default_factory=list)

    @property
    def bus_link(self) -> Proxy:
        return self.links["bus"]

    @property
    def store_link(self) -> Proxy:
        return self.links["store"]

    @property
    def node(self) -> RedisNode:
        """The only one, or the master."""
        return self.redis.master() if isinstance(self.redis, SentinelSet) else self.redis

    def begin(self, *, witnesses: int = 1, within_s: float = 120.0) -> None:
        """Returns when the tape has begun to play and each witness is connected, each to a gateway of its own."""
        for role, count in self.workers.items():
            self.cluster.add(role, count=count)
        self.cluster.add("gateway", "--port", "{port}", count=self.gateways)
        self.cluster.add("api", "--port", "{port}", "--data-dir", "{folder}")
        self.cluster.wait_ready(*self.workers, "gateway", within_s=within_s)
        until(self.cluster.member("api").healthy, "the API answers", within_s=within_s)
        self._apply_rules()
        for n in range(witnesses):
            port = self.cluster.member("gateway", n % self.gateways).port
            witness = Witness(f"ws://127.0.0.1:{port}/ws", self.folder / f"witness-{n}", name=f"witness {n}")
            self.witnesses.append(witness)
            witness.start()
        for witness in self.witnesses:
            witness.wait_connected()
        self.cluster.add(
            "ingest",
            *("--feed", "replay", "--tape", str(self.tape.path), "--speed", f"{self.tape.speed:g}"),
            *("--journal", "{folder}/journal", "--data-dir", "{folder}"),
        )
        self.cluster.wait_ready(within_s=within_s)

    def hurry(self, speed: float) -> None:
        """Roll ingest: what is left of the tape is played so fast."""
        ingest = self.cluster.member("ingest")
        ingest.stop()
        command = ingest.program.command
        command[command.index("--speed") + 1] = f"{speed:g}"
        ingest.start()

    def lag_is_low(self) -> Sign:
        """No reader is a second of the clock behind."""
        return lag_below(self.cluster, LAG, least=self.tape.entries_per_s)

    def status(self) -> dict[str, Any]:
        """`system/status` of the API; empty when it does not answer."""
        try:
            answer = httpx.get(f"{self._api}/api/v1/system/status", timeout=_API_S, trust_env=False)
        except httpx.TransportError:
            return {}
        return dict(answer.json()) if answer.status_code == 200 else {}

    def ended(self) -> bool:
        """Whether the tape is over, and every reader has read all of it."""
        feed = self.status().get("feed") or {}
        return feed.get("state") == "ended" and self.cluster.worst(LAG) == 0

    def wait_played(self, *, within_s: float) -> None:
        """Until the tape is over and every witness has the newest alert of the store. Members that end by themselves
        are started again.
        """
        looked_s = 0.0

        def is_over() -> bool:
            nonlocal looked_s
            self.cluster.tend()
            if time.monotonic() < looked_s + _LOOK_S:
                return False
            looked_s = time.monotonic()
            if not self.ended():
                return False
            stored = set(self.stored_ids())
            return all(stored <= set(witness.ids()) for witness in self.witnesses)

        try:
            until(is_over, "the tape has been played", within_s=within_s)
        except TimeoutError as error:
            stored = len(self.stored_ids())
            seen = [len(witness.ids()) for witness in self.witnesses]
            error.add_note(f"{stored} alerts are stored, the witnesses have {seen}; status: {self.status()}")
            raise

    def stored_ids(self) -> list[str]:
        """Ids of all alerts in the store, oldest first, by REST."""
        ids: list[str] = []
        query: dict[str, Any] = {"limit": 500}
        while True:
            answer = httpx.get(f"{self._api}/api/v1/alerts", params=query, timeout=_API_S, trust_env=False)
            page = answer.raise_for_status().json()
            ids += [item["alert_id"] for item in page["items"]]
            if page["next_cursor"] is None:
                return ids[::-1]
            query["cursor"] = page["next_cursor"]

    def newest_ids(self) -> set[str]:
        """Ids of the newest 500 alerts in the store; none when the API does not answer."""
        try:
            answer = httpx.get(f"{self._api}/api/v1/alerts", params={"limit": 500}, timeout=_API_S, trust_env=False)
        except httpx.TransportError:
            return set()
        return {item["alert_id"] for item in answer.json()["items"]} if answer.status_code == 200 else set()

    @property
    def _api(self) -> str:
        return f"http://127.0.0.1:{self.cluster.member('api').port}"

    def _apply_rules(self) -> None:
        command = python("-m", "tapewatch", "rules", "apply", str(self.tape.rules), "--url", self._api)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the rules were not taken over: {done.stdout}{done.stderr}")


@contextmanager
def system(
    folder: Path,
    *,
    tape: Tape,
    database: str,
    partitions: int = 4,
    workers: Mapping[str, int] = WORKERS,
    gateways: int = 2,
    env: Mapping[str, str] | None = None,
    seed: int = 0,
    redis: RedisNode | SentinelSet | None = None,
) -> Iterator[System]:
    """A system that has not begun yet; `database` is the URL of an empty one. Everything but the database is ended.
    `redis` is a server or a set that has not started; without it there is one server.
    """
    redis = redis or RedisNode(folder / "redis")
    at = urlsplit(database)
    if at.hostname is None or at.port is None:
        raise ValueError("the URL of the database lacks its host or port")
    with ExitStack() as stack:
        links = {"store": stack.enter_context(Proxy((at.hostname, at.port), frames=PostgresFrames, seed=seed + 1))}
        if isinstance(redis, SentinelSet):
            bus = redis.url
        else:
            link = links["bus"] = stack.enter_context(Proxy(("127.0.0.1", redis.port), frames=RedisFrames, seed=seed))
            bus = redis.url_at(link.host, link.port)
        store = f"{at.netloc.rpartition('@')[0]}@{links['store'].host}:{links['store'].port}"
        cluster = stack.enter_context(
            Cluster(folder, bus=bus, store=urlunsplit(at._replace(netloc=store)), partitions=partitions, env=env)
        )
        running = System(
            folder=folder,
            tape=tape,
            database=database,
            redis=redis,
            links=links,
            cluster=cluster,
            workers=workers,
            gateways=gateways,
        )
        try:
            redis.start()
            yield running
        finally:
            for member in cluster.members():
                member.kill()
            for witness in running.witnesses:
                witness.kill()
            if isinstance(redis, SentinelSet):
                redis.end()
            else:
                redis.kill()
