"""Files of reference data: taken as a whole, or refused by file, row and column"""

import gzip
import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tapewatch.adapters.sql import SqlStore
from tapewatch.cli import app
from tapewatch.documents import Split, day_of_number
from tapewatch.errors import Invalid
from tapewatch.feeds.reference.files import FileReference

pytestmark = pytest.mark.anyio

SYMBOLS = """symbol,name,exchange,type,is_test,market_cap,round_lot,as_of
AAPL,Apple Inc.,XNAS,CS,,3.5e12,100,2025-03-03
"BRK.B","Berkshire, B",XNYS,,false,,,2025-03-03
ZVZZT,,,,,,,
"""
SPLITS = "symbol,ex_date,split_from,split_to\nNVDA,2024-06-10,1,10\nX,2024-07-01,20,1\n"
BARS = """symbol,date,open,high,low,close,volume
AAPL,2025-03-03,10,11,9,10.5,1000
AAPL,2025-03-04,10,11,9,10.75,1000.5
MSFT,2025-03-03,20,21,19,20.5,2000
"""
EVER = (date(1990, 1, 1), date(2099, 12, 31))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


async def test_files_are_told_apart_by_their_columns(tmp_path: Path) -> None:
    source = FileReference([write(tmp_path / f"{n}.csv", text) for n, text in enumerate((BARS, SPLITS, SYMBOLS))])
    listed = {security.symbol: security for security in await source.securities()}
    assert list(listed) == ["AAPL", "BRK.B", "ZVZZT", "MSFT"]
    aapl, brk = listed["AAPL"], listed["BRK.B"]
    assert (aapl.market_cap, aapl.round_lot, aapl.tape, aapl.as_of) == (3.5e12, 100, "C", date(2025, 3, 3))
    assert (brk.name, brk.tape, brk.type, brk.market_cap) == ("Berkshire, B", "A", None, None)
    assert [symbol for symbol, security in listed.items() if security.is_test] == ["ZVZZT"]
    assert listed["MSFT"].as_of == date(2025, 3, 4)
    assert await source.splits(date(2024, 6, 11), date(2024, 7, 1)) == [
        Split(symbol="X", ex_date=date(2024, 7, 1), split_from=20, split_to=1)
    ]
    bars = await source.daily_bars([], date(2025, 3, 4), date(2025, 3, 4))
    assert (bars.close.tolist(), bars.volume.tolist()) == ([10.75], [1000.5])
    assert [security async for security in source.details(["AAPL"])] == []
    await source.close()


async def test_parquet_and_compressed_files_are_read_alike(tmp_path: Path) -> None:
    packed = tmp_path / "bars.csv.gz"
    packed.write_bytes(gzip.compress(BARS.encode()))
    days = pa.array([date(2025, 3, 3), date(2025, 3, 4), date(2025, 3, 3)])
    table = pa.table(
        {
            "symbol": pa.array(["AAPL", "AAPL", "MSFT"]).dictionary_encode(),
            "date": days,
            "open": pa.array([10, 10, 20]),
            "high": [11.0, 11.0, 21.0],
            "low": [9.0, 9.0, 19.0],
            "close": [10.5, 10.75, 20.5],
            "volume": [1000.0, 1000.5, 2000.0],
        }
    )
    pq.write_table(table, tmp_path / "bars.parquet")
    securities = pa.table({"symbol": ["A"], "market_cap": [1e9], "is_test": [True], "as_of": [date(2025, 3, 3)]})
    pq.write_table(securities, tmp_path / "symbols.parquet")
    read = [await FileReference([path]).daily_bars([], *EVER) for path in (packed, tmp_path / "bars.parquet")]
    assert [day_of_number(day) for day in read[0].day.tolist()] == days.to_pylist()
    for name in ("symbol", "day", "open", "close", "volume"):
        assert getattr(read[0], name).tolist() == getattr(read[1], name).tolist()
    (a,) = await FileReference([tmp_path / "symbols.parquet"]).securities()
    assert (a.market_cap, a.is_test, a.as_of) == (1e9, True, date(2025, 3, 3))


def changed(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        (changed(BARS, "10.75", "ten"), "row 2, column close", "'ten' is not a number"),
        (changed(BARS, "10.75", ""), "row 2, column close", "nan of AAPL is not a price"),
        (changed(BARS, "10.75", "nan"), "row 2, column close", "nan of AAPL is not a price"),
        (changed(BARS, "20,21", "-20,21"), "row 3, column open", "-20.0 of MSFT is not a price"),
        (changed(BARS, "2000", "-1"), "row 3, column volume", "-1.0 of MSFT is not a number of shares"),
        (changed(BARS, "21,19", "18,19"), "row 3, column high", "is below the low"),
        (changed(BARS, "2025-03-04", "04.03.2025"), "row 2, column date", "is not a date such as"),
        (changed(BARS, "2025-03-04", "2025-02-30"), "row 2, column date", "is not a date such as"),
        (changed(BARS, "2025-03-04", "1925-03-04"), "row 2, column date", "is not a day between 1990 and 2100"),
        (changed(BARS, "2025-03-04", ""), "row 2, column date", "is not a day between"),
        (changed(BARS, "MSFT", "M S"), "row 3, column symbol", "'M S' is not a symbol"),
        (changed(BARS, "MSFT", ""), "row 3, column symbol", "is not a symbol"),
        (changed(BARS, "2025-03-04", "2025-03-03"), "row 2, column symbol", "AAPL of 2025-03-03 comes twice"),
        (changed(SPLITS, ",20,1", ",0,1"), "row 2, column split_from", "greater than 0"),
        (changed(SPLITS, ",20,1", ",x,1"), "row 2, column split_from", "'x' is not a number"),
        (changed(SPLITS, ",20,1", ",,1"), "row 2, column split_from", "is missing"),
        (changed(SPLITS, "X,2024-07-01", "NVDA,2024-06-10"), "row 2, column symbol", "NVDA comes twice"),
        (changed(SYMBOLS, "3.5e12", "-1"), "row 1, column market_cap", "greater than or equal to 0"),
        (changed(SYMBOLS, ",100,", ",1.5,"), "row 1, column round_lot", "'1.5' is not a whole number"),
        (changed(SYMBOLS, "XNYS", "NYSE!"), "row 2, column exchange", "match pattern"),
        (changed(SYMBOLS, "false", "no"), "row 2, column is_test", "'no' is neither true nor false"),
        (changed(SYMBOLS, "ZVZZT", "AAPL"), "row 3, column symbol", "AAPL comes twice"),
        (changed(BARS, "volume", "vol"), "", "lacks the column 'volume'"),
        (changed(SYMBOLS, "market_cap", "marketcap"), "", "has the unknown column 'marketcap'"),
        (changed(SPLITS, "symbol,ex_date", "symbol,symbol"), "", "more than once"),
        ("price\n1\n", "", "has no column 'symbol'"),
        ("", "", "cannot be read"),
        ("symbol,name\nA\n", "", "cannot be read"),
    ],
)
async def test_file_with_a_mistake_is_refused_by_row_and_column(
    tmp_path: Path, text: str, place: str, why: str
) -> None:
    path = write(tmp_path / "file.csv", text)
    with pytest.raises(Invalid, match=f"^{path}.*{place}.*{why}") as caught:
        await FileReference([path]).securities()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.csv", "folder", "broken.parquet", "latin.csv"])
async def test_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing")
    (tmp_path / "latin.csv").write_bytes("symbol,name\nA,caf\xe9\n".encode("latin-1"))
    with pytest.raises(Invalid, match=name):
        await FileReference([tmp_path / name]).splits(*EVER)


def load(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["reference", "load", *map(str, arguments)])


def test_command_loads_files_into_the_store(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.csv", text) for n, text in enumerate((BARS, SPLITS, SYMBOLS))]
    store = tmp_path / "store"
    told = load(*paths, "--data-dir", store, "--json")
    assert told.exit_code == 0, told.output
    expected = {"securities": 4, "delisted": 0, "splits": 2, "days": 2, "bars": 3, "details": 0}
    assert json.loads(told.stdout) == expected
    again = load(*paths, "--data-dir", store)
    assert again.stdout == "4 securities (0 no longer listed), 2 splits, 3 daily bars of 2 days\n"


async def test_file_with_a_mistake_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    good = write(tmp_path / "symbols.csv", SYMBOLS)
    bad = write(tmp_path / "bars.csv", changed(BARS, "2000", "-1"))
    (tmp_path / "store").mkdir()
    store = SqlStore(tmp_path / "store" / "tapewatch.db")
    await store.upgrade()
    from tapewatch.roles.reference import load as load_into

    with pytest.raises(Invalid, match="row 3, column volume"):
        await load_into(FileReference([good, bad]), store)
    assert await store.securities() == []
    await store.close()
