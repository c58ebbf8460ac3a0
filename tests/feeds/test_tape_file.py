"""Tape files that are not what they should be: each is refused in one line, or its rows are counted by reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tapewatch.engine.columns import MINUTE_NS, SECOND_NS, Batch
from tapewatch.errors import Invalid
from tapewatch.feeds.marks import PULSE_NS
from tapewatch.feeds.tape_file import TapeReader

START_NS = 1_741_617_000 * SECOND_NS  # 2025-03-10 10:30 New York
DAY_NS = 24 * 60 * MINUTE_NS
YEAR_2100_NS = 4_102_444_800 * SECOND_NS
Columns = dict[str, Any]


def columns(rows: int = 6, /, **changes: Any) -> Columns:
    """A good tape of one trade a second; `changes` replaces whole columns, None leaves one out."""
    good: Columns = {
        "symbol": ["AAPL", "MSFT"] * (rows // 2) + ["AAPL"] * (rows % 2),
        "ts_ns": [START_NS + row * SECOND_NS for row in range(rows)],
        "price": [10.0 + row for row in range(rows)],
        "size": [100.0] * rows,
        "conditions": ["@"] * rows,
        "exchange": ["Q"] * rows,
        "tape": ["C"] * rows,
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def put(row: int, column: str, value: Any, rows: int = 6) -> Columns:
    """A good tape with one value replaced."""
    changed = columns(rows)
    changed[column] = [value if at == row else old for at, old in enumerate(changed[column])]
    return changed


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    def write(data: Columns, name: str = "tape.parquet", **options: Any) -> Path:
        pq.write_table(pa.table(data), tmp_path / name, **options)
        return tmp_path / name

    return write


Make = Callable[..., Path]


def read(*paths: Path, **options: Any) -> tuple[TapeReader, list[Batch]]:
    reader = TapeReader(paths, **options)
    return reader, list(reader.batches())


def prices(batches: list[Batch]) -> list[float]:
    return [price for batch in batches for price in batch.price.tolist()]


def refusal(*paths: Path, **options: Any) -> str:
    """The one line with which the files are refused."""
    with pytest.raises(Invalid) as caught:
        read(*paths, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert any(str(path) in line for path in paths)
    return line


# -- files that are no tape --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"PAR1PAR1", b"symbol,ts_ns\nAAPL,1\n" * 50, bytes(range(256)) * 8], ids=len
)
def test_file_that_is_not_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tape.parquet"
    path.write_bytes(content)
    assert "not a Parquet file" in refusal(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_file_without_its_end_is_refused(make: Make, share: float) -> None:
    path = make(columns(500))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "not a Parquet file" in refusal(path)


def test_file_with_damage_in_its_middle_is_refused_or_read_whole(make: Make) -> None:
    path = make(columns(5_000), compression="zstd")
    whole = bytearray(path.read_bytes())
    whole[200:1_200] = bytes(1_000)
    path.write_bytes(whole)
    assert "cannot be read" in refusal(path)


def test_folder_and_missing_file_are_refused(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "nowhere.parquet")


@pytest.mark.parametrize("name", ["symbol", "ts_ns", "price", "size", "conditions", "exchange", "tape"])
def test_missing_column_is_named_with_those_that_there_are(make: Make, name: str) -> None:
    line = refusal(make(columns(**{name: None})))
    assert f"lacks the column '{name}'" in line
    assert "it has: " in line


def test_several_missing_columns_are_all_named(make: Make) -> None:
    assert "'price' and 'size'" in refusal(make(columns(price=None, size=None)))


def test_column_of_the_profile_is_asked_for(make: Make) -> None:
    assert "lacks the column 'cond_flags'" in refusal(make(columns()), conditions_column="cond_flags")


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        ("symbol", [1] * 6, "text"),
        ("conditions", [1.5] * 6, "text"),
        ("exchange", [b"Q"] * 6, "text"),
        ("tape", [True] * 6, "text"),
        ("ts_ns", ["2025-03-10"] * 6, "an integer"),
        ("ts_ns", [1.5] * 6, "an integer"),
        ("price", ["10.0"] * 6, "a number"),
        ("size", ["100"] * 6, "a number"),
        ("price", [[1.0]] * 6, "a number"),
        ("symbol", [None] * 6, "text"),
    ],
)
def test_column_of_another_type_is_refused(make: Make, name: str, values: list[Any], wanted: str) -> None:
    line = refusal(make(columns(**{name: values})))
    assert f"the column '{name}' must be {wanted}, not " in line


def test_integers_decimals_and_dictionaries_are_as_good_as_floats_and_texts(make: Make) -> None:
    plain = make(columns(), "plain.parquet")
    others = columns(
        symbol=pa.array(["AAPL", "MSFT"] * 3).dictionary_encode(),
        price=pa.array([10, 11, 12, 13, 14, 15], pa.int32()),
        size=pa.array(["100"] * 6).cast(pa.decimal128(9, 2)),
        conditions=pa.array(["@"] * 6, pa.large_string()),
    )
    other = make(others, "other.parquet")
    one, two = read(plain)[1], read(other)[1]
    assert [b.price.tolist() for b in one] == [b.price.tolist() for b in two]
    assert [b.size.tolist() for b in one] == [b.size.tolist() for b in two]
    assert [b.symbols for b in one[:1]] == [b.symbols for b in two[:1]]


def test_empty_tape_has_no_batches_with_rows(make: Make) -> None:
    empty = {name: pa.array(values)[:0] for name, values in columns().items()}
    reader, batches = read(make(empty))
    assert (sum(map(len, batches)), reader.total_rows, reader.seen.rows) == (0, 0, 0)


# -- rows that are no trade --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("price", float("nan"), "price"),
        ("price", None, "price"),
        ("price", 0.0, "price"),
        ("price", -1.0, "price"),
        ("price", float("inf"), "price"),
        ("price", float("-inf"), "price"),
        ("size", float("nan"), "size"),
        ("size", None, "size"),
        ("size", -1.0, "size"),
        ("size", float("inf"), "size"),
        ("ts_ns", 0, "ts_ns"),
        ("ts_ns", None, "ts_ns"),
        ("ts_ns", -START_NS, "ts_ns"),
        ("ts_ns", START_NS // SECOND_NS, "ts_ns"),
        ("ts_ns", YEAR_2100_NS, "ts_ns"),
        ("ts_ns", 2**63 - 1, "ts_ns"),
        ("ts_ns", -(2**63), "ts_ns"),
        ("ts_ns", START_NS + 3 * 3600 * SECOND_NS, "ts_ns_spike"),
        ("ts_ns", YEAR_2100_NS - SECOND_NS, "ts_ns_spike"),
        ("symbol", "", "symbol"),
        ("symbol", None, "symbol"),
        ("symbol", "A" * 25, "symbol"),
        ("symbol", "AA\nPL", "symbol"),
        ("symbol", "AA\x00PL", "symbol"),
        ("symbol", "AAPL\N{RIGHT-TO-LEFT OVERRIDE}", "symbol"),
    ],
)
@pytest.mark.parametrize("row", [0, 3])
def test_row_that_is_no_trade_is_rejected_by_reason_and_named(
    make: Make, column: str, value: Any, reason: str, row: int
) -> None:
    reader, batches = read(make(put(row, column, value)))
    assert reader.seen.rejected == {reason: 1}
    assert reader.seen.first == {reason: f"tape.parquet row {row}"}
    assert prices(batches) == [10.0 + at for at in range(6) if at != row]
    assert reader.seen.rows == 6


def test_rows_of_nulls_are_all_rejected(make: Make) -> None:
    kinds = {name: pa.array(values).type for name, values in columns().items()}
    reader, batches = read(make({name: pa.nulls(4, kind) for name, kind in kinds.items()}))
    assert sum(reader.seen.rejected.values()) == 4
    assert prices(batches) == []


def test_null_conditions_exchange_and_tape_are_unknown_and_kept(make: Make) -> None:
    changed = columns(
        conditions=pa.nulls(6, pa.string()), exchange=pa.nulls(6, pa.string()), tape=pa.nulls(6, pa.string())
    )
    reader, batches = read(make(changed))
    (rows,) = (batch for batch in batches if len(batch))
    assert reader.seen.rejected == {}
    assert {rows.conditions[code] for code in rows.condition} == {""}
    assert set(rows.tape.tolist()) == set(rows.exchange.tolist()) == {0}


def test_rejected_rows_are_counted_and_only_the_first_is_named(make: Make) -> None:
    reader, _ = read(make(columns(price=[10.0, -1.0, 11.0, float("nan"), 0.0, 12.0])))
    assert reader.seen.rejected == {"price": 3}
    assert reader.seen.first == {"price": "tape.parquet row 1"}


def test_first_row_is_named_by_its_place_in_the_file_beyond_the_first_chunk(make: Make) -> None:
    rows = 140_000
    changed = columns(rows, ts_ns=[START_NS + row * 1_000_000 for row in range(rows)])
    changed["price"][137_000] = -1.0
    reader, _ = read(make(changed))
    assert reader.seen.first == {"price": "tape.parquet row 137000"}


@pytest.mark.parametrize("row", [2, 3])
def test_spike_is_found_at_the_edge_of_a_row_group(make: Make, row: int) -> None:
    changed = put(row, "ts_ns", START_NS + 100 * DAY_NS)
    reader, batches = read(make(changed, row_group_size=3))
    assert reader.seen.rejected == {"ts_ns_spike": 1}
    assert len(prices(batches)) == 5


@pytest.mark.parametrize("rows", [(131_071,), (131_072,), (131_071, 140_000)])
def test_spike_is_found_at_the_edge_of_a_chunk(make: Make, rows: tuple[int, ...]) -> None:
    changed = columns(150_000, ts_ns=[START_NS + row * 1_000_000 for row in range(150_000)])
    for row in rows:
        changed["ts_ns"][row] = START_NS + 100 * DAY_NS
    reader, _ = read(make(changed))
    assert reader.seen.rejected == {"ts_ns_spike": len(rows)}
    assert reader.seen.first == {"ts_ns_spike": f"tape.parquet row {rows[0]}"}


def test_good_row_between_rows_without_time_is_kept(make: Make) -> None:
    good = columns()["ts_ns"]
    reader, batches = read(make(columns(ts_ns=[good[0], 0, good[2], 0, good[4], good[5]])))
    assert reader.seen.rejected == {"ts_ns": 2}
    assert prices(batches) == [10.0, 12.0, 14.0, 15.0]


def test_good_row_between_very_late_rows_is_kept(make: Make) -> None:
    good = columns()["ts_ns"]
    late = [good[0], good[1], good[2] - 2 * 3600 * SECOND_NS, good[3], good[4] - 2 * 3600 * SECOND_NS, good[5]]
    reader, batches = read(make(columns(ts_ns=late)))
    assert reader.seen.rejected == {}
    assert len(prices(batches)) == 6


def test_jump_to_the_next_day_is_no_spike(make: Make) -> None:
    good = columns()["ts_ns"]
    reader, batches = read(make(columns(ts_ns=good[:3] + [ns + DAY_NS for ns in good[3:]])))
    assert reader.seen.rejected == {}
    assert len(prices(batches)) == 6


def test_rows_out_of_order_are_kept_counted_and_in_their_place(make: Make) -> None:
    good = columns()["ts_ns"]
    reader, batches = read(make(columns(ts_ns=[good[0], good[3], good[1], good[2], good[4], good[5]])))
    assert reader.seen.noted["out_of_order"] == 2
    assert reader.seen.first["out_of_order"] == "tape.parquet row 2"
    assert prices(batches) == [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]


def test_unknown_conditions_are_kept_for_the_profile_to_judge(make: Make) -> None:
    reader, batches = read(make(columns(conditions=["@", "?", "@ð", "", "@@@@@@", "\n"])))
    assert reader.seen.rejected == {}
    (rows,) = (batch for batch in batches if len(batch))
    assert [rows.conditions[code] for code in rows.condition] == ["@", "?", "@ð", "", "@@@@@@", "\n"]


# -- corrections, duplicates, test symbols -----------------------------------------------------------------------------


@pytest.mark.parametrize("as_text", [True, False])
def test_correction_codes_keep_drop_or_reject(make: Make, as_text: bool) -> None:  # noqa: FBT001
    codes = [0, 1, 2, 7, 8, 10, 11, 12, 3, 99]
    values = [f"{code:02d}" for code in codes] if as_text else codes
    reader, batches = read(make(columns(10, correction=values)))
    assert prices(batches) == [10.0, 11.0, 12.0]
    assert reader.seen.dropped == {"correction": 5}
    assert reader.seen.rejected == {"correction_code": 2}
    assert reader.seen.first == {"correction": "tape.parquet row 3", "correction_code": "tape.parquet row 8"}
    assert reader.seen.noted["corrected"] == 2


def test_correction_that_is_no_code_is_rejected_and_null_is_none(make: Make) -> None:
    reader, _ = read(make(columns(correction=["00", None, "", "oops", "-1", "00"])))
    assert reader.seen.rejected == {"correction_code": 2}


@pytest.mark.parametrize(
    "ids",
    [[7, 8, 9, 7, 8, 1], ["7", "8", "9", "7", "8", "1"], ["a7", "a8", "a9", "a7", "a8", "a1"]],
    ids=["integers", "digits", "texts"],
)
def test_repeated_trade_ids_are_dropped_and_the_first_named(make: Make, ids: list[Any]) -> None:
    reader, batches = read(make(columns(symbol=["AAPL"] * 6, trade_id=ids)))
    assert reader.seen.dropped == {"duplicate": 2}
    assert reader.seen.first == {"duplicate": "tape.parquet row 3", "conflict": "tape.parquet row 3"}
    assert reader.seen.conflicts == 2
    assert prices(batches) == [10.0, 11.0, 12.0, 15.0]


def test_of_duplicates_in_conflict_the_first_stands(make: Make) -> None:
    data = columns(symbol=["AAPL"] * 6, trade_id=[7, 7, 7, 8, 8, 8], price=[10.0, 10.0, 11.0, 12.0, 12.0, 12.0])
    reader, batches = read(make({**data, "ts_ns": [START_NS] * 6}))
    assert (reader.seen.dropped, reader.seen.conflicts) == ({"duplicate": 4}, 1)
    assert reader.seen.first == {"duplicate": "tape.parquet row 1", "conflict": "tape.parquet row 2"}
    assert prices(batches) == [10.0, 12.0]


def test_equal_trade_ids_of_others_are_no_duplicates(make: Make) -> None:
    day = [START_NS, START_NS + 1, START_NS + 2, START_NS + 3, START_NS + DAY_NS, START_NS + DAY_NS]
    changed = columns(
        symbol=["AAPL", "MSFT", "AAPL", "AAPL", "AAPL", "AAPL"],
        exchange=["Q", "Q", "P", "D", "Q", "P"],
        trade_id=[5] * 6,
        ts_ns=day,
    )
    assert read(make(changed))[0].seen.dropped == {}


def test_trade_reporting_facilities_number_on_their_own(make: Make) -> None:
    reported = columns(
        symbol=["AAPL"] * 6, exchange=["D"] * 6, trade_id=[5] * 6, price=[10.0, 11.0, 10.0, 11.0, 10.0, 11.0]
    )
    reported["ts_ns"] = [START_NS, START_NS, START_NS, START_NS + 1, START_NS + 1_000_000, START_NS]
    reported["size"] = [100.0] * 6
    reader, batches = read(make(reported))
    assert reader.seen.dropped == {"duplicate": 3}
    assert prices(batches) == [10.0, 11.0, 10.0]


def test_trades_without_an_id_are_no_duplicates(make: Make) -> None:
    for ids in (pa.nulls(6, pa.int64()), [0] * 6, pa.nulls(6, pa.string()), [""] * 6):
        assert read(make(columns(symbol=["AAPL"] * 6, trade_id=ids)))[0].seen.dropped == {}


def test_same_file_twice_counts_each_trade_once(make: Make) -> None:
    path = make(columns(symbol=["AAPL"] * 6, trade_id=range(1, 7)))
    reader, batches = read(path, path)
    assert (reader.seen.dropped, reader.seen.conflicts) == ({"duplicate": 6}, 0)
    assert prices(batches) == [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]


def test_test_symbols_are_dropped_and_counted_unless_wanted(make: Make) -> None:
    path = make(columns(symbol=["AAPL", "ZVZZT", "MSFT", "ZVZZT", "AAPL", "MSFT"]))
    reader, batches = read(path)
    assert reader.seen.dropped == {"test_symbol": 2}
    assert reader.seen.first == {"test_symbol": "tape.parquet row 1"}
    assert all("ZVZZT" not in batch.symbols for batch in batches)
    assert len(prices(read(path, keep_test_symbols=True)[1])) == 6


# -- marks and files ---------------------------------------------------------------------------------------------------


def test_marks_stand_before_the_row_that_takes_time_past_a_pulse(make: Make) -> None:
    times = [START_NS, START_NS + 1, START_NS + PULSE_NS - 1, START_NS + PULSE_NS, START_NS + 5, START_NS + SECOND_NS]
    rows, end = read(make(columns(ts_ns=times)))[1]
    assert rows.marks_row.tolist() == [0, 3, 5]
    assert rows.marks_ns.tolist() == [START_NS, START_NS + PULSE_NS, START_NS + SECOND_NS]
    assert (len(end), end.marks_ns.tolist()) == (0, [START_NS + 2 * MINUTE_NS])


@pytest.mark.parametrize("backwards", [False, True])
def test_files_are_read_in_the_order_of_time(make: Make, backwards: bool) -> None:  # noqa: FBT001
    later = make(columns(ts_ns=[START_NS + DAY_NS + row for row in range(6)]), "a.parquet")
    sooner = make(columns(price=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), "b.parquet")
    paths = [sooner, later] if backwards else [later, sooner]
    assert prices(read(*paths)[1]) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0]


def test_overlapping_files_are_merged_by_time(make: Make) -> None:
    odd = make(columns(ts_ns=[START_NS + SECOND_NS // 2 + row * SECOND_NS for row in range(6)]), "odd.parquet")
    even = make(columns(), "even.parquet")
    rows = [batch for batch in read(odd, even)[1] if len(batch)]
    times = np.concatenate([batch.ts_ns for batch in rows])
    assert len(times) == 12
    assert (np.diff(times) > 0).all()


def test_files_of_equal_times_give_the_same_tape_in_any_order(make: Make) -> None:
    first = make(columns(), "first.parquet")
    second = make(columns(price=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), "second.parquet")
    assert prices(read(first, second)[1]) == prices(read(second, first)[1])


def test_rows_of_all_bad_times_do_not_hide_the_others(make: Make) -> None:
    bad = make(columns(ts_ns=[0] * 6), "bad.parquet")
    reader, batches = read(bad, make(columns(), "good.parquet"))
    assert reader.seen.rejected == {"ts_ns": 6}
    assert len(prices(batches)) == 6
    assert np.concatenate([batch.marks_ns for batch in batches]).min() == START_NS


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        ("correction", [0.5] * 6, "text or an integer"),
        ("trade_id", [True] * 6, "text or an integer"),
        ("trade_id", [[1]] * 6, "text or an integer"),
    ],
)
def test_optional_column_of_another_type_is_refused(make: Make, name: str, values: list[Any], wanted: str) -> None:
    assert f"the column '{name}' must be {wanted}, not " in refusal(make(columns(trade_id=range(6)) | {name: values}))


def test_column_that_comes_twice_is_refused(tmp_path: Path) -> None:
    good = pa.table(columns())
    path = tmp_path / "twice.parquet"
    pq.write_table(good.append_column("price", good.column("price")), path)
    assert "the column 'price' more than once" in refusal(path)


def test_structures_before_the_time_do_not_hide_it(make: Make) -> None:
    first = make({"more": [{"a": "x", "b": "y"}] * 6, **columns()}, "z.parquet")
    later = make(columns(ts_ns=[START_NS + DAY_NS + row for row in range(6)], price=[1.0] * 6), "a.parquet")
    assert prices(read(later, first)[1]) == [10.0, 11.0, 12.0, 13.0, 14.0, 15.0] + [1.0] * 6


def test_flags_and_doubt_that_are_null_are_zero_and_no_doubt(make: Make) -> None:
    path = make(columns(cond_flags=[1, None, 0x40, 1, 1, 1], suspicious=[None, None, False, True, None, False]))
    (rows,) = (batch for batch in read(path, conditions_column="cond_flags")[1] if len(batch))
    words = [rows.conditions[code] for code in rows.condition]
    assert words == ["0x1", "0x0", "0x40", "0x1 suspicious", "0x1", "0x1"]


def test_trade_id_is_the_same_beside_digits_and_beside_texts(make: Make) -> None:
    digits = make(columns(symbol=["AAPL"] * 6, trade_id=["1", "2", "3", "4", "5", "6"]), "a.parquet")
    texts = make(columns(symbol=["AAPL"] * 6, trade_id=["1", "x", "3", "y", "z", ""]), "b.parquet")
    assert read(digits, texts)[0].seen.dropped == {"duplicate": 2}
