"""Redis servers to break: one whose newest writes are lost as when the power fails, and a set that Sentinel watches."""

import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fault_netns import Namespace
from fault_processes import Program, found_program, private_port, until
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from servers import USER, user_line

Fsync = Literal["always", "everysec", "no"]
MASTER = "tapewatch"
_TIMEOUT_S = 1.0


class RedisNode:
    """A `redis-server` with a password and an append-only file, so that a killed one comes back as it was."""

    def __init__(
        self,
        folder: Path,
        *,
        hosts: Sequence[str] = ("127.0.0.1",),
        inside: Namespace | None = None,
        password: str | None = None,
        fsync: Fsync = "everysec",
        replica_of: "RedisNode | None" = None,
        settings: Sequence[str] = (),
    ) -> None:
        """It listens at all `hosts`; the first one is that of `url`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.hosts = tuple(hosts)
        self.port = private_port()
        self.password = password or secrets.token_urlsafe(24)
        self._lines = [
            f"port {self.port}",
            f"bind {' '.join(self.hosts)}",
            f"dir {folder}",
            'save ""',
            "appendonly yes",
            f"appendfsync {fsync}",
            "aof-load-truncated yes",
            "repl-diskless-sync-delay 0",
            f"requirepass {self.password}",
            f"masterauth {self.password}",
            user_line(self.password),
            *([f"replicaof {replica_of.hosts[0]} {replica_of.port}"] if replica_of else []),
            *settings,
        ]
        server = found_program("redis-server", package="redis-server")
        prefix = inside.prefix if inside else ()
        self.program = Program("redis", [server, str(folder / "redis.conf")], log=folder / "log", prefix=prefix)

    @property
    def url(self) -> str:
        return self.url_at(self.hosts[0], self.port)

    def url_at(self, host: str, port: int) -> str:
        """Its address behind a proxy, or as seen from a namespace."""
        return f"redis://{USER}:{self.password}@{host}:{port}/0"

    def client(self) -> "Redis":
        """One who may do everything. It sends nothing twice by itself."""
        return Redis(
            self.hosts[0],
            self.port,
            password=self.password,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )

    def start(self) -> None:
        """Returns when it answers, with what is on its disk."""
        configuration = self.folder / "redis.conf"
        if not configuration.exists():  # a failover writes its own lines into it, which a restart must find
            # The password stands in a file, because a command line can be read by everybody.
            configuration.write_text("\n".join([*self._lines, ""]))
        self.program.start()
        try:
            until(self._answers, "redis-server answers")
        except TimeoutError as error:
            error.add_note(self.program.tail())
            raise

    def kill(self) -> None:
        self.program.kill()

    def freeze(self) -> None:
        self.program.pause()

    def thaw(self) -> None:
        self.program.resume()

    def restart(self) -> None:
        """SIGKILL, and start again."""
        self.kill()
        self.start()

    def lose_newest(self, n: int) -> int:
        """Kill it, cut `n` bytes off the log that it writes, and start it again; says how many were there to cut.

        What was confirmed after the last fsync may be lost so when the power fails, and when a replica takes over that
        lagged. A command that is cut in its middle is lost as a whole.
        """
        self.kill()
        log = self.newest_log()
        size = log.stat().st_size
        cut = min(n, size)
        with log.open("r+b") as file:
            file.truncate(size - cut)
        self.start()
        return cut

    def repair(self) -> str:
        """What `redis-check-aof --fix` says of the log of a server that is down; a torn end is cut off."""
        checker = found_program("redis-check-aof", package="redis-tools")
        log = self.newest_log()
        done = subprocess.run([checker, "--fix", str(log)], input="y\n", capture_output=True, text=True, check=True)
        return done.stdout

    def lose_everything(self) -> None:
        """Kill it, and start it again with an empty disk."""
        self.kill()
        shutil.rmtree(self.folder / "appendonlydir")
        self.start()

    def newest_log(self) -> Path:
        """The incremental file that is written to."""
        logs = (self.folder / "appendonlydir").glob("*.incr.aof")
        return max(logs, key=lambda log: int(log.name.split(".")[-3]))

    def ask(self, *words: str) -> Any:
        """The reply to a command; None while the server is away, reads its disk, or closes the connection."""
        try:
            with self.client() as client:
                return client.execute_command(*words)
        except RedisError:
            return None

    def _answers(self) -> bool:
        if not self.program.running:
            raise RuntimeError(f"redis-server ended\n{self.program.tail()}")
        return bool(self.ask("PING"))


class SentinelSet:
    """A master, two replicas and three sentinels that take the master for dead after a second."""

    def __init__(self, folder: Path, *, settings: Sequence[str] = (), inside: Namespace | None = None) -> None:
        """`settings` of all three nodes, such as ``min-replicas-to-write 1``. The master and one sentinel may be inside
        a namespace, to be split from the rest.
        """
        there = inside.inside if inside else "127.0.0.1"
        here = inside.outside if inside else "127.0.0.1"
        first = RedisNode(
            folder / "node-0", hosts=(there,), inside=inside, settings=[*settings, f"replica-announce-ip {there}"]
        )
        self.password = first.password
        others = [*settings, f"replica-announce-ip {here}"]
        self.nodes = [first] + [
            RedisNode(folder / f"node-{n}", hosts=(here,), password=self.password, replica_of=first, settings=others)
            for n in (1, 2)
        ]
        self.places = [(host, private_port()) for host in (there, here, here)]
        """Of the sentinels."""
        server = found_program("redis-server", package="redis-server")
        self.sentinels: list[Program] = []
        for n, (host, port) in enumerate(self.places):
            place = folder / f"sentinel-{n}"
            place.mkdir(parents=True)
            lines = [
                f"port {port}",
                f"bind {host}",
                "protected-mode no",
                f"dir {place}",
                f"sentinel announce-ip {host}",
                f"sentinel monitor {MASTER} {there} {first.port} 2",
                f"sentinel auth-pass {MASTER} {self.password}",
                f"sentinel down-after-milliseconds {MASTER} 1000",
                f"sentinel failover-timeout {MASTER} 3000",
                f"sentinel parallel-syncs {MASTER} 1",
            ]
            (place / "sentinel.conf").write_text("\n".join([*lines, ""]))
            command = [server, str(place / "sentinel.conf"), "--sentinel"]
            prefix = inside.prefix if inside and n == 0 else ()
            self.sentinels.append(Program(f"sentinel {n}", command, log=place / "log", prefix=prefix))

    @property
    def url(self) -> str:
        """The master, wherever the sentinels say that it is."""
        places = ",".join(f"{host}:{port}" for host, port in self.places)
        return f"redis+sentinel://{USER}:{self.password}@{places}/{MASTER}/0"

    def start(self) -> None:
        """Returns when both replicas follow, and the sentinels know them and each other."""
        for node in self.nodes:
            node.start()
        for sentinel in self.sentinels:
            sentinel.start()
        until(self._complete, "the set is complete")

    def end(self) -> None:
        for sentinel in self.sentinels:
            sentinel.kill()
        for node in self.nodes:
            node.kill()

    def master(self) -> RedisNode:
        """The one that most sentinels name."""
        named = [port for place in self.places if (port := _master_by(*place)) is not None]
        port = max(named, key=named.count)
        return next(node for node in self.nodes if node.port == port)

    def fail_over(self) -> RedisNode:
        """Kill the master, and wait for the next one to take writes."""
        old = self.master()
        old.kill()
        return self.successor_of(old)

    def successor_of(self, old: RedisNode) -> RedisNode:
        """Wait until another one is the master."""
        return until(lambda: self._successor(old), "a replica was promoted")

    def _successor(self, old: RedisNode) -> RedisNode | None:
        new = self.master()
        role = new.ask("ROLE") if new is not old else None
        return new if role and role[0] == b"master" else None

    def _complete(self) -> bool:
        for host, port in self.places:
            try:
                with Redis(host, port, socket_timeout=_TIMEOUT_S, decode_responses=True) as client:
                    known: Any = client.sentinel_master(MASTER)
            except RedisError:
                return False
            if (known["num-slaves"], known["num-other-sentinels"]) != (2, 2):
                return False
        roles = [node.ask("ROLE") for node in self.nodes[1:]]
        return all(role and role[3] == b"connected" for role in roles)


def _master_by(host: str, port: int) -> int | None:
    """The port of the master by one sentinel; None if that one is away."""
    patience: dict[str, Any] = {"socket_timeout": _TIMEOUT_S, "socket_connect_timeout": _TIMEOUT_S}
    try:
        with Redis(host, port, decode_responses=True, retry=Retry(NoBackoff(), 0), **patience) as client:
            said: Any = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
    except RedisError:
        return None
    return int(said[1]) if said else None
