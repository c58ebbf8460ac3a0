"""Figures of the provider sessions: frames as they come from the socket, to batches. No I/O."""

import time
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from tapewatch.engine.columns import SECOND_NS
from tapewatch.feeds.alpaca import AlpacaSession, AlpacaSettings
from tapewatch.feeds.dictionary import Dictionary
from tapewatch.feeds.massive import MassiveSession, MassiveSettings
from tapewatch.feeds.quarantine import Quarantine
from tapewatch.feeds.session import Session

_START_NS = 1_741_617_000 * SECOND_NS  # 2025-03-10 10:30 New York
_SYMBOLS, _TRADES, _PER_FRAME, _FRAMES_AT_ONCE = 8_000, 120_000, 300, 10
_WHAT = (
    "trades a second of processor time from {encoding} frames of 300 to checked batches of 3,000: 8,000 symbols with "
    "heavy tails of activity, conditions and ids as on the tape"
)
MASSIVE_WHAT = _WHAT.format(encoding="Massive's JSON")
ALPACA_WHAT = _WHAT.format(encoding="Alpaca's MessagePack")


def massive() -> Iterator[float]:
    """Trades a second of processor time each."""
    session = MassiveSession(
        MassiveSettings(key="key"), symbols=Dictionary(), conditions=Dictionary(), quarantine=Quarantine()
    )
    yield from _runs(session, [msgspec.json.encode(piece) for piece in _frames(_massive_trades())])


def _massive_trades() -> list[dict[str, object]]:
    draw = np.random.default_rng(3)
    symbols, prices, sizes = _market(draw)
    lists: tuple[tuple[int, ...], ...] = ((), (14, 41), (37,), (14, 37, 41), (12, 37), (12,))
    exchanges, tapes, chosen = (draw.integers(0, n, _TRADES).tolist() for n in (4, 3, len(lists)))
    ids = draw.integers(10**4, 10**9, _TRADES).tolist()
    messages = []
    for row in range(_TRADES):
        exchange = (4, 12, 19, 11)[exchanges[row]]
        message: dict[str, object] = {"ev": "T", "sym": symbols[row], "x": exchange, "i": str(ids[row])}
        message |= {"z": tapes[row] + 1, "p": prices[row], "s": sizes[row]}
        if lists[chosen[row]]:
            message["c"] = lists[chosen[row]]
        message |= {"t": _START_NS // 10**6 + row // 100, "q": 1_000_000 + row}
        if exchange == 4:
            message |= {"trfi": 202, "trft": _START_NS // 10**6 + row // 100}
        messages.append(message)
    return messages


def alpaca() -> Iterator[float]:
    """Trades a second of processor time each."""
    session = AlpacaSession(
        AlpacaSettings(key="key", secret="secret"),  # noqa: S106  # nobody's
        symbols=Dictionary(),
        conditions=Dictionary(),
        quarantine=Quarantine(),
    )
    yield from _runs(session, [msgspec.msgpack.encode(piece) for piece in _frames(_alpaca_trades())])


def _alpaca_trades() -> list[dict[str, object]]:
    draw = np.random.default_rng(3)
    symbols, prices, sizes = _market(draw)
    lists = (["@"], ["@", "I"], [" "], [" ", "F"], ["@", "F", "I"], ["@", "T", "I"])
    exchanges, tapes, chosen = (draw.integers(0, n, _TRADES).tolist() for n in (4, 3, len(lists)))
    ids = draw.integers(10**5, 10**14, _TRADES).tolist()
    messages: list[dict[str, object]] = []
    for row in range(_TRADES):
        stamp = ((row * 7_919) % SECOND_NS) << 34 | _START_NS // SECOND_NS
        messages.append(
            {
                "T": "t",
                "S": symbols[row],
                "i": ids[row],
                "x": "DPQN"[exchanges[row]],
                "p": prices[row],
                "s": sizes[row],
                "c": lists[chosen[row]],
                "z": "ABC"[tapes[row]],
                "t": msgspec.msgpack.Ext(-1, stamp.to_bytes(8)),
            }
        )
    return messages


def _market(draw: np.random.Generator) -> tuple[list[str], list[float], list[int]]:
    letters = draw.choice(list("ACDEFGHJKLMNPRSTUVWY"), (_SYMBOLS, 4))  # no symbol with which exchanges test
    names = ["".join(row[: 3 + at % 2]) for at, row in enumerate(letters)]
    share = 1.0 / np.arange(10, _SYMBOLS + 10)
    at = draw.choice(_SYMBOLS, _TRADES, p=share / share.sum())
    prices = np.round(np.exp(draw.normal(3.5, 1.0, _SYMBOLS))[at], 2) + 0.01
    return (
        [names[i] for i in at.tolist()],
        np.round(prices, 2).tolist(),
        draw.choice([1, 17, 100, 200], _TRADES).tolist(),
    )


def _frames(messages: list[dict[str, object]]) -> Iterator[list[dict[str, object]]]:
    for at in range(0, len(messages), _PER_FRAME):
        yield messages[at : at + _PER_FRAME]


def _runs(session: Session, frames: Sequence[bytes]) -> Iterator[float]:
    stamped = [(_START_NS + SECOND_NS * 3_600, frame) for frame in frames]
    calls = [stamped[at : at + _FRAMES_AT_ONCE] for at in range(0, len(stamped), _FRAMES_AT_ONCE)]
    for _ in range(9):
        started = time.process_time()
        rows = 0
        for call in calls:
            batch = session.receive(call).batch
            rows += 0 if batch is None else len(batch)
        yield rows / (time.process_time() - started)
        if rows != _TRADES:
            raise AssertionError(f"{_TRADES - rows} trades are missing: {session.quarantine.counts}")
