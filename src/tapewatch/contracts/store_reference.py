"""What every `Store` keeps its word about: the symbol master, splits and daily history."""

import math
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pytest

from tapewatch.contracts.samples import daily_bars_of, make_security, make_split, same
from tapewatch.documents import Security, day_number
from tapewatch.errors import Invalid
from tapewatch.ports import Store


class StoreReference:
    """Part of `StoreContract`."""

    async def test_security_arrives_as_it_was(self, store: Store) -> None:
        full = make_security("BRK.B")
        bare = Security(symbol="Zp$+=^_:-.", as_of=date(1990, 1, 1), is_test=True, active=False)
        await store.save_securities([bare, full])
        assert await store.securities() == [full, bare]

    async def test_securities_are_replaced_by_symbol(self, store: Store) -> None:
        await store.save_securities([make_security(f"S{n:04}") for n in range(3_000)])
        for _ in range(2):
            await store.save_securities([make_security("S0007", market_cap=None, active=False), make_security("X")])
        stored = await store.securities()
        assert [security.symbol for security in stored] == [*(f"S{n:04}" for n in range(3_000)), "X"]
        assert [s.symbol for s in stored if not s.active] == ["S0007"]
        assert [s.symbol for s in stored if s.market_cap is None] == ["S0007"]
        await store.save_securities([])
        assert await store.securities() == stored

    async def test_securities_asked_for_are_those_that_are_listed(self, store: Store) -> None:
        names = [f"S{n:04}" for n in range(1_500)]
        await store.save_securities([make_security(name) for name in [*names, "T"]])
        found = await store.securities_of([*reversed(names), "NOPE", "S0001"])
        assert found == [make_security(name) for name in names]
        assert await store.securities_of([]) == []

    async def test_splits_are_by_date_and_replaced_by_symbol_and_date(self, store: Store) -> None:
        early, late = date(2024, 6, 10), date(2024, 7, 12)
        wrong = make_split("A", late, 1, 2)
        given = [make_split("B", early, 1, 10), make_split("A", late, 1.5, 0.1 + 0.2), make_split("A", early, 20, 1)]
        await store.save_splits([wrong])
        for _ in range(2):
            await store.save_splits(given)
        assert await store.splits() == [given[2], given[0], given[1]]
        assert await store.splits(start=late) == [given[1]]
        assert await store.splits(start=late + timedelta(1)) == []

    async def test_daily_bars_arrive_as_they_were(self, store: Store) -> None:
        monday, tuesday = date(2025, 3, 3), date(2025, 3, 4)
        bars = daily_bars_of([("B", monday), ("A", tuesday), ("A", monday), ("C", monday)])
        await store.save_daily_bars(bars)
        stored = await store.daily_bars(["B", "NOPE", "A"])
        assert stored.symbols == ("B", "NOPE", "A")
        assert [stored.symbols[i] for i in stored.symbol] == ["A", "A", "B"]
        assert stored.day.tolist() == [day_number(day) for day in (monday, tuesday, monday)]
        assert same(
            replace(stored, symbols=bars.symbols, symbol=bars.symbol[[2, 1, 0]]), bars.take(np.array([2, 1, 0]))
        )
        assert len(await store.daily_bars([])) == 0

    async def test_daily_bars_are_of_the_days_asked_for(self, store: Store) -> None:
        days = [date(2025, 3, 3) + timedelta(n) for n in range(5)]
        await store.save_daily_bars(daily_bars_of([("A", day) for day in days] + [("B", days[0]), ("B", days[3])]))

        async def found(**wanted: date) -> list[int]:
            bars = await store.daily_bars(["A"], **wanted)
            return [day - day_number(days[0]) for day in bars.day.tolist()]

        assert await found() == [0, 1, 2, 3, 4]
        assert await found(start=days[1], end=days[3]) == [1, 2, 3]
        assert await found(start=days[4]) == [4]
        assert await found(end=days[0] - timedelta(1)) == []

    async def test_daily_bar_is_replaced_by_symbol_and_day(self, store: Store) -> None:
        monday = date(2025, 3, 3)
        await store.save_daily_bars(daily_bars_of([("A", monday), ("B", monday)]))
        for _ in range(2):
            await store.save_daily_bars(daily_bars_of([("A", monday)], close=12.0))
        assert (await store.daily_bars(["A", "B"])).close.tolist() == [12.0, 10.0]

    async def test_daily_bars_of_many_symbols_all_arrive(self, store: Store) -> None:
        names = [f"S{n:04}" for n in range(2_500)]
        await store.save_daily_bars(daily_bars_of([(name, date(2025, 3, 3)) for name in names]))
        stored = await store.daily_bars(names)
        assert stored.symbol.tolist() == list(range(2_500))

    async def test_days_with_daily_bars_are_told_once_each(self, store: Store) -> None:
        assert await store.daily_days() == []
        days = [date(2025, 3, 3), date(2025, 3, 4), date(2025, 3, 7)]
        await store.save_daily_bars(daily_bars_of([(name, day) for day in reversed(days) for name in "AB"]))
        assert await store.daily_days() == days
        assert await store.daily_days(start=days[1]) == days[1:]
        assert await store.daily_days(start=date(2025, 3, 8)) == []

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("open", math.nan),
            ("high", math.inf),
            ("low", -1.0),
            ("close", 0.0),
            ("volume", math.nan),
            ("volume", -5.0),
            ("high", 0.2),
            ("day", 0),
            ("day", 10**6),
        ],
    )
    async def test_row_that_cannot_be_a_daily_bar_is_named_and_nothing_is_saved(
        self, store: Store, column: str, value: float
    ) -> None:
        bars = daily_bars_of([("A", date(2025, 3, 3)), ("B", date(2025, 3, 3)), ("C", date(2025, 3, 3))])
        values = getattr(bars, column).copy()
        values[1] = value
        with pytest.raises(Invalid, match=rf"row 1, column {column}.* of B "):
            await store.save_daily_bars(replace(bars, **{column: values}))
        assert await store.daily_days() == []
