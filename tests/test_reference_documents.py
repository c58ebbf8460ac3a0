"""Security and Split: what a source may say of a listing, read strictly."""

from datetime import date, datetime
from typing import Any

import pytest

from tapewatch.documents import Security, Split, day_number, day_of_number, parse_document
from tapewatch.errors import Invalid

SECURITY = {"symbol": "AAPL", "as_of": "2025-03-03"}
SPLIT = {"symbol": "NVDA", "ex_date": "2024-06-10", "split_from": 1, "split_to": 10}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("symbol", ""),
        ("symbol", "A B"),
        ("symbol", "A" * 25),
        ("symbol", "../etc"),
        ("name", "bell \a"),
        ("exchange", "NASDAQ"),
        ("tape", "D"),
        ("type", "common stock"),
        ("is_test", 1),
        ("market_cap", -1.0),
        ("market_cap", float("nan")),
        ("shares_outstanding", float("inf")),
        ("shares_outstanding", "1000"),
        ("round_lot", 0),
        ("round_lot", 1.5),
        ("as_of", "2025-3-3"),
        ("as_of", "20250303"),
        ("as_of", "2025-02-30"),
        ("as_of", "1889-01-01"),
        ("as_of", datetime(2025, 3, 3)),  # noqa: DTZ001
        ("as_of", 20_150),
        ("cusip", "037833100"),
    ],
)
def test_security_with_a_wrong_field_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(Invalid, match=f"^here.{field}: "):
        parse_document(Security, SECURITY | {field: value}, where="here")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ex_date", None),
        ("ex_date", "2024-06-31"),
        ("split_from", 0.0),
        ("split_to", -10.0),
        ("split_to", float("nan")),
        ("split_to", float("inf")),
        ("split_from", "1"),
    ],
)
def test_split_with_a_wrong_field_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(Invalid, match=f"^here.{field}: "):
        parse_document(Split, SPLIT | {field: value}, where="here")


def test_what_a_source_does_not_say_is_unknown() -> None:
    security = parse_document(Security, SECURITY)
    assert (security.market_cap, security.exchange, security.round_lot) == (None, None, None)
    assert (security.active, security.is_test) == (True, False)


def test_factor_of_a_split_is_old_shares_per_new_one() -> None:
    split = parse_document(Split, SPLIT)
    assert split.spec() == ("NVDA", day_number(date(2024, 6, 10)), 0.1)
    assert day_of_number(split.spec().ex_day) == date(2024, 6, 10)
