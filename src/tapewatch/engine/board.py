"""The board: the current value of every metric for every symbol."""

from dataclasses import dataclass

from tapewatch.engine.columns import F64


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardRows:
    """A partition's board at one scan: what toplists are made of."""

    ts_ns: int
    """Event time of the scan."""
    session: str
    symbols: tuple[str, ...]
    metrics: tuple[str, ...]
    values: F64
    """Shape (len(metrics), len(symbols)); NaN is unknown."""
