"""The whole distributed system over a tape, with a proxy in front of each server and witnesses at the gateways: what a
fault run starts from.

    servers   redis, and a database that the test gives
    links     `bus_link` and `store_link`, through which every role speaks to them
    roles     workers first, then API and gateways, then the rules and the witnesses; ingest begins last
"""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from fault_redis import RedisNode
from fault_tapes import Tape
from fault_witness import Witness

LAG = "consumer_lag"
WORKERS: Mapping[str, int] = MappingProxyType({"bars+indicators": 2, "scanner": 2, "alerts": 2, "toplists": 1})
"""Processes of each kind; roles that are joined by a + share one."""
_API_S = 5.0


@dataclass(kw_only=True)
class System:
    folder: Path
    tape: Tape
    redis: RedisNode
    bus_link: Proxy
    store_link: Proxy
    cluster: Cluster
    workers: Mapping[str, int]
    gateways: int
    witnesses: list[Witness] = field(default_factory=list)

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

        def is_over() -> bool:
            self.cluster.tend()
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
) -> Iterator[System]:
    """A system that has not begun yet; `database` is the URL of an empty one. Everything but the database is ended."""
    redis = RedisNode(folder / "redis")
    at = urlsplit(database)
    if at.hostname is None or at.port is None:
        raise ValueError("the URL of the database lacks its host or port")
    with (
        Proxy(("127.0.0.1", redis.port), frames=RedisFrames, seed=seed) as bus_link,
        Proxy((at.hostname, at.port), frames=PostgresFrames, seed=seed + 1) as store_link,
        Cluster(
            folder,
            bus=redis.url_at(bus_link.host, bus_link.port),
            store=urlunsplit(at._replace(netloc=f"{at.netloc.rpartition('@')[0]}@{store_link.host}:{store_link.port}")),
            partitions=partitions,
            env=env,
        ) as cluster,
    ):
        running = System(
            folder=folder,
            tape=tape,
            redis=redis,
            bus_link=bus_link,
            store_link=store_link,
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
            redis.kill()
