"""One connection to a provider as a `Feed`: wires, queue, time and the watch over silence. What is said and what frames
mean is the session's; connecting again is the supervisor's.

A reader does nothing but stamp frames and queue them, so that the provider never waits for us. The queue has a bound;
what does not fit is dropped, counted, and shows on the tape as a gap.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import numpy as np

from tapewatch.engine.calendar import Session as MarketSession
from tapewatch.engine.calendar import SessionAt, TradingDays
from tapewatch.engine.columns import SECOND_NS, Bars, Batch, Gap, make_batch
from tapewatch.errors import FeedLost
from tapewatch.feeds.marks import LiveTime, first_after
from tapewatch.feeds.quarantine import Quarantine
from tapewatch.feeds.session import Received, Session
from tapewatch.feeds.transport import Transport
from tapewatch.ports import Clock
from tapewatch.telemetry import FEED_OVERFLOW_FRAMES_TOTAL

LIQUID = frozenset({"SPY", "QQQ", "IWM", "AAPL", "MSFT", "NVDA", "TSLA", "AMZN", "META", "AMD"})
"""One of these trades every second while the market is open."""
OVERFLOW = "overflow"

_TICK_S = 0.1
_LONGEST_STEP_NS = SECOND_NS // 4
"""If more passed between two looks, this process stood still, and frames may wait where nobody has looked yet."""
_BYTES_AT_ONCE = 1 << 20
_FRAMES_AT_ONCE = 2_000
_READY = make_batch()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much and how long a connection may take."""

    queue_bytes: int = 64_000_000
    queue_frames: int = 200_000
    drain_s: float = 0.02
    """Frames are decoded together that came within so long."""
    handshake_s: float = 10.0
    """Until the provider has confirmed what was asked for."""
    silence_regular_s: float = 15.0
    """Longest time without a row of a liquid symbol in the regular session."""
    silence_extended_s: float = 120.0
    """The same before the open and after the close; a closed market may be as silent as it likes."""


class LiveFeed:
    """Each call of `batches` is one connection. It begins with an empty batch when the provider has confirmed what was
    asked for, and ends with `FeedLost` or `FeedRefused`. Rows that come before that confirmation and are still
    unconfirmed at the end are left out.

    `delay_s` says how far behind the market the provider's data are.
    """

    def __init__(
        self,
        *,
        name: str,
        open_session: Callable[[], Session],
        connect: Callable[[], AbstractAsyncContextManager[Transport]],
        clock: Clock,
        days: TradingDays,
        limits: Limits | None = None,
        liquid: Collection[str] = LIQUID,
        delay_s: float = 0.0,
    ) -> None:
        self._name, self._open_session, self._connect, self._clock = name, open_session, connect, clock
        self._limits = limits or Limits()
        self._time = LiveTime()
        self._silence = _Silence(days, self._limits, liquid)
        self._delay_ns = round(delay_s * SECOND_NS)
        self.newest_ns = -1
        """Event time of the newest row so far, of this connection and those before it."""
        self._hole_ns: int | None = None
        """Frames were dropped after the row with this time, and no newer row has come yet."""
        self.quarantine = Quarantine()
        self.overflow_frames = 0
        self.notes: Counter[str] = Counter()
        """What the session found worth counting."""

    @property
    def name(self) -> str:
        return self._name

    @property
    def rejected(self) -> Mapping[str, int]:
        return self.quarantine.counts

    async def batches(self) -> AsyncIterator[Batch | Gap | Bars]:
        session = self._open_session()
        self.quarantine = session.quarantine
        self._hole_ns = None
        self._silence.reset()
        async with self._connect() as transport:
            inbox = Inbox(most_bytes=self._limits.queue_bytes, most_frames=self._limits.queue_frames)
            reading = asyncio.create_task(self._read(transport, inbox), name=f"{self._name} reader")
            reading.add_done_callback(lambda _: inbox.filled.set())
            ticking = asyncio.create_task(self._tick(inbox), name=f"{self._name} ticker")
            try:
                for text in session.opening():
                    await transport.send(text)
                early: list[Received] = []
                ready = False
                looked_ns, waited_ns = self._clock.now_ns(), 0
                while True:
                    await inbox.filled.wait()
                    inbox.filled.clear()
                    rows = 0
                    while (taken := inbox.take()) is not None:
                        frames, after_hole = taken
                        if after_hole and self._hole_ns is None and self.newest_ns >= 0:
                            self._hole_ns = self.newest_ns
                        if not frames:
                            continue
                        received = session.receive(frames)
                        self.notes.update(received.notes)
                        for reply in received.replies:
                            await transport.send(reply)
                        early.append(received)
                        if session.ready:
                            if not ready:
                                ready = True
                                yield _READY
                            for item in [item for part in early for item in self._items(part)]:
                                rows += len(item) if isinstance(item, Batch) else 0
                                yield item
                            early.clear()
                        if received.ended is not None:
                            raise received.ended
                        await asyncio.sleep(0)  # the reader's turn
                    for task in (reading, ticking):
                        if task.done():
                            task.result()
                    now_ns = self._clock.now_ns()
                    step_ns = min(max(now_ns - looked_ns, 0), _LONGEST_STEP_NS)
                    looked_ns = now_ns
                    if ready:
                        if not rows and (pulse := self._time.advance(step_ns)) is not None:
                            yield pulse
                        self._silence.check(step_ns, self._market_ns(now_ns))
                    else:
                        waited_ns += step_ns
                        if waited_ns > self._limits.handshake_s * SECOND_NS:
                            raise FeedLost(f"{self._name} does not confirm what was asked for", reason="silent")
                    if rows:
                        await self._clock.sleep(self._limits.drain_s)
            finally:
                reading.cancel()
                ticking.cancel()
                await asyncio.gather(reading, ticking, return_exceptions=True)

    async def _read(self, transport: Transport, inbox: "Inbox") -> None:
        while True:
            frame = await transport.recv()
            if inbox.put(self._clock.now_ns(), frame):
                continue
            self.overflow_frames += 1
            FEED_OVERFLOW_FRAMES_TOTAL.labels(feed=self._name).inc()
            if not transport.framed:
                raise FeedLost(f"{self._name} sent faster than could be read", reason="slow_consumer")

    async def _tick(self, inbox: "Inbox") -> None:
        while True:
            await self._clock.sleep(_TICK_S)
            inbox.filled.set()

    def _items(self, received: Received) -> Iterator[Batch | Gap | Bars]:
        if received.batch is not None:
            batch, false = self._time.take(received.batch)
            if len(false):
                sample = f"{false.symbols[false.symbol[0]]} at {false.ts_ns[0]}"
                self.quarantine.add("ts_ns_spike", sample, count=len(false))
            if len(batch):
                end_ns = None if self._hole_ns is None else first_after(batch, self._hole_ns)
                if self._hole_ns is not None and end_ns is not None:
                    yield Gap(self._hole_ns, end_ns, OVERFLOW)
                    self._hole_ns = None
                self.newest_ns = max(self.newest_ns, int(batch.ts_ns.max()))
                self._silence.saw(batch)
                yield batch
        yield from received.gaps
        yield from received.bars

    def _market_ns(self, now_ns: int) -> int:
        """Where the market's time is, as far as this feed knows."""
        return self._time.now_ns if self._time.now_ns >= 0 else now_ns - self._delay_ns


class Inbox:
    """Raw frames in the order of arrival, with holes where some were dropped because it was full."""

    def __init__(self, *, most_bytes: int, most_frames: int) -> None:
        self._most_bytes, self._most_frames = most_bytes, most_frames
        self._frames: deque[tuple[int, bytes] | None] = deque()
        """None: a hole."""
        self.bytes = 0
        self.filled = asyncio.Event()
        """Something came, ended, or it is time to look; the one who takes clears it."""

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, arrived_ns: int, frame: bytes) -> bool:
        """False: it was full, and the frame is gone."""
        if self.bytes + len(frame) > self._most_bytes or len(self._frames) >= self._most_frames:
            if self._frames and self._frames[-1] is not None:
                self._frames.append(None)
            return False
        self._frames.append((arrived_ns, frame))
        self.bytes += len(frame)
        self.filled.set()
        return True

    def take(self) -> tuple[list[tuple[int, bytes]], bool] | None:
        """The oldest frames up to the next hole, not more than are decoded in some milliseconds, and whether they come
        after a hole; None when there is nothing.
        """
        if not self._frames:
            return None
        after_hole = self._frames[0] is None
        if after_hole:
            self._frames.popleft()
        frames: list[tuple[int, bytes]] = []
        size = 0
        while self._frames and len(frames) < _FRAMES_AT_ONCE and size < _BYTES_AT_ONCE:
            frame = self._frames[0]
            if frame is None:
                break
            frames.append(frame)
            size += len(frame[1])
            self._frames.popleft()
        self.bytes -= size
        return frames, after_hole


class _Silence:
    """How long no liquid symbol has shown, and whether that is too long for the session. Where no liquid symbol has
    ever shown, any symbol counts.
    """

    def __init__(self, days: TradingDays, limits: Limits, liquid: Collection[str]) -> None:
        self._days, self._liquid = days, liquid
        self._longest_ns = {
            MarketSession.PRE: round(limits.silence_extended_s * SECOND_NS),
            MarketSession.REGULAR: round(limits.silence_regular_s * SECOND_NS),
            MarketSession.POST: round(limits.silence_extended_s * SECOND_NS),
        }
        self._symbols: tuple[str, ...] = ()
        self._counts = np.zeros(0, np.bool_)
        self._at: SessionAt | None = None
        self._quiet_ns = 0

    def reset(self) -> None:
        self._quiet_ns = 0

    def saw(self, batch: Batch) -> None:
        if batch.symbols is not self._symbols:
            self._symbols = batch.symbols
            self._counts = np.array([symbol in self._liquid for symbol in batch.symbols], np.bool_)
            self._counts |= not self._counts.any()
        if self._counts[batch.symbol].any():
            self._quiet_ns = 0

    def check(self, passed_ns: int, market_ns: int) -> None:
        """`FeedLost` when it has been silent for too long."""
        self._quiet_ns += passed_ns
        if self._at is None or not self._at.start_ns <= market_ns < self._at.end_ns:
            self._at = self._days.at(market_ns)
        longest_ns = self._longest_ns.get(self._at.session)
        if longest_ns is not None and min(self._quiet_ns, market_ns - self._at.start_ns) > longest_ns:
            raise FeedLost(f"no data for {self._quiet_ns / SECOND_NS:.0f} s", reason="silent")
