"""The replay feed: tape files played against a clock, as a live provider would send them."""

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tapewatch.engine.columns import SECOND_NS, Batch
from tapewatch.feeds.tape_file import TapeReader
from tapewatch.ports import Clock

_SLICE_NS = SECOND_NS // 20
_LONGEST_QUIET_S = 5.0


class ReplayFeed:
    """A `Feed` of tape files. Event time runs at `speed` times the clock (inf: as fast as it is read); stretches of the
    tape without a print are shortened to five seconds. Each call of `batches` plays from the start.
    """

    name = "replay"

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        clock: Clock,
        speed: float = 1.0,
        conditions_column: str = "conditions",
        keep_test_symbols: bool = False,
    ) -> None:
        if speed <= 0:
            raise ValueError("speed must be positive")
        self._paths, self._clock, self._speed = tuple(paths), clock, speed
        self._column, self._keep_test_symbols = conditions_column, keep_test_symbols
        self._reader = self._open()

    @property
    def rejected(self) -> Mapping[str, int]:
        return self._reader.seen.rejected

    def _open(self) -> TapeReader:
        return TapeReader(self._paths, conditions_column=self._column, keep_test_symbols=self._keep_test_symbols)

    async def batches(self) -> AsyncIterator[Batch]:
        self._reader = self._open()
        if math.isinf(self._speed):
            for batch in self._reader.batches():
                yield batch
            return
        due_ns = self._clock.now_ns()
        played_ns: int | None = None
        for chunk in self._reader.batches():
            if not len(chunk):  # the marks at the end of the tape
                yield chunk
                continue
            run = np.maximum.accumulate(chunk.ts_ns)
            cuts = np.flatnonzero(np.diff(run // _SLICE_NS)) + 1
            for start, stop in zip([0, *cuts.tolist()], [*cuts.tolist(), len(chunk)], strict=True):
                now_ns = int(run[start]) if played_ns is None else max(played_ns, int(run[start]))
                quiet_s = 0.0 if played_ns is None else (now_ns - played_ns) / SECOND_NS / self._speed
                due_ns += round(min(quiet_s, _LONGEST_QUIET_S) * SECOND_NS)
                played_ns = now_ns
                await self._clock.sleep(max(0.0, (due_ns - self._clock.now_ns()) / SECOND_NS))
                yield chunk.rows(start, stop)
