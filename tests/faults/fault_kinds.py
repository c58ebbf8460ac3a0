"""What the nemesis may do to a running system, by name."""

from typing import Protocol

from fault_cluster import Cluster
from fault_nemesis import Fault
from fault_netns import Direction, Namespace
from fault_proxy import Proxy
from fault_redis import RedisNode, SentinelSet

Hold = tuple[float, float]


class Server(Protocol):
    """A server that can be broken: `RedisNode`, `RedisProgram`, `PostgresProgram`."""

    def start(self) -> None: ...
    def kill(self) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...


# -- processes --------------------------------------------------------------------------------------------------------


def member_killed(cluster: Cluster, role: str, number: int = 0, *, hold_s: Hold = (0.1, 1.0)) -> Fault:
    """SIGKILL, and started again after a while."""
    member = cluster.member(role, number)
    return Fault(name=f"kill {member.name}", begin=member.kill, end=member.start, hold_s=hold_s)


def member_lost(cluster: Cluster, role: str, number: int = 0) -> Fault:
    """SIGKILL for good: the others take over. Can happen once."""
    member = cluster.member(role, number)
    return Fault(name=f"lose {member.name}", begin=member.kill)


def member_paused(cluster: Cluster, role: str, number: int = 0, *, hold_s: Hold = (0.5, 5.0)) -> Fault:
    """SIGSTOP. Longer than its lease, somebody else has its work when it wakes up."""
    member = cluster.member(role, number)
    return Fault(name=f"pause {member.name}", begin=member.pause, end=member.resume, hold_s=hold_s)


def member_rolled(cluster: Cluster, role: str, number: int = 0, *, hold_s: Hold = (0.0, 0.5)) -> Fault:
    """SIGTERM, and started again, as a new release is rolled out."""
    member = cluster.member(role, number)
    return Fault(name=f"roll {member.name}", begin=member.stop, end=member.start, hold_s=hold_s)


def role_scaled(cluster: Cluster, role: str, to: int, back: int, *, hold_s: Hold = (2.0, 5.0)) -> Fault:
    return Fault(
        name=f"scale {role} to {to}",
        begin=lambda: cluster.scale(role, to),
        end=lambda: cluster.scale(role, back),
        hold_s=hold_s,
    )


# -- servers ----------------------------------------------------------------------------------------------------------


def server_killed(name: str, server: Server, *, hold_s: Hold = (0.1, 1.0)) -> Fault:
    return Fault(name=f"kill {name}", begin=server.kill, end=server.start, hold_s=hold_s)


def server_frozen(name: str, server: Server, *, hold_s: Hold = (0.5, 3.0)) -> Fault:
    return Fault(name=f"freeze {name}", begin=server.freeze, end=server.thaw, hold_s=hold_s)


def newest_lost(redis: RedisNode, n: int) -> Fault:
    """It comes back at once without the last `n` bytes that it wrote."""
    return Fault(name=f"lose {n} bytes of redis", begin=lambda: redis.lose_newest(n))


def everything_lost(redis: RedisNode) -> Fault:
    return Fault(name="lose all of redis", begin=redis.lose_everything)


def failover(sentinels: SentinelSet, proxy: Proxy) -> Fault:
    """The master dies, and the proxy's address follows the next one. The old one comes back as a replica."""
    old = sentinels.master()

    def begin() -> None:
        nonlocal old
        old = sentinels.master()
        new = sentinels.fail_over()
        proxy.retarget((new.hosts[0], new.port))

    def end() -> None:
        old.start()

    return Fault(name="fail over", begin=begin, end=end, hold_s=(0.0, 0.0))


# -- links ------------------------------------------------------------------------------------------------------------


def link_cut(name: str, proxy: Proxy, *, hold_s: Hold = (0.5, 3.0)) -> Fault:
    return Fault(name=f"cut {name}", begin=proxy.cut, end=proxy.mend, hold_s=hold_s)


def link_hung(name: str, proxy: Proxy, *, hold_s: Hold = (0.5, 3.0)) -> Fault:
    return Fault(name=f"hang {name}", begin=proxy.hang, end=proxy.mend, hold_s=hold_s)


def link_reset(name: str, proxy: Proxy) -> Fault:
    return Fault(name=f"reset {name}", begin=proxy.reset)


def link_forgotten(name: str, proxy: Proxy) -> Fault:
    """Every connection is half-open from now on."""
    return Fault(name=f"forget connections of {name}", begin=proxy.forget_connections)


def link_slow(name: str, proxy: Proxy, *, latency_s: float, jitter_s: float, hold_s: Hold = (1.0, 4.0)) -> Fault:
    return Fault(
        name=f"slow {name}",
        begin=lambda: proxy.slow(latency_s, jitter_s=jitter_s),
        end=proxy.mend,
        hold_s=hold_s,
    )


def reply_lost(name: str, proxy: Proxy, matching: str) -> Fault:
    """It lasts until the next such command has been carried out."""
    return Fault(name=f"lose the reply of {matching} of {name}", begin=lambda: proxy.lose_reply(matching).wait())


def cable_cut(name: str, namespace: Namespace, *, direction: Direction = "both", hold_s: Hold = (0.5, 3.0)) -> Fault:
    return Fault(
        name=f"cut {direction} of {name}",
        begin=lambda: namespace.cut(direction),
        end=namespace.mend,
        hold_s=hold_s,
    )
