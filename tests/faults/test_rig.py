"""The rig breaks what it says it breaks: servers, namespaces, processes, and the schedule of faults."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fault_cluster import Cluster
from fault_kinds import link_cut, member_killed, member_lost, member_paused
from fault_nemesis import Fault, Nemesis, all_ready, lag_below
from fault_netns import Namespace, namespace, sweep
from fault_processes import Program, private_port, python, until
from fault_proxy import Proxy
from fault_redis import RedisNode, SentinelSet

HERE = Path(__file__).parent


def fake_role(role: str) -> list[str]:
    return python(str(HERE / "fault_role.py"))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, bus="redis://bus", store="postgresql://store", partitions=4, command=fake_role) as cluster:
        yield cluster


# -- redis ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RedisNode]:
    node = RedisNode(tmp_path / "redis")
    node.start()
    yield node
    node.kill()


def fill(node: RedisNode, n: int) -> None:
    for number in range(1, n + 1):
        node.ask("XADD", "s", f"7-{number}", "entry", "x" * 50)


def last(node: RedisNode) -> str:
    with node.client() as client:
        newest = client.xrevrange("s", count=1)
    return newest[0][0].decode() if newest else ""


def test_killed_redis_comes_back_with_everything(node: RedisNode) -> None:
    fill(node, 100)
    node.restart()
    assert last(node) == "7-100"


@pytest.mark.parametrize(("n", "ends"), [(1, "7-99"), (150, "7-98"), (1_000, "7-89")])
def test_redis_that_lost_its_newest_bytes_ends_with_the_last_whole_command(node: RedisNode, n: int, ends: str) -> None:
    fill(node, 100)
    size = node.newest_log().stat().st_size
    assert node.lose_newest(n) == n
    assert last(node) == ends
    assert node.newest_log().stat().st_size <= size - n
    node.ask("XADD", "s", "7-200", "entry", "what came afterwards")
    node.restart()
    assert last(node) == "7-200"


def test_torn_log_is_repaired_by_redis_own_program(node: RedisNode) -> None:
    fill(node, 10)
    node.kill()
    log = node.newest_log()
    log.write_bytes(log.read_bytes()[:-5])
    assert "Successfully truncated AOF" in node.repair()
    node.start()
    assert last(node) == "7-9"


def test_redis_that_lost_everything_is_empty(node: RedisNode) -> None:
    fill(node, 10)
    node.lose_everything()
    assert last(node) == ""


def test_sentinels_promote_a_replica_and_the_old_master_follows_it(tmp_path: Path) -> None:
    sentinels = SentinelSet(tmp_path)
    try:
        sentinels.start()
        old = sentinels.master()
        with old.client() as client:
            client.set("k", "v")
            assert client.wait(2, 5_000) == 2
        new = sentinels.fail_over()
        with new.client() as client:
            assert client.get("k") == b"v"
            client.set("k", "w")
        old.start()
        until(lambda: old.ask("GET", "k") == b"w", "the old master follows the new one")
    finally:
        sentinels.end()


# -- processes --------------------------------------------------------------------------------------------------------


def test_programs_die_with_the_run_that_started_them(tmp_path: Path) -> None:
    script = (
        f"import sys, time; sys.path.insert(0, {str(HERE)!r}); from pathlib import Path; import fault_processes as f\n"
        f"p = f.Program('child', f.python('-c', 'import time; time.sleep(600)'), log=Path({str(tmp_path / 'log')!r}))\n"
        "p.start(); print(p.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(python("-c", script), stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        child = psutil.Process(int(run.stdout.readline()))
        until(lambda: child.name() != "setpriv", "the child is told with whom it dies")
        run.send_signal(signal.SIGKILL)
        run.wait()
    gone, _ = psutil.wait_procs([child], timeout=10)
    assert gone == [child]


def test_program_that_ignores_sigterm_is_killed_and_told_of(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    program = Program("deaf", python("-c", deaf), log=tmp_path / "log")
    program.start()
    until(lambda: "\ndeaf\n" in program.tail(), "it ignores SIGTERM")
    with pytest.raises(TimeoutError, match=r"deaf did not end within 0\.1 s of SIGTERM"):
        program.stop(within_s=0.1)
    assert program.returncode == -signal.SIGKILL


def test_cluster_waits_until_all_are_ready_and_tells_each_where_the_servers_are(cluster: Cluster) -> None:
    cluster.add("bars", count=2)
    started_s = time.monotonic()
    cluster.add("ingest", "--ready-after", "0.3", "--journal", "{folder}/journal")
    cluster.wait_ready()
    assert time.monotonic() - started_s >= 0.3
    assert [member.name for member in cluster.members()] == ["bars-0", "bars-1", "ingest-0"]
    assert f"bus redis://bus, journal {cluster.member('ingest').folder}/journal" in cluster.report()
    assert cluster.worst("lag_seconds") == 3.0
    assert cluster.worst("no_such_metric") is None


def test_member_that_ends_by_itself_fails_the_wait_and_is_started_again_when_tended(cluster: Cluster) -> None:
    (member,) = cluster.add("bars")
    cluster.wait_ready()
    pid = member.program.pid
    member.ask("/fall")
    until(lambda: not member.program.running, "it fell")
    with pytest.raises(RuntimeError, match=r"bars-0 ended\n(.|\n)*ended with 3(.|\n)*falls"):
        cluster.wait_ready()
    assert cluster.tend() == [member]
    cluster.wait_ready()
    assert member.program.pid != pid
    assert cluster.restarts == 1


def test_killed_and_paused_members_are_not_ready_and_those_that_were_ended_are_left_alone(cluster: Cluster) -> None:
    first, second = cluster.add("bars", count=2)
    cluster.wait_ready()
    second.pause()
    assert not cluster.ready("bars")
    second.resume()
    assert cluster.ready("bars")
    cluster.kill("bars", 1)
    assert not second.ready()
    assert cluster.tend() == []
    assert cluster.ready("bars")
    assert first.stop() == 0
    cluster.restart("bars", 1)
    cluster.wait_ready()


def test_role_is_scaled_up_and_down_by_number(cluster: Cluster) -> None:
    cluster.add("scanner")
    cluster.scale("scanner", 3)
    cluster.wait_ready()
    assert len(cluster.running("scanner")) == 3
    cluster.scale("scanner", 1)
    assert [member.number for member in cluster.running("scanner")] == [0]
    assert [member.program.returncode for member in cluster.members("scanner")[1:]] == [0, 0]


def test_logs_go_with_the_error_and_no_process_is_left(tmp_path: Path) -> None:
    def fail() -> None:
        with Cluster(tmp_path, bus="b", store="s", partitions=1, command=fake_role) as cluster:
            members.extend(cluster.add("bars", count=2))
            cluster.wait_ready()
            raise KeyboardInterrupt

    members: list[object] = []
    with pytest.raises(KeyboardInterrupt) as raised:
        fail()
    assert "bus b, journal None" in raised.value.__notes__[0]
    assert not any(child.is_running() for child in psutil.Process().children() if "fault_role" in str(child.cmdline()))


# -- namespaces -------------------------------------------------------------------------------------------------------


@pytest.fixture
def inside() -> Iterator[Namespace]:
    with namespace() as made:
        yield made


def reaches(place: Namespace, node: RedisNode) -> bool:
    try:
        place.connect(node.port, host=place.outside, within_s=0.3).close()
    except OSError:
        return False
    return True


def test_cable_is_cut_each_way_and_mended(inside: Namespace, tmp_path: Path) -> None:
    node = RedisNode(tmp_path / "redis", hosts=("127.0.0.1", inside.outside))
    node.start()
    try:
        assert reaches(inside, node)
        for direction in ("both", "out", "in"):
            inside.cut(direction)
            assert not reaches(inside, node)
            inside.mend()
            assert reaches(inside, node)
        inside.unplug()
        with pytest.raises(OSError, match="unreachable"):
            inside.connect(node.port, host=inside.outside)
        inside.mend()
        assert reaches(inside, node)
    finally:
        node.kill()


def test_master_that_is_split_from_the_rest_confirms_writes_that_the_next_master_does_not_have(
    inside: Namespace, tmp_path: Path
) -> None:
    sentinels = SentinelSet(tmp_path, inside=inside)
    try:
        sentinels.start()
        old = sentinels.master()
        old.ask("SET", "k", "before")
        with inside.connect(old.port, host=inside.inside) as neighbour:
            inside.cut()
            neighbour.sendall(f"AUTH {old.password}\r\nSET k lost\r\n".encode())
            new = sentinels.successor_of(old)
            neighbour.settimeout(5.0)
            said = b""
            while said.count(b"+OK\r\n") < 2:
                said += neighbour.recv(100)
        assert new.ask("GET", "k") == b"before"
    finally:
        sentinels.end()


def test_role_in_a_namespace_is_probed_there_and_killed_from_here(inside: Namespace, cluster: Cluster) -> None:
    (member,) = cluster.add("bars", bus=f"redis://{inside.outside}:1/0", namespace=inside)
    cluster.wait_ready()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", member.probe_port), 1.0)
    inside.cut()
    assert member.ready()  # a probe of its own machine
    member.kill()
    assert not member.ready()


def test_proxy_stands_in_for_a_server_that_listens_on_loopback_only(inside: Namespace, tmp_path: Path) -> None:
    node = RedisNode(tmp_path / "redis")
    node.start()
    try:
        with (
            Proxy(("127.0.0.1", node.port), host=inside.outside) as proxy,
            inside.connect(proxy.port, host=proxy.host) as client,
        ):
            client.sendall(b"PING\r\n")
            assert client.recv(100).startswith(b"-NOAUTH")
    finally:
        node.kill()


def test_nothing_is_left_of_a_namespace_and_those_of_dead_makers_are_swept(inside: Namespace) -> None:
    def named() -> str:
        return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout

    def fail() -> None:
        with namespace() as made:
            names.append(made.name)
            assert made.name in named()
            raise ZeroDivisionError

    names: list[str] = []
    with pytest.raises(ZeroDivisionError):
        fail()
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    orphan = f"twf{dead.pid}-0000"
    subprocess.run(["ip", "netns", "add", orphan], check=True)
    sweep()
    left = named()
    assert names[0] not in left
    assert orphan not in left
    assert inside.name in left


# -- the schedule -----------------------------------------------------------------------------------------------------


def test_same_seed_makes_the_same_schedule(tmp_path: Path) -> None:
    faults = [Fault(name=name, begin=list, end=list) for name in "abc"]

    def planned(seed: int) -> list[tuple[str, float, float]]:
        nemesis = Nemesis(seed=seed, faults=faults, signs={}, log=tmp_path / "log")
        return [(a.fault.name, a.at_s, a.hold_s) for a in nemesis.schedule(seconds=120)]

    assert planned(1) == planned(1) != planned(2)
    assert {name for name, _, _ in planned(1)} == {"a", "b", "c"}
    ends = [at_s + hold_s for _, at_s, hold_s in planned(1)]
    assert all(at_s > end_s for (_, at_s, _), end_s in zip(planned(1)[1:], ends, strict=False))
    assert ends[-1] <= 120


def test_time_to_recover_runs_from_the_end_of_each_fault(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.add("bars", "--ready-after", "0.4", count=2)
    cluster.add("scanner")
    cluster.wait_ready()
    nemesis = Nemesis(
        seed=5,
        faults=[
            member_killed(cluster, "bars", hold_s=(0.0, 0.1)),
            member_paused(cluster, "scanner", hold_s=(0.1, 0.2)),
        ],
        signs={"ready": all_ready(cluster), "lag": lag_below(cluster, "lag_seconds", least=1.0)},
        log=tmp_path / "nemesis.ndjson",
        cluster=cluster,
        patience_s=1.5,
    )
    appointments = nemesis.schedule(seconds=1.0, pause_s=(0.05, 0.1))[:2]
    killed, paused = sorted(nemesis.run(appointments), key=lambda suffered: suffered.fault)
    assert killed.fault == "kill bars-0"
    assert killed.recovered_s["ready"] is not None
    assert 0.4 <= killed.recovered_s["ready"] < 1.5
    assert paused.fault == "pause scanner-0"
    assert paused.recovered_s["ready"] is not None
    assert killed.recovered_s["lag"] is paused.recovered_s["lag"] is None  # the fake's lag is three seconds, always
    assert "nemesis: seed 5, 2 faults" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "nemesis.ndjson").read_text().splitlines()]
    assert [line["fault"] for line in lines] == [a.fault.name for a in appointments]
    assert "kill bars-0, lag: 1 times, never, 1 not in time" in nemesis.report()


def test_what_is_lost_for_good_is_recovered_from_by_the_others(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add("bars", count=2)
    cluster.wait_ready()
    with Proxy(("127.0.0.1", private_port())) as proxy:
        nemesis = Nemesis(
            seed=1,
            faults=[member_lost(cluster, "bars", 1), link_cut("nowhere", proxy, hold_s=(0.0, 0.1))],
            signs={"ready": all_ready(cluster)},
            log=tmp_path / "nemesis.ndjson",
            cluster=cluster,
        )
        suffered = nemesis.run(nemesis.schedule(seconds=2.0, pause_s=(0.01, 0.02))[:2])
    assert all(one.recovered_s["ready"] is not None for one in suffered)
    assert [member.number for member in cluster.running("bars")] == [0]
    assert os.getpid() not in {member.program.pid for member in cluster.members()}
