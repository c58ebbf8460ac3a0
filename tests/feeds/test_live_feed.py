"""One connection to a provider, over real sockets on loopback: time, queue, silence, and every way in which it ends."""

import asyncio
import gc
import json
import logging
import ssl
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any

import numpy as np
import pytest
import trustme
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from tapewatch.eligibility import load_profile
from tapewatch.engine.bars import BarBuilder, empty_bars
from tapewatch.engine.columns import SECOND_NS, Bars, Batch, Gap, make_batch
from tapewatch.errors import FeedLost, FeedRefused
from tapewatch.feeds.dictionary import Dictionary
from tapewatch.feeds.failover import FailoverFeed
from tapewatch.feeds.live import Inbox, Limits, LiveFeed
from tapewatch.feeds.quarantine import Quarantine
from tapewatch.feeds.session import Received
from tapewatch.feeds.transport import tcp, websocket
from tapewatch.nyse import trading_days
from tapewatch.ports import Feed
from tapewatch.telemetry import FEED_OVERFLOW_FRAMES_TOTAL

pytestmark = pytest.mark.anyio
HOUR_S = 3600
SECRET = "planted-9f3c-in-many-places"  # noqa: S105  # it opens nothing


class Talk:
    """A session of the tests' own: a frame is a JSON list. ["ready"], ["ask", text], ["end", reason], ["refuse", why],
    ["bars"], ["fail"], or rows as [symbol, time in ns, price].
    """

    def __init__(self, symbols: Dictionary, quarantine: Quarantine) -> None:
        self.ready = False
        self.quarantine = quarantine
        self._symbols = symbols

    def opening(self) -> Sequence[str | bytes]:
        return ["hello", SECRET]

    def receive(self, frames: Sequence[tuple[int, bytes]]) -> Received:
        rows: list[list[Any]] = []
        replies: list[str | bytes] = []
        bars: list[Bars] = []
        ended: FeedLost | FeedRefused | None = None
        for _, frame in frames:
            try:
                message = json.loads(frame)
            except ValueError:
                self.quarantine.add("malformed", frame)
                continue
            match message:
                case ["ready"]:
                    self.ready = True
                case ["ask", text]:
                    replies.append(text)
                case ["end", reason]:
                    ended = FeedLost("the provider says so", reason=reason)
                case ["refuse", why]:
                    ended = FeedRefused(why)
                case ["bars"]:
                    bars.append(empty_bars())
                case ["fail"]:
                    raise ZeroDivisionError
                case _:
                    rows += message
        batch = None
        if rows:
            codes = self._symbols.encode([row[0] for row in rows])
            batch = make_batch(
                symbols=self._symbols.names,
                symbol=codes,
                ts_ns=[row[1] for row in rows],
                price=[row[2] for row in rows],
                size=[100.0] * len(rows),
                tape=[ord("C")] * len(rows),
            )
        return Received(batch=batch, bars=bars, replies=replies, ended=ended, notes={"frames": len(frames)})


class Provider:
    """A WebSocket server that says what the test makes it say."""

    def __init__(self) -> None:
        self.url = ""
        self.heard: list[str] = []
        self.sockets: list[ServerConnection] = []
        self.closed: list[int | None] = []

    async def talk(self, socket: ServerConnection) -> None:
        self.sockets.append(socket)
        async for text in socket:
            self.heard.append(str(text))
        self.closed.append(socket.close_code)

    async def say(self, *messages: Any) -> None:
        """To the newest connection."""
        for message in messages:
            await self.sockets[-1].send(message if isinstance(message, str | bytes) else json.dumps(message))


@asynccontextmanager
async def serving(handler: Any = None, **options: Any) -> AsyncIterator[Provider]:
    provider = Provider()
    async with serve(
        handler or provider.talk, "127.0.0.1", 0, ping_interval=None, close_timeout=1, **options
    ) as server:
        provider.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/v2/sip?token={SECRET}"
        yield provider


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with serving() as provider:
        yield provider


OpenFeed = Callable[..., LiveFeed]


@pytest.fixture
def open_feed(clock: Any) -> OpenFeed:
    def make(connect: Any, **options: Any) -> LiveFeed:
        symbols, quarantine = Dictionary(), Quarantine()
        options.setdefault("limits", Limits(drain_s=0.0))
        return LiveFeed(
            name="talk",
            open_session=lambda: Talk(symbols, quarantine),
            connect=(lambda: websocket(connect, headers={"X-Key": SECRET})) if isinstance(connect, str) else connect,
            clock=clock,
            days=trading_days(),
            **options,
        )

    return make


class Listener:
    """Reads a feed in a task of its own, as long as its gate is open."""

    def __init__(self, feed: Feed) -> None:
        self.items: list[Batch | Gap | Bars] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.end: BaseException | None = None
        self._feed = feed

    async def run(self) -> None:
        try:
            async with aclosing(self._feed.batches()) as items:  # type: ignore[type-var]
                async for item in items:
                    self.items.append(item)
                    await self.gate.wait()
        except Exception as error:  # noqa: BLE001
            self.end = error

    @property
    def batches(self) -> list[Batch]:
        return [item for item in self.items if isinstance(item, Batch)]

    @property
    def gaps(self) -> list[Gap]:
        return [item for item in self.items if isinstance(item, Gap)]

    @property
    def prices(self) -> list[float]:
        return [price for batch in self.batches for price in batch.price.tolist()]

    @property
    def marks(self) -> list[int]:
        return [mark for batch in self.batches for mark in batch.marks_ns.tolist()]

    @property
    def reason(self) -> str:
        assert isinstance(self.end, FeedLost)
        return self.end.reason


@asynccontextmanager
async def listening(feed: Feed) -> AsyncIterator[Listener]:
    listener = Listener(feed)
    task = asyncio.create_task(listener.run())
    try:
        yield listener
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def trade(clock: Any, price: float, *, symbol: str = "SPY", after_s: float = 0.0) -> list[list[Any]]:
    return [[symbol, clock.now_ns() + round(after_s * SECOND_NS), price]]


# -- what is said and heard --------------------------------------------------------------------------------------------


async def test_connection_says_hello_answers_and_delivers_in_order(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    feed = open_feed(provider.url)
    async with listening(feed) as listener:
        await eventually(lambda: provider.heard == ["hello", SECRET])
        await provider.say(["ask", "again"], ["ready"])
        await eventually(lambda: provider.heard[2:] == ["again"] and len(listener.items) == 1)
        (ready,) = listener.batches
        assert (len(ready), len(ready.marks_ns)) == (0, 0)  # it serves us, and nothing has traded
        await provider.say(trade(clock, 1.0), "not json", trade(clock, 2.0), ["bars"], b"\xff\xfe")
        await provider.say(trade(clock, 3.0) + trade(clock, 4.0, symbol="ZZZ"))
        await eventually(lambda: listener.prices == [1.0, 2.0, 3.0, 4.0])
        await eventually(lambda: feed.rejected == {"malformed": 2})
    assert sum(isinstance(item, Bars) for item in listener.items) == 1
    assert listener.marks[0] == clock.now_ns()
    assert listener.batches[-1].symbols == ("SPY", "ZZZ")
    assert feed.notes["frames"] == 8
    await eventually(lambda: provider.closed == [1000])  # an orderly goodbye, so that the next connection is let in


async def test_rows_before_the_confirmation_wait_for_it(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    feed = open_feed(provider.url)
    async with listening(feed) as listener:
        await eventually(lambda: bool(provider.sockets))
        await provider.say(trade(clock, 1.0), ["ask", "seen"])
        await eventually(lambda: "seen" in provider.heard)
        assert listener.items == []
        await provider.say(["ready"])
        await eventually(lambda: listener.prices == [1.0])
        assert len(listener.batches[0]) == 0


async def test_rows_that_came_before_the_end_are_delivered_before_it(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    async with listening(open_feed(provider.url)) as listener:
        await eventually(lambda: bool(provider.sockets))
        await provider.say(["ready"], trade(clock, 1.0), ["end", "connection_limit"], trade(clock, 2.0))
        await eventually(lambda: listener.end is not None)
    assert listener.prices[0] == 1.0
    assert listener.reason == "connection_limit"


async def test_refusal_of_the_session_gets_out(provider: Provider, open_feed: OpenFeed, eventually: Any) -> None:
    async with listening(open_feed(provider.url)) as listener:
        await eventually(lambda: bool(provider.sockets))
        await provider.say(["refuse", "no such key"])
        await eventually(lambda: listener.end is not None)
    assert isinstance(listener.end, FeedRefused)


async def test_bug_in_a_session_is_not_taken_for_a_loss(
    provider: Provider, open_feed: OpenFeed, eventually: Any
) -> None:
    async with listening(open_feed(provider.url)) as listener:
        await eventually(lambda: bool(provider.sockets))
        await provider.say(["fail"])
        await eventually(lambda: listener.end is not None)
    assert isinstance(listener.end, ZeroDivisionError)


async def test_nothing_is_left_running_when_nobody_reads_on(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    before = asyncio.all_tasks()
    feed = open_feed(provider.url)
    async with listening(feed) as listener:
        await eventually(lambda: bool(provider.sockets))
        await provider.say(["ready"])
        await eventually(lambda: bool(listener.items))
    await eventually(lambda: bool(provider.closed))
    await eventually(lambda: asyncio.all_tasks() <= before)


# -- time --------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def flowing(provider: Provider, feed: LiveFeed, clock: Any, eventually: Any) -> AsyncIterator[Listener]:
    """A connection that has delivered one trade of SPY at 1.0."""
    async with listening(feed) as listener:
        count = len(provider.sockets)
        await eventually(lambda: len(provider.sockets) > count)
        await provider.say(["ready"], trade(clock, 1.0))
        await eventually(lambda: listener.prices == [1.0])
        yield listener


async def test_time_goes_on_with_the_clock_while_nothing_arrives(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    async with flowing(provider, open_feed(provider.url), clock, eventually) as listener:
        began_ns = clock.now_ns()
        for _ in range(100):
            await clock.walk(0.1)
            assert began_ns < listener.marks[-1] + SECOND_NS // 4 <= clock.now_ns() + SECOND_NS // 4
            assert clock.now_ns() - listener.marks[-1] <= SECOND_NS // 4
        assert listener.prices == [1.0]


async def test_delayed_data_keep_their_delay_while_nothing_arrives(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    feed = open_feed(provider.url, delay_s=900)
    async with listening(feed) as listener:
        await eventually(lambda: bool(provider.sockets))
        await provider.say(["ready"], trade(clock, 1.0, after_s=-900))
        await eventually(lambda: listener.prices == [1.0])
        await clock.walk(5)
        await eventually(lambda: len(listener.marks) > 40)
        assert 899 < (clock.now_ns() - listener.marks[-1]) / SECOND_NS < 901.5


async def test_process_that_stood_still_does_not_run_ahead_of_frames_that_wait(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    async with flowing(provider, open_feed(provider.url), clock, eventually) as listener:
        before_ns = listener.marks[-1]
        await clock.jump(3600)
        await clock.walk(1)
        assert listener.end is None
        assert listener.marks[-1] - before_ns < 2 * SECOND_NS


async def test_jump_over_a_night_makes_no_row_one_of_the_future(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    async with flowing(provider, open_feed(provider.url), clock, eventually) as listener:
        await provider.say(trade(clock, 2.0, after_s=18 * HOUR_S))
        for step in range(1, 100):
            await provider.say(trade(clock, 3.0, after_s=18 * HOUR_S + step * 0.5))
        await eventually(lambda: len(listener.prices) == 101)
    builder = BarBuilder(days=trading_days(), profile=load_profile("alpaca"))
    for batch in listener.batches:
        builder.step(batch)
    assert builder.tally["future"] == builder.tally["too_late"] == 0
    assert builder.tally["trades"] == 101
    assert (np.diff(listener.marks) >= 0).all()


async def test_one_wild_time_is_quarantined_and_time_stays(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    feed = open_feed(provider.url)
    async with flowing(provider, feed, clock, eventually) as listener:
        await provider.say(trade(clock, 9.0, after_s=2 * HOUR_S, symbol="ODD"))
        await provider.say(trade(clock, 2.0, after_s=0.5))
        await provider.say(trade(clock, 3.0, after_s=0.6) + trade(clock, 9.0, after_s=HOUR_S * 50) + trade(clock, 4.0))
        await eventually(lambda: listener.prices == [1.0, 2.0, 3.0, 4.0])
        assert max(listener.marks) <= clock.now_ns() + SECOND_NS
    assert feed.rejected == {"ts_ns_spike": 2}
    assert "ODD" in feed.quarantine.samples["ts_ns_spike"][0]


# -- silence -----------------------------------------------------------------------------------------------------------


async def test_silence_in_the_regular_session_ends_the_connection_after_its_limit(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    async with flowing(provider, open_feed(provider.url), clock, eventually) as listener:
        await clock.walk(14.5)
        assert listener.end is None
        await provider.sockets[-1].ping()  # pings are no data
        await clock.walk(1)
        await eventually(lambda: listener.end is not None)
        assert listener.reason == "silent"


async def test_rows_of_other_symbols_do_not_make_up_for_a_silent_liquid_one(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    async with flowing(provider, open_feed(provider.url), clock, eventually) as listener:
        for second in range(16):
            await provider.say(trade(clock, 5.0, symbol="ZZZ"))
            await eventually(lambda count=second + 2: len(listener.prices) >= count or listener.end is not None)
            await clock.walk(1)
        await eventually(lambda: listener.end is not None)
        assert listener.reason == "silent"


async def test_any_symbol_is_a_sign_of_life_where_no_liquid_one_is_subscribed(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    feed = open_feed(provider.url)
    async with listening(feed) as listener:
        await eventually(lambda: bool(provider.sockets))
        await provider.say(["ready"])
        for second in range(20):
            await provider.say(trade(clock, 5.0, symbol="ZZZ"))
            await eventually(lambda count=second + 1: len(listener.prices) >= count)
            await clock.walk(1)
        assert listener.end is None
        await clock.walk(15)
        await eventually(lambda: listener.end is not None)
        assert listener.reason == "silent"


@pytest.mark.parametrize(
    ("from_open_s", "survives_s", "ends_within_s"),
    [(7.0 * HOUR_S, 119, 2), (-1.0 * HOUR_S, 119, 2), (11.0 * HOUR_S, 400, None)],
    ids=["after the close", "before the open", "closed"],
)
async def test_other_sessions_have_other_limits(
    provider: Provider,
    open_feed: OpenFeed,
    clock: Any,
    eventually: Any,
    from_open_s: float,
    survives_s: int,
    ends_within_s: int | None,
) -> None:
    await clock.jump(from_open_s - 300)
    async with flowing(provider, open_feed(provider.url), clock, eventually) as listener:
        await clock.walk(survives_s)
        assert listener.end is None
        if ends_within_s is not None:
            await clock.walk(ends_within_s)
            await eventually(lambda: listener.end is not None)
            assert listener.reason == "silent"


async def test_session_that_just_opened_is_given_its_time(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    await clock.jump(-300 - 60)  # a minute before the open
    async with flowing(provider, open_feed(provider.url), clock, eventually) as listener:
        await clock.walk(60 + 14)
        assert listener.end is None
        await clock.walk(2)
        await eventually(lambda: listener.end is not None)


async def test_connection_without_any_data_is_silent_too(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    async with listening(open_feed(provider.url)) as listener:
        await eventually(lambda: bool(provider.sockets))
        await provider.say(["ready"])
        await eventually(lambda: bool(listener.items))
        await clock.walk(16)
        await eventually(lambda: listener.end is not None)
        assert listener.reason == "silent"


async def test_provider_that_never_confirms_is_given_ten_seconds(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    async with listening(open_feed(provider.url)) as listener:
        await eventually(lambda: provider.heard == ["hello", SECRET])
        await clock.walk(9.5)
        assert listener.end is None
        await clock.walk(1)
        await eventually(lambda: listener.end is not None)
    assert listener.reason == "silent"
    assert listener.items == []


# -- the queue ---------------------------------------------------------------------------------------------------------


async def test_overflow_is_counted_and_a_gap_with_the_span_that_was_lost(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    limits = Limits(queue_bytes=4_000, drain_s=0.0)
    feed = open_feed(provider.url, limits=limits)
    counter = FEED_OVERFLOW_FRAMES_TOTAL.labels(feed="talk")
    before = counter._value.get()
    async with flowing(provider, feed, clock, eventually) as listener:
        began_ns = clock.now_ns()
        listener.gate.clear()
        await provider.say(trade(clock, 2.0))
        await eventually(lambda: listener.prices == [1.0, 2.0])
        await provider.say(*(trade(clock, 2.0 + i, after_s=i / 1000) for i in range(1, 1000)))
        await (await provider.sockets[-1].ping())  # the pong comes after all that was sent
        await eventually(lambda: feed.overflow_frames > 700)
        listener.gate.set()
        await eventually(lambda: len(listener.prices) + feed.overflow_frames == 1001)
        lost = feed.overflow_frames
        assert listener.gaps == []  # nobody knows yet where it ends
        last_ns = max(int(batch.ts_ns.max()) for batch in listener.batches if len(batch))
        await provider.say(trade(clock, 2000.0, after_s=0.001), trade(clock, 2001.0, after_s=0.5))
        await eventually(lambda: listener.prices[-1] == 2001.0)
        await provider.say(trade(clock, 2002.0, after_s=0.6))
        await eventually(lambda: listener.prices[-1] == 2002.0)
    assert listener.gaps == [Gap(last_ns, began_ns + SECOND_NS // 2, "overflow")]
    at = listener.items.index(listener.gaps[0])
    after = listener.items[at + 1]
    assert isinstance(after, Batch)
    assert 2001.0 in after.price
    assert counter._value.get() - before == lost


def test_memory_of_a_full_queue_stays_at_its_bound() -> None:
    inbox = Inbox(most_bytes=1_000_000, most_frames=10_000)
    tracemalloc.start()
    dropped = sum(not inbox.put(i, bytes(1000)) for i in range(50_000))
    small = sum(not inbox.put(i, b"") for i in range(50_000))
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert dropped == 49_000
    assert small == 41_001  # a hole counts as one
    assert inbox.bytes == 1_000_000
    assert size < 2_500_000


def test_queue_gives_frames_up_to_each_hole() -> None:
    inbox = Inbox(most_bytes=3, most_frames=100)
    assert [inbox.put(i, b"x") for i in range(5)] == [True, True, True, False, False]
    assert inbox.take() == ([(0, b"x"), (1, b"x"), (2, b"x")], False)
    assert inbox.put(5, b"y")
    assert inbox.take() == ([(5, b"y")], True)
    assert inbox.take() is None
    assert inbox.bytes == len(inbox) == 0


async def test_frames_that_come_close_together_are_one_batch(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    feed = open_feed(provider.url, limits=Limits(drain_s=0.02))
    async with flowing(provider, feed, clock, eventually) as listener:
        for price in (2.0, 3.0, 4.0):
            await provider.say(trade(clock, price))
            await (await provider.sockets[-1].ping())  # it has arrived
        assert listener.prices == [1.0]
        await clock.jump(0.03)
        await eventually(lambda: listener.prices == [1.0, 2.0, 3.0, 4.0])
        assert [len(batch) for batch in listener.batches] == [0, 1, 3]


async def test_burst_of_five_times_the_rate_is_absorbed_without_loss(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    """The reader takes one batch each tenth of a second; in one second comes what it takes five for."""
    feed = open_feed(provider.url, limits=Limits())
    got: list[float] = []

    async def slow() -> None:
        async with aclosing(feed.batches()) as items:  # type: ignore[type-var]
            async for item in items:
                got.extend(item.price.tolist() if isinstance(item, Batch) else [])
                await clock.sleep(0.1)

    task = asyncio.create_task(slow())
    await eventually(lambda: bool(provider.sockets))
    await provider.say(["ready"])
    sent = 0
    for second in range(10):
        for tenth in range(10):
            for _ in range(500 if second == 3 else 100):
                sent += 1
                await provider.say(trade(clock, float(sent), after_s=tenth / 10))
            await clock.walk(0.1)
    while len(got) < sent:
        await clock.walk(0.1)
        await asyncio.sleep(0.001)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert got == [float(i) for i in range(1, sent + 1)]
    assert feed.overflow_frames == 0


# -- how it ends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text", "reason"),
    [
        (1000, "", "closed"),
        (1001, "going away", "closed"),
        (1008, "", "connection_limit"),
        (1008, "Slow consumer", "slow_consumer"),
        (1011, "", "closed"),
        (1003, "", "protocol"),
    ],
)
async def test_close_code_tells_the_reason(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any, code: int, text: str, reason: str
) -> None:
    async with flowing(provider, open_feed(provider.url), clock, eventually) as listener:
        await provider.say(trade(clock, 2.0))
        await provider.sockets[-1].close(code, text)
        await eventually(lambda: listener.end is not None)
    assert listener.prices == [1.0, 2.0]
    assert listener.reason == reason


async def test_broken_line_is_a_loss_of_the_network(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    async with flowing(provider, open_feed(provider.url), clock, eventually) as listener:
        provider.sockets[-1].transport.abort()
        await eventually(lambda: listener.end is not None)
    assert listener.reason == "network"


async def test_message_beyond_the_bound_ends_the_connection(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    async with flowing(provider, open_feed(provider.url), clock, eventually) as listener:
        await provider.say("[" + " " * (17 << 20) + "]")
        await eventually(lambda: listener.end is not None)
    assert listener.reason == "protocol"


async def test_small_frame_that_unpacks_to_a_mountain_ends_the_connection(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    async with flowing(provider, open_feed(provider.url), clock, eventually) as listener:
        packer = zlib.compressobj(9, zlib.DEFLATED, -12)
        bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(100)) + packer.flush(zlib.Z_SYNC_FLUSH)
        assert len(bomb) < 200_000
        gc.collect()
        tracemalloc.start()
        compressed_binary = b"\xc2\x7f"
        provider.sockets[-1].transport.write(compressed_binary + len(bomb[:-4]).to_bytes(8) + bomb[:-4])
        await eventually(lambda: listener.end is not None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert listener.reason == "protocol"
    assert peak < 64_000_000


async def answer(status: HTTPStatus, **headers: str) -> Any:
    def process(connection: ServerConnection, request: Request) -> Response:
        response = connection.respond(status, f"your key {SECRET} is no good\n")
        for name, value in headers.items():
            response.headers[name] = value
        return response

    return process


async def lose(feed: LiveFeed) -> FeedLost | FeedRefused:
    try:
        async with asyncio.timeout(10), aclosing(feed.batches()) as items:  # type: ignore[type-var]
            async for _ in items:
                pass
    except (FeedLost, FeedRefused) as error:
        return error
    raise AssertionError


@pytest.mark.parametrize("status", [401, 403])
async def test_http_refusal_of_the_credentials_is_final(open_feed: OpenFeed, status: int) -> None:
    async with serving(process_request=await answer(HTTPStatus(status))) as provider:
        assert isinstance(await lose(open_feed(provider.url)), FeedRefused)


@pytest.mark.parametrize(("status", "reason"), [(429, "connection_limit"), (500, "network"), (404, "network")])
async def test_other_http_answers_are_losses(open_feed: OpenFeed, status: int, reason: str) -> None:
    async with serving(process_request=await answer(HTTPStatus(status))) as provider:
        error = await lose(open_feed(provider.url))
    assert isinstance(error, FeedLost)
    assert error.reason == reason


async def test_redirect_is_not_followed(provider: Provider, open_feed: OpenFeed) -> None:
    async with serving(process_request=await answer(HTTPStatus.FOUND, Location=provider.url)) as elsewhere:
        error = await lose(open_feed(elsewhere.url))
    assert isinstance(error, FeedLost)
    assert error.reason == "protocol"
    assert provider.sockets == []


async def test_nobody_listening_is_a_loss_of_the_network(open_feed: OpenFeed) -> None:
    async with serving() as gone:
        pass
    for connect in (gone.url, lambda: tcp("127.0.0.1", int(gone.url.split(":")[2].split("/")[0]))):
        error = await lose(open_feed(connect))
        assert isinstance(error, FeedLost)
        assert error.reason == "network"


async def test_server_without_tls_is_not_spoken_to_in_the_clear(provider: Provider, open_feed: OpenFeed) -> None:
    error = await lose(open_feed(provider.url.replace("ws://", "wss://")))
    assert isinstance(error, FeedLost)
    assert error.reason == "network"
    assert provider.heard == []


@pytest.mark.parametrize(("host", "vouched"), [("127.0.0.1", False), ("elsewhere.example", True)])
async def test_certificate_of_a_stranger_or_of_another_host_is_refused(
    open_feed: OpenFeed, host: str, *, vouched: bool
) -> None:
    authority = trustme.CA()
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(host).configure_cert(theirs)
    if vouched:
        authority.configure_trust(ours)
    async with serving(ssl=theirs) as provider:
        secure = provider.url.replace("ws://", "wss://")
        error = await lose(open_feed(lambda: websocket(secure, tls=ours)))
    assert isinstance(error, FeedLost)
    assert "certificate" in str(error)
    assert provider.heard == []


async def test_certificate_that_is_good_lets_the_connection_through(
    open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    authority = trustme.CA()
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    authority.configure_trust(ours)
    async with serving(ssl=theirs) as provider:
        secure = provider.url.replace("ws://", "wss://")
        async with flowing(provider, open_feed(lambda: websocket(secure, tls=ours)), clock, eventually) as listener:
            assert listener.prices == [1.0]


async def test_address_that_is_no_websocket_is_refused(open_feed: OpenFeed) -> None:
    error = await lose(open_feed(f"https://127.0.0.1/?token={SECRET}"))
    assert isinstance(error, FeedRefused)
    assert SECRET not in str(error)


async def test_secrets_reach_neither_texts_nor_logs(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[BaseException] = []
    with caplog.at_level(logging.DEBUG):
        feed = open_feed(provider.url)
        async with flowing(provider, feed, clock, eventually) as listener:
            await provider.sockets[-1].close(1008, f"key {SECRET}")
            await eventually(lambda: listener.end is not None)
        assert listener.end is not None
        errors.append(listener.end)
        for status in (401, 429, 500):
            async with serving(process_request=await answer(HTTPStatus(status))) as refusing:
                errors.append(await lose(open_feed(refusing.url)))
        errors.append(await lose(open_feed(refusing.url)))
    assert len(errors) == 5
    for error in errors:
        assert SECRET not in f"{error!r} {error} {error.__cause__!r}"
        assert error.__suppress_context__ or error.__context__ is None
    ours = [record for record in caplog.records if not record.name.startswith("websockets.server")]
    assert SECRET not in "".join(record.getMessage() for record in ours)


# -- two of them, supervised -------------------------------------------------------------------------------------------


async def test_primary_fails_is_replaced_and_comes_back_without_a_lost_row(
    provider: Provider, open_feed: OpenFeed, clock: Any, eventually: Any
) -> None:
    refusing = True

    def limited(connection: ServerConnection, _: Request) -> Response | None:
        return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "later\n") if refusing else None

    async with serving(process_request=limited) as first:
        feed = FailoverFeed(open_feed(first.url), open_feed(provider.url), clock)
        price = 0.0
        async with listening(feed) as listener:
            while feed.status()[0].circuit == "closed":
                await clock.walk(0.1)
                await asyncio.sleep(0.001)
            assert feed.status()[0].failures == 5
            await eventually(lambda: bool(provider.sockets))
            await provider.say(["ready"])
            refusing = False
            while feed.status()[1].state == "running" or not first.sockets:
                price += 1
                await provider.say(trade(clock, price))
                if first.sockets:
                    await first.say(["ready"], trade(clock, price))
                await eventually(lambda newest=price: newest in listener.prices)
                await clock.walk(0.5)
                await asyncio.sleep(0.001)
            await first.say(trade(clock, price + 1))
            await eventually(lambda: price + 1 in listener.prices)
            assert [status.state for status in feed.status()] == ["running", "waiting"]
            assert feed.status()[0].circuit == "closed"
    assert set(listener.prices) == set(np.arange(1.0, price + 2))
    assert len(listener.prices) > price + 10  # ten seconds of both
    assert listener.gaps == []
    assert (np.diff(listener.marks) >= 0).all()


# -- a stream of bytes -------------------------------------------------------------------------------------------------


class Lines(Talk):
    """The same language, one message a line, whatever pieces it comes in."""

    def __init__(self, symbols: Dictionary, quarantine: Quarantine) -> None:
        super().__init__(symbols, quarantine)
        self._rest = b""

    def receive(self, frames: Sequence[tuple[int, bytes]]) -> Received:
        *lines, self._rest = (self._rest + b"".join(chunk for _, chunk in frames)).split(b"\n")
        return super().receive([(0, line) for line in lines])


@asynccontextmanager
async def streaming(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Any]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield lambda: tcp("127.0.0.1", port)


def lines_feed(connect: Any, clock: Any, **options: Any) -> LiveFeed:
    return LiveFeed(
        name="lines",
        open_session=lambda: Lines(Dictionary(), Quarantine()),
        connect=connect,
        clock=clock,
        days=trading_days(),
        **options,
    )


async def test_stream_comes_in_pieces_and_its_end_is_a_close(clock: Any, eventually: Any) -> None:
    heard = bytearray()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.readexactly(5))
        text = b'["ready"]\n' + json.dumps(trade(clock, 1.0)).encode() + b"\n"
        for start in range(0, len(text), 7):
            writer.write(text[start : start + 7])
            await writer.drain()
        writer.close()

    async with streaming(handler) as connect, listening(lines_feed(connect, clock)) as listener:
        await eventually(lambda: listener.prices == [1.0])
        await clock.walk(0.1)
        await eventually(lambda: listener.end is not None)
    assert heard == b"hello"
    assert listener.reason == "closed"


async def test_stream_that_comes_too_fast_is_given_up_because_no_piece_can_be_left_out(
    clock: Any, eventually: Any
) -> None:
    flood = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'["ready"]\n' + json.dumps(trade(clock, 1.0)).encode() + b"\n")
        await flood.wait()
        with suppress(ConnectionError):
            writer.writelines(json.dumps(trade(clock, 2.0 + i)).encode() + b"\n" for i in range(20_000))
            await writer.drain()
        writer.close()

    async with streaming(handler) as connect:
        feed = lines_feed(connect, clock, limits=Limits(queue_bytes=300_000, drain_s=0.0))
        async with listening(feed) as listener:
            await eventually(lambda: listener.prices == [1.0])
            listener.gate.clear()
            flood.set()
            await eventually(lambda: feed.overflow_frames == 1)
            listener.gate.set()
            await eventually(lambda: listener.end is not None)
    assert listener.reason == "slow_consumer"
    assert listener.prices[1:] == [2.0 + i for i in range(len(listener.prices) - 1)]
    assert len(listener.prices) > 1000
