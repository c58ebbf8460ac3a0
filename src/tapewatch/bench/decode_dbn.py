"""Figures of the Databento session: pieces of the TCP stream as they come from the socket, to batches. No I/O."""

import time
from collections.abc import Iterator

import numpy as np

from tapewatch.engine.columns import SECOND_NS
from tapewatch.feeds import dbn
from tapewatch.feeds.databento import DatabentoSession, DatabentoSettings
from tapewatch.feeds.dictionary import Dictionary
from tapewatch.feeds.quarantine import Quarantine

_START_NS = 1_741_617_000 * SECOND_NS  # 2025-03-10 10:30 New York
_SYMBOLS, _TRADES, _PIECE = 8_000, 500_000, 1 << 16
DATABENTO_WHAT = (
    "trades a second of processor time from Databento's DBN in pieces of 64 kB to checked batches: 8,000 symbols"
)


def databento() -> Iterator[float]:
    """Trades a second of processor time each."""
    session = DatabentoSession(
        DatabentoSettings(key="nobody's"), symbols=Dictionary(), conditions=Dictionary(), quarantine=Quarantine()
    )
    session.receive([(_START_NS, b"lsg_version=0.7.2\ncram=x\n")])
    mappings = (dbn.mapping_record(dbn.Mapping(i, f"S{i}"), ts_ns=_START_NS) for i in range(_SYMBOLS))
    header = dbn.metadata("EQUS.MINI", start_ns=_START_NS, ts_out=False)
    session.receive([(_START_NS, b"success=1|session_id=1\n" + header + b"".join(mappings))])
    stream = _trades().tobytes()
    pieces = [stream[at : at + _PIECE] for at in range(0, len(stream), _PIECE)]
    for _ in range(9):
        started = time.process_time()
        rows = 0
        for piece in pieces:
            batch = session.receive([(_START_NS + 3600 * SECOND_NS, piece)]).batch
            rows += 0 if batch is None else len(batch)
        yield rows / (time.process_time() - started)
        if rows != _TRADES:
            raise AssertionError(f"{_TRADES - rows} trades are missing: {session.quarantine.counts}")


def _trades() -> dbn.Trades:
    draw = np.random.default_rng(3)
    share = 1.0 / np.arange(10, _SYMBOLS + 10)
    records = np.zeros(_TRADES, dbn.TRADE)
    records["length"], records["publisher_id"] = dbn.TRADE.itemsize // 4, 95
    records["instrument_id"] = draw.choice(_SYMBOLS, _TRADES, p=share / share.sum())
    records["ts_event"] = records["ts_recv"] = _START_NS + np.arange(_TRADES) * 10_000
    records["price"] = draw.integers(100, 100_000, _TRADES) * 10_000_000
    records["size"] = draw.choice([1, 17, 100, 200], _TRADES)
    records["action"], records["side"] = ord("T"), ord("N")
    records["sequence"] = np.arange(_TRADES) + 1
    return records
