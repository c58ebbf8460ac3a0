"""The proxy does to connections what it says, and nothing else."""

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_frames import RedisFrames
from fault_proxy import Flow, Proxy
from fault_redis import RedisNode
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as Gone
from redis.exceptions import TimeoutError as NoReply
from redis.retry import Retry

SHORT_S = 0.15
LONG_S = 10.0


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        try:
            while data := self.request.recv(1 << 16):
                self.request.sendall(data)
        except OSError:
            pass  # the proxy was told to reset


class EchoServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    with EchoServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield "127.0.0.1", server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(echo: tuple[str, int]) -> Iterator[Proxy]:
    with Proxy(echo) as proxy:
        yield proxy


def dial(proxy: Proxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), LONG_S)


def said(client: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n and (more := client.recv(1 << 16)):
        data += more
    return data


def exchange(client: socket.socket, data: bytes = b"hello") -> float:
    """Seconds until the echo was back."""
    started_s = time.monotonic()
    client.sendall(data)
    assert said(client, len(data)) == data
    return time.monotonic() - started_s


def is_silent(client: socket.socket) -> bool:
    client.settimeout(SHORT_S)
    try:
        return client.recv(1) is None
    except TimeoutError:
        return True
    finally:
        client.settimeout(LONG_S)


def test_bytes_pass_unchanged_and_are_counted(proxy: Proxy) -> None:
    data = bytes(range(256)) * 4_096
    with dial(proxy) as client:
        threading.Thread(target=client.sendall, args=(data,)).start()
        assert said(client, len(data)) == data
    assert (proxy.traffic.connections, proxy.traffic.to_server_bytes) == (1, len(data))


def test_end_of_one_direction_is_passed_on_and_the_other_goes_on(proxy: Proxy) -> None:
    with dial(proxy) as client:
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        assert said(client, 100) == b"last words"


def test_latency_counts_both_ways_and_ends_when_mended(proxy: Proxy) -> None:
    with dial(proxy) as client:
        exchange(client)
        proxy.slow(0.1, jitter_s=0.02)
        assert exchange(client) >= 0.16
        proxy.slow(LONG_S)
        client.sendall(b"held back")
        assert is_silent(client)
        started_s = time.monotonic()
        proxy.mend()
        assert said(client, 9) == b"held back"
        assert time.monotonic() - started_s < LONG_S / 2


def test_jitter_never_reorders(proxy: Proxy) -> None:
    proxy.slow(0.01, jitter_s=0.01)
    data = [f"{n:04}".encode() for n in range(200)]
    with dial(proxy) as client:
        for piece in data:
            client.sendall(piece)
        assert said(client, 800) == b"".join(data)


def test_cut_ends_connections_and_refuses_new_ones_until_mended(proxy: Proxy) -> None:
    with dial(proxy) as client:
        exchange(client)
        proxy.cut()
        assert client.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            dial(proxy)
        proxy.mend()
    with dial(proxy) as client:
        exchange(client)


def test_hang_accepts_and_holds_everything_back_until_mended(proxy: Proxy) -> None:
    with dial(proxy) as old:
        exchange(old)
        proxy.hang()
        with dial(proxy) as new:
            for client in (old, new):
                client.sendall(b"hello")
            assert is_silent(old)
            assert is_silent(new)
            proxy.mend()
            for client in (old, new):
                assert said(client, 5) == b"hello"


def test_one_direction_can_hang_alone(proxy: Proxy, echo: tuple[str, int]) -> None:
    with dial(proxy) as client:
        exchange(client)
        passed = proxy.traffic.to_server_bytes
        proxy.shape(to_client=Flow(passing=False))
        client.sendall(b"hello")
        assert is_silent(client)
        assert proxy.traffic.to_server_bytes == passed + 5


def test_reset_is_told_and_new_connections_are_served(proxy: Proxy) -> None:
    with dial(proxy) as client:
        exchange(client)
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with dial(proxy) as client:
        exchange(client)


def test_half_open_connection_stays_silent_for_good_and_new_ones_are_served(proxy: Proxy) -> None:
    with dial(proxy) as old:
        exchange(old)
        proxy.forget_connections()
        old.sendall(b"is anybody there")
        assert is_silent(old)
        proxy.mend()
        assert is_silent(old)
        with dial(proxy) as new:
            exchange(new)


def test_bandwidth_and_slices_take_their_time(proxy: Proxy) -> None:
    with dial(proxy) as client:
        proxy.shape(to_server=Flow(bytes_per_s=50_000))
        assert exchange(client, b"x" * 10_000) >= 0.14
        proxy.shape(to_server=Flow(slice_bytes=100, slice_pause_s=0.01))
        assert exchange(client, b"x" * 2_000) >= 0.18


def test_connections_follow_the_address_to_another_server(proxy: Proxy, echo: tuple[str, int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, dial(proxy) as client:
        exchange(client)
        proxy.retarget(("127.0.0.1", other.getsockname()[1]))
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with dial(proxy):
            other.settimeout(LONG_S)
            other.accept()[0].close()


# -- one reply --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisNode]:
    node = RedisNode(tmp_path_factory.mktemp("redis"))
    node.start()
    yield node
    node.kill()


@pytest.fixture
def between(node: RedisNode) -> Iterator[Proxy]:
    with node.client() as client:
        client.flushall()
    with Proxy(("127.0.0.1", node.port), frames=RedisFrames) as proxy:
        yield proxy


def through(proxy: Proxy, node: RedisNode) -> Redis:
    """A client that sends nothing twice by itself."""
    url = node.url_at(proxy.host, proxy.port)
    return Redis.from_url(url, socket_timeout=1.0, retry=Retry(NoBackoff(), 0))


def test_lost_reply_of_the_second_of_a_kind_leaves_its_effect(between: Proxy, node: RedisNode) -> None:
    with through(between, node) as client:
        loss = between.lose_reply("xadd", skip=1)
        client.xadd("s", {"n": 1})
        client.set("k", "v")
        with pytest.raises(Gone):
            client.xadd("s", {"n": 2})
        assert loss.wait().words[:2] == (b"XADD", b"s")
        assert client.xlen("s") == 2  # on a new connection
        client.xadd("s", {"n": 3})  # it happens once


def test_lost_reply_with_silence_is_a_timeout(between: Proxy, node: RedisNode) -> None:
    with through(between, node) as client:
        client.ping()
        between.lose_reply(lambda request: request.words[1:2] == (b"n",), then="silence")
        client.incr("m")
        with pytest.raises(NoReply):
            client.incr("n")
        assert client.get("n") == b"1"


def test_lost_request_has_no_effect(between: Proxy, node: RedisNode) -> None:
    with through(between, node) as client:
        between.lose_request("XADD")
        with pytest.raises(Gone):
            client.xadd("s", {"n": 1})
        assert client.xlen("s") == 0


def test_replies_before_the_lost_one_arrive(between: Proxy, node: RedisNode) -> None:
    between.lose_reply("INCR", skip=2)
    with dial(between) as client:
        client.sendall(f"AUTH {node.password}\r\nINCR n\r\nINCR n\r\nINCR n\r\nINCR n\r\n".encode())
        assert said(client, 1_000) == b"+OK\r\n:1\r\n:2\r\n"
    with node.client() as client_:
        assert client_.get("n") == b"4"


def test_large_values_and_a_subscription_pass(between: Proxy, node: RedisNode) -> None:
    with through(between, node) as client, client.pubsub() as listening:
        client.set("k", b"\r\n$5\r\n" * 50_000)
        assert client.get("k") == b"\r\n$5\r\n" * 50_000
        listening.subscribe("c")
        assert listening.get_message(timeout=LONG_S)
        client.publish("c", "news")
        message = listening.get_message(timeout=LONG_S)
        assert message is not None
        assert message["data"] == b"news"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
def test_frames_end_where_they_end_however_the_bytes_are_cut(size: int) -> None:
    asked = b"*2\r\n$3\r\nGET\r\n$4\r\n\r\n$1\r\nPING\r\n*1\r\n$4\r\nexec\r\n"
    answered = b"$4\r\n\r\n:1\r\n+PONG\r\n*2\r\n*2\r\n:1\r\n$-1\r\n*-1\r\n"
    frames = RedisFrames()
    asks = [pair for at in range(0, len(asked), size) for pair in frames.to_server(asked[at : at + size])]
    answers = [pair for at in range(0, len(answered), size) for pair in frames.to_client(answered[at : at + size])]
    assert b"".join(frame for frame, _ in asks) == asked
    assert [request.words for _, request in asks if request] == [(b"GET", b"\r\n$1"), (b"PING",), (b"exec",)]
    assert [frame for frame, _ in answers] == [b"$4\r\n\r\n:1\r\n", b"+PONG\r\n", b"*2\r\n*2\r\n:1\r\n$-1\r\n*-1\r\n"]
    assert [request.name for _, request in answers if request] == ["GET", "PING", "EXEC"]


def test_a_proxy_without_frames_refuses_to_lose_one_reply(proxy: Proxy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frames"):
        proxy.lose_reply("XADD")
