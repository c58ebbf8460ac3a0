"""What people save, and what the product tells them: Rule, RuleDraft and Watchlist (from `rule_documents`), Alert, the
reference data Security and Split. `strict` says how JSON becomes one of them. Everything here is frozen.
"""

import math
import re
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Field

from tapewatch.engine.rules import Match
from tapewatch.engine.rules.checked import SYMBOL_PATTERN
from tapewatch.engine.splits import SplitSpec
from tapewatch.rule_documents import (
    DAY_S,
    MAX_CONDITIONS,
    Rule,
    RuleDraft,
    Watchlist,
    WatchlistDraft,
    load_rule_file,
    load_rules,
    rules_of,
    ruleset,
)
from tapewatch.rule_forms import Condition, ConditionForm
from tapewatch.strict import D, Document, Finite, Identifier, Symbol, Text, load_json, parse_document

MAX_NOTE = 1_000
"""Characters."""

_EPOCH = date(1970, 1, 1)
_FIRST_DATE, _END_DATE = date(1990, 1, 1), date(2100, 1, 1)


def _date(value: Any) -> Any:
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
            raise ValueError("is not a date such as 2025-03-03")
        try:
            value = date.fromisoformat(value)
        except ValueError:
            raise ValueError("is not a day of the calendar") from None
    if type(value) is date and not _FIRST_DATE <= value < _END_DATE:
        raise ValueError("is not between 1990 and 2100")
    return value


Day = Annotated[date, BeforeValidator(_date)]
"""A date, or its text such as ``2025-03-03``."""
Amount = Annotated[Finite, Field(ge=0, le=1e18)]


def day_number(day: date) -> int:
    """Days since 1970-01-01: how the engine counts days."""
    return (day - _EPOCH).days


def day_of_number(number: int) -> date:
    """The date of a `day_number`."""
    return _EPOCH + timedelta(days=int(number))


class Security(Document):
    """What is known of a listed security beside its trades. None is unknown."""

    symbol: Symbol
    name: Annotated[Text, Field(max_length=300)] | None = None
    exchange: Annotated[str, Field(pattern=r"^[A-Z0-9]{4}$", description="MIC of the listing exchange")] | None = None
    tape: Literal["A", "B", "C", "O"] | None = None
    """A NYSE, B other exchanges, C Nasdaq, O over the counter."""
    type: Annotated[str, Field(pattern=r"^[A-Z0-9_]{1,16}$", description="such as CS, ETF, ADRC")] | None = None
    is_test: bool = False
    """An exchange tests its systems with it."""
    active: bool = True
    market_cap: Amount | None = None
    """Dollars."""
    shares_outstanding: Amount | None = None
    sector: Annotated[Text, Field(max_length=200)] | None = None
    round_lot: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    as_of: Day
    """When the source said so."""


class Split(Document):
    """`split_from` old shares become `split_to` new ones at 04:00 of `ex_date`."""

    symbol: Symbol
    ex_date: Day
    split_from: Annotated[Finite, Field(gt=0, le=1e9)]
    split_to: Annotated[Finite, Field(gt=0, le=1e9)]

    def spec(self) -> SplitSpec:
        return SplitSpec(symbol=self.symbol, ex_day=day_number(self.ex_date), factor=self.split_from / self.split_to)


class Alert(msgspec.Struct, frozen=True, omit_defaults=False):
    """A rule came true for a symbol. The id is derived: the same event has the same id however often it is computed."""

    alert_id: str
    rule_id: str
    rule_version: int
    rule_name: str
    symbol: str
    fired_at_ns: int
    price: float
    values: dict[str, float]
    session: str
    received_ns: int = 0
    """Wall clock at which ingest had the trades that led here; 0 in a replay."""
    note: str = ""
    """What was learned after it fired, a line each."""
    ages_s: dict[str, float] = {}
    """How old each value was when it fired, in seconds of event time."""
    severity: str = "info"
    tags: tuple[str, ...] = ()
    owner: str = "local"
    """The user whose rule fired."""
    shared: bool = False
    """The rule was everybody's when it fired."""
    scanned_ns: int = 0
    """Wall clock at which the scanner told it; 0 in a replay. Like `received_ns` it is no part of what happened, and
    differs from run to run.
    """
    filtered_ns: int = 0
    """Wall clock at which the alerts role passed it on; 0 before and in a replay."""

    @classmethod
    def of(cls, match: Match, *, received_ns: int = 0, scanned_ns: int = 0) -> "Alert":
        return cls(
            alert_id=match.alert_id,
            rule_id=match.rule.id,
            rule_version=match.rule.version,
            rule_name=match.rule.name,
            symbol=match.symbol,
            fired_at_ns=match.fired_at_ns,
            price=match.price,
            values=match.values,
            session=match.session,
            received_ns=received_ns,
            ages_s=dict(match.ages_s),
            severity=match.rule.severity,
            tags=match.rule.tags,
            owner=match.rule.owner,
            shared=match.rule.shared,
            scanned_ns=scanned_ns,
        )

    def annotated(self, note: str) -> "Alert":
        """The alert with one more line of note. A line that it has already changes nothing, and beyond `MAX_NOTE`
        characters the text ends in an ellipsis.
        """
        if note in self.note.split("\n"):
            return self
        text = f"{self.note}\n{note}" if self.note else note
        return msgspec.structs.replace(self, note=text if len(text) <= MAX_NOTE else text[: MAX_NOTE - 1] + "…")

    def as_json(self) -> dict[str, Any]:
        """The public form: times as RFC 3339, unknown numbers as null, and so is a note that there is not."""
        return {
            "alert_id": self.alert_id,
            "rule_id": self.rule_id,
            "rule_version": self.rule_version,
            "rule_name": self.rule_name,
            "symbol": self.symbol,
            "fired_at": rfc3339(self.fired_at_ns),
            "price": known(self.price),
            "values": {name: known(value) for name, value in self.values.items()},
            "session": self.session,
            "note": self.note or None,
            "ages": {name: known(age_s) for name, age_s in self.ages_s.items()},
            "severity": self.severity,
            "tags": list(self.tags),
            "owner": self.owner,
            "shared": self.shared,
            "latency": {
                "received": _stamp(self.received_ns),
                "scanned": _stamp(self.scanned_ns),
                "filtered": _stamp(self.filtered_ns),
            },
        }


def known(value: float) -> float | None:
    """The number, or None when it is unknown (NaN)."""
    return None if math.isnan(value) else float(value)


def _stamp(at_ns: int) -> str | None:
    """A stamp of the wall clock; 0 is none."""
    return rfc3339(at_ns) if at_ns > 0 else None


def rfc3339(ts_ns: int) -> str:
    """UTC with nanoseconds, such as ``2013-10-07T13:30:01.000000000Z``."""
    seconds, nanoseconds = divmod(int(ts_ns), 1_000_000_000)
    return f"{_second(seconds)}.{nanoseconds:09d}Z"


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    """Alerts that come together share their seconds."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


__all__ = [
    "DAY_S",
    "MAX_CONDITIONS",
    "MAX_NOTE",
    "SYMBOL_PATTERN",
    "Alert",
    "Condition",
    "ConditionForm",
    "D",
    "Document",
    "Identifier",
    "Rule",
    "RuleDraft",
    "Security",
    "Split",
    "Symbol",
    "Text",
    "Watchlist",
    "WatchlistDraft",
    "day_number",
    "day_of_number",
    "known",
    "load_json",
    "load_rule_file",
    "load_rules",
    "parse_document",
    "rfc3339",
    "rules_of",
    "ruleset",
]
