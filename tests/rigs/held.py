"""A clock that the test holds, and a small tape to play against it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tapewatch.engine.columns import SECOND_NS

START_NS = 1_741_617_000 * SECOND_NS  # 2025-03-10 10:30 New York


class HeldClock:
    """Time passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.ns = 1_000 * SECOND_NS

    def now_ns(self) -> int:
        return self.ns

    async def sleep(self, seconds: float) -> None:
        self.ns += round(seconds * SECOND_NS)


def write_tape(path: Path, seconds: list[float]) -> Path:
    """One trade of AAPL at each of these seconds after the start."""
    n = len(seconds)
    table = {
        "symbol": ["AAPL"] * n,
        "ts_ns": [START_NS + round(second * SECOND_NS) for second in seconds],
        "price": [10.0] * n,
        "size": [100.0] * n,
        "conditions": ["@"] * n,
        "exchange": ["Q"] * n,
        "tape": ["C"] * n,
    }
    pq.write_table(pa.table(table), path)
    return path
