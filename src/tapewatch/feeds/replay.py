"""The replay feed: tape files played against a clock, as a live provider would send them."""

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tapewatch.engine.columns import SECOND_NS, Batch
from tapewatch.errors import FeedRefused
from tapewatch.feeds.tape_file import TapeReader
from tapewatch.ports import Clock

_SLICE_NS = SECOND_NS // 20
_LONGEST_SLICE_NS = 10 * SECOND_NS
"""At full speed; a thousand rows of a thin tape can be hours, and whoever scans them must not stand still so long."""
_LONGEST_QUIET_S = 5.0


class ReplayFeed:
    """A `Feed` of tape files. Event time runs at `speed` times the clock (inf: as fast as it is read); stretches of the
    tape without a print are shortened to five seconds. Each call of `batches` plays from the start, or from where
    `resume` put it; the rows before that are read again all the same, because what is rejected, repeated or late
    depends on them.
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
        self._behind = 0

    @property
    def rejected(self) -> Mapping[str, int]:
        return self._reader.seen.rejected

    def _open(self) -> TapeReader:
        return TapeReader(self._paths, conditions_column=self._column, keep_test_symbols=self._keep_test_symbols)

    def resume(self, rows: int) -> None:
        if rows < 0:
            raise ValueError("a feed cannot be resumed before its beginning")
        self._behind = rows

    async def batches(self) -> AsyncIterator[Batch]:
        self._reader = self._open()
        behind, self._behind = self._behind, 0
        passed = 0
        played_ns: int | None = None
        due_ns: int | None = None
        slice_ns = _LONGEST_SLICE_NS if math.isinf(self._speed) else _SLICE_NS
        for chunk in self._reader.batches():
            if passed < behind:
                given = min(behind - passed, len(chunk))
                passed += given
                newest_ns = int(chunk.ts_ns[:given].max(initial=-1))
                played_ns = newest_ns if played_ns is None else max(played_ns, newest_ns)
                await self._clock.sleep(0.0)  # a long way to go must not hold up the others
                if given == len(chunk):
                    continue
                chunk = chunk.rows(given, len(chunk))  # noqa: PLW2901  # what is left of it
            if not len(chunk):  # without rows: the marks at the end of the tape
                yield chunk
                continue
            run = np.maximum.accumulate(chunk.ts_ns)
            cuts = np.flatnonzero(np.diff(run // slice_ns)) + 1
            for start, stop in zip([0, *cuts.tolist()], [*cuts.tolist(), len(chunk)], strict=True):
                now_ns = int(run[start]) if played_ns is None else max(played_ns, int(run[start]))
                if due_ns is None or played_ns is None:  # the first row that is given: pacing starts here
                    due_ns = self._clock.now_ns()
                else:
                    due_ns += round(min((now_ns - played_ns) / SECOND_NS / self._speed, _LONGEST_QUIET_S) * SECOND_NS)
                played_ns = now_ns
                await self._clock.sleep(max(0.0, (due_ns - self._clock.now_ns()) / SECOND_NS))
                yield chunk.rows(start, stop)
        if passed < behind:
            raise FeedRefused(f"{behind:,} rows were played before, and these files hold {passed:,}: they are others")
