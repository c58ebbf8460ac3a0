"""A tape on a replay server: its pace against a clock that the test holds, and who gets what."""

import math
from pathlib import Path

import numpy as np
import pytest
from held import HeldClock, write_tape

from tapewatch.engine.columns import SECOND_NS
from tapewatch.feeds.servers.play import PIECE_ROWS, Player

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("speed", [1.0, 10.0])
async def test_tape_runs_at_its_speed_and_shortens_quiet_stretches(tmp_path: Path, speed: float) -> None:
    path = write_tape(tmp_path / "t.parquet", [0.0, 2.0, 4.0, 3.0, 4.0 + 600.0])
    clock, made = HeldClock(), []

    def make(batch: object) -> tuple[()]:
        made.append(clock.ns / SECOND_NS - 1_000)
        return ()

    async with Player([path], speed=speed, start="at-once", make=make, clock=clock) as player:
        await player.finish()
    quiet_s = min(5.0, 600.0 / speed)
    end_s = min(5.0, 120.0 / speed)
    last_s = 4.0 / speed + quiet_s
    assert made[:2] == pytest.approx([0.0, 2.0 / speed])
    assert made[-2:] == pytest.approx([last_s, last_s + end_s], abs=60.0 / speed)
    assert made[-2] == pytest.approx(last_s)


async def test_pieces_are_small_and_add_up_to_the_tape(tmp_path: Path) -> None:
    path = write_tape(tmp_path / "t.parquet", [n / 100 for n in range(1_234)])
    async with Player([path], speed=math.inf) as player:
        with player.listen() as listener:
            pieces = [piece.rows async for piece in listener]
    assert max(len(piece.batch) for piece in pieces) == PIECE_ROWS
    assert np.concatenate([piece.places for piece in pieces]).tolist() == list(range(1_234))
    assert player.played_rows == player.tape.total_rows == 1_234


async def test_tape_waits_for_its_slowest_listener(tmp_path: Path) -> None:
    path = write_tape(tmp_path / "t.parquet", [n / 1_000 for n in range(100_000)])
    async with Player([path], speed=math.inf) as player:
        with player.listen() as slow:
            first = await anext(slow)
            with player.listen() as quick:
                while player.played_rows < 64 * PIECE_ROWS:
                    await anext(quick)
                assert player.played_rows == 64 * PIECE_ROWS
            rest = [piece async for piece in slow]
    assert sum(len(piece.rows.batch) for piece in [first, *rest]) == 100_000


async def test_held_tape_goes_on_where_the_last_one_left(tmp_path: Path) -> None:
    path = write_tape(tmp_path / "t.parquet", [n / 100 for n in range(2_000)])
    async with Player([path], speed=math.inf, while_away="hold") as player:
        with player.listen() as first:
            await anext(first)
            await anext(first)  # which counts the one before as taken
        with player.listen() as second:
            piece = await anext(second)
            assert piece.rows.first_row == PIECE_ROWS
            second.done()
        with player.listen() as third:
            rest = [piece.rows.first_row async for piece in third]
    assert rest == [2 * PIECE_ROWS, 3 * PIECE_ROWS, 2_000]
