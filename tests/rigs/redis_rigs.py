"""Several Redis servers that belong together, each a process of its own on loopback: Sentinels with a master and
replicas, and a Cluster.
"""

import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError
from servers import START_S, USER, RedisProgram, free_port

SLOTS = 16_384
DOWN_MS = 300
"""A server that is silent for so long is down."""


def until(happened: Callable[[], bool], what: str) -> None:
    if not happens(happened, within_s=START_S):
        pytest.fail(f"waited in vain: {what}")


def happens(happened: Callable[[], bool], *, within_s: float) -> bool:
    until_s = time.monotonic() + within_s
    while not _asked(happened):
        if time.monotonic() > until_s:
            return False
        time.sleep(0.01)
    return True


def _asked(happened: Callable[[], bool]) -> bool:
    try:
        return happened()
    except RedisError:
        return False


class SentinelRig:
    """A master, a replica that follows it, and three Sentinels."""

    MASTER = "tape"

    def __init__(self, folder: Path) -> None:
        self.password = secrets.token_urlsafe(24)
        together = [f"masterauth {self.password}", "repl-diskless-sync-delay 0", "repl-timeout 3"]
        self.servers = [
            RedisProgram(_made(folder / f"server{number}"), settings=together, password=self.password)
            for number in range(2)
        ]
        self.ports = [free_port() for _ in range(3)]
        self._folder = folder
        self._sentinels: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        places = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"redis+sentinel://{USER}:{self.password}@{places}/{self.MASTER}/0"

    @property
    def master(self) -> RedisProgram:
        """As the Sentinels see it."""
        with Redis(port=self.ports[0]) as sentinel:
            _, port = sentinel.sentinel_get_master_addr_by_name(self.MASTER)
        return next(server for server in self.servers if server.port == port)

    def start(self) -> None:
        for server in self.servers:
            server.start()
        first, second = self.servers
        with Redis.from_url(second.admin_url) as replica:
            replica.replicaof("127.0.0.1", first.port)
        for port in self.ports:
            self._sentinels.append(self._sentinel(port, first))
        until(lambda: all(self._complete(port) for port in self.ports), "the Sentinels see each other and the replica")
        self.until_replicas_follow()

    def until_replicas_follow(self) -> None:
        until(self._follow, "the replica follows the master")

    def kill(self) -> None:
        for sentinel in self._sentinels:
            sentinel.send_signal(signal.SIGCONT)
            sentinel.kill()
            sentinel.wait()
        for server in self.servers:
            server.thaw()
            server.kill()

    def _follow(self) -> bool:
        master = self.master
        others = [server for server in self.servers if server is not master]
        with Redis.from_url(master.admin_url) as client:
            offset = client.info("replication")["master_repl_offset"]
        for server in others:
            with Redis.from_url(server.admin_url) as client:
                state = client.info("replication")
            if state.get("master_link_status") != "up" or state["slave_repl_offset"] < offset:
                return False
        return True

    def _complete(self, port: int) -> bool:
        with Redis(port=port) as sentinel:
            state = sentinel.sentinel_masters()[self.MASTER]
        return bool(state["num-slaves"] == 1 and state["num-other-sentinels"] == 2)

    def _sentinel(self, port: int, master: RedisProgram) -> "subprocess.Popen[bytes]":
        folder = _made(self._folder / f"sentinel{port}")
        configuration = folder / "sentinel.conf"
        lines = [
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {folder}",
            f"sentinel monitor {self.MASTER} 127.0.0.1 {master.port} 2",
            f"sentinel auth-pass {self.MASTER} {self.password}",
            f"sentinel down-after-milliseconds {self.MASTER} {DOWN_MS}",
            f"sentinel failover-timeout {self.MASTER} 2000",
        ]
        configuration.write_text("\n".join([*lines, ""]))
        with (folder / "log").open("ab") as log:
            return subprocess.Popen([master.program, str(configuration), "--sentinel"], stdout=log, stderr=log)


class ClusterRig:
    """Three nodes that share the slots."""

    def __init__(self, folder: Path) -> None:
        self.password = secrets.token_urlsafe(24)
        self._introductions = 0
        self.nodes = [
            RedisProgram(
                _made(folder / f"node{number}"),
                settings=[
                    "cluster-enabled yes",
                    "cluster-node-timeout 1000",
                    f"cluster-port {free_port()}",
                    "cluster-require-full-coverage no",
                    f"masterauth {self.password}",
                ],
                password=self.password,
            )
            for number in range(3)
        ]

    @property
    def url(self) -> str:
        places = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])
        return f"redis+cluster://{USER}:{self.password}@{places}"

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        bounds = [0, SLOTS // 3, 2 * SLOTS // 3, SLOTS]
        for number, node in enumerate(self.nodes):
            with Redis.from_url(node.admin_url) as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        self._introduce()
        while not happens(lambda: all(map(self._whole, self.nodes)), within_s=3.0):
            self._introduce()

    def _introduce(self) -> None:
        """A node forgets an introduction that was not answered within its timeout, so it may take more than one."""
        first, *others = self.nodes
        self._introductions += 1
        if self._introductions > 10:
            pytest.fail("the nodes of the Cluster do not get to know each other")
        bus = next(line.split()[1] for line in first.settings if line.startswith("cluster-port"))
        for node in others:
            with Redis.from_url(node.admin_url) as client:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", first.port, bus)

    def empty(self) -> None:
        for node in self.nodes:
            node.empty()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def node_of(self, key: str) -> RedisProgram:
        with Redis.from_url(self.nodes[0].admin_url) as client:
            ranges = client.execute_command("CLUSTER", "SLOTS")
        slot = key_slot(key.encode())
        port = next(at[1] for first, last, at, *_ in ranges if first <= slot <= last)
        return next(node for node in self.nodes if node.port == port)

    def move(self, key: str, to: RedisProgram) -> None:
        """Move the slot of this key, with all keys of it."""
        source, slot = self.node_of(key), key_slot(key.encode())
        with Redis.from_url(source.admin_url) as giver, Redis.from_url(to.admin_url) as taker:
            giver_id, taker_id = giver.execute_command("CLUSTER", "MYID"), taker.execute_command("CLUSTER", "MYID")
            taker.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", giver_id)
            giver.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", taker_id)
            while keys := giver.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                giver.execute_command(
                    "MIGRATE", "127.0.0.1", to.port, "", 0, 5_000, "AUTH", self.password, "KEYS", *keys
                )
            for client in (taker, giver):
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", taker_id)

    def _whole(self, node: RedisProgram) -> bool:
        with Redis.from_url(node.admin_url) as client:
            return {b"cluster_state:ok", b"cluster_known_nodes:3", b"cluster_slots_ok:16384"} <= {
                *client.execute_command("CLUSTER", "INFO").split()
            }


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
