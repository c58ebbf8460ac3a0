"""What people save of toplists: ToplistDraft and Toplist, and what the engine takes of one.

A metric is a name of the catalogue, or a short name (such as ``change_pct``) that `time_window` makes one of it.
Filters are conditions like those of rules, without what remembers earlier scans: a list asks one board.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator

from tapewatch.engine.metrics import CATALOGUE, canonical_metric
from tapewatch.engine.rules import checked
from tapewatch.engine.rules import text as texts
from tapewatch.engine.rules.cost import cost
from tapewatch.engine.rules.questions import remembers
from tapewatch.engine.rules.tree import (
    Comparison,
    ComparisonOperator,
    Condition,
    Crossing,
    Held,
    InARow,
    Number,
    Operand,
    Then,
    Within,
    operands,
    walk,
    watchlists,
)
from tapewatch.engine.toplists import RankedBy
from tapewatch.errors import Invalid
from tapewatch.strict import Document, Identifier, Text, refuse_field

MAX_COLUMNS = 20
MAX_NAMES = 100
"""Exchanges, or sectors, of one filter."""
MAX_WHEN = 2_000
"""Characters."""
MAX_COST_US = 1_000.0
"""Of a list's filters, per scan of ten thousand symbols: there may be five hundred lists, ranked each second."""
MAX_JUMP = 50

TimeWindow = Literal["1m", "5m", "15m", "1h", "1d"]
WINDOWS: dict[str, str] = {"1m": "1m", "5m": "5m", "15m": "15m", "1h": "1h", "1d": "day"}
"""As lists spell them, and as the catalogue does."""
_SHORT: dict[str, Callable[[str], str]] = {
    "change_pct": "change_pct_{}".format,
    "volume": "volume_{}".format,
    "rsi": "rsi_14_{}".format,
    "relative_volume": "relative_volume_{}".format,
    "vwap_dist": "vwap_{}_distance_pct".format,
}
SHORT_NAMES = tuple(_SHORT)
EXCHANGES = {
    "NYSE": "XNYS",
    "NASDAQ": "XNAS",
    "ARCA": "ARCX",
    "NYSEARCA": "ARCX",
    "AMEX": "XASE",
    "CBOE": "BATS",
    "IEX": "IEXG",
}
"""Names that people use, and the MIC of each."""
_NODES: dict[type[Any], str] = {
    Crossing: "crosses_above and crosses_below",
    Held: "for",
    Within: "within",
    InARow: "times in a row",
    Then: "then",
}
COLOUR = r"^(default|green|red|blue|orange|yellow|purple|teal|grey|#[0-9a-fA-F]{6})$"
Colour = Annotated[str, Field(pattern=COLOUR)]
Bound = Annotated[float, Field(ge=0, le=checked.MAX_MAGNITUDE)]
Percent = Annotated[float, Field(ge=-checked.MAX_MAGNITUDE, le=checked.MAX_MAGNITUDE)]


def metric_of(name: str, time_window: TimeWindow | None) -> str:
    """The catalogue's metric that is meant; ValueError says why there is none."""
    if name in _SHORT:
        if time_window is None:
            raise ValueError(f"{name} needs a time_window")
        metric = _SHORT[name](WINDOWS[time_window])
    else:
        metric = canonical_metric(name)
    if CATALOGUE[metric].freshness == "scan":
        raise ValueError(f"{metric} tells what happened since the scan before, and a list asks one board")
    return metric


def _without_the_symbol(columns: list[str]) -> list[str]:
    """It is always there."""
    return list(dict.fromkeys(name for name in columns if name != "symbol"))


def _mic(value: Any) -> Any:
    return EXCHANGES.get(value.upper(), value) if isinstance(value, str) else value


def _whole(value: Any) -> Any:
    """In JSON 2.0 is the same number as 2."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _once(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))


MetricName = Annotated[str, Field(max_length=64, json_schema_extra={"format": "list-metric"})]
Mic = Annotated[str, Field(pattern=checked.EXCHANGE_PATTERN), BeforeValidator(_mic)]
Sector = Annotated[Text, Field(min_length=1, max_length=checked.MAX_SECTOR)]


class ColorScheme(Document):
    """How values above, below and at zero are coloured: a name, or ``#rrggbb``."""

    positive: Colour = "default"
    negative: Colour = "default"
    neutral: Colour = "default"


class Filters(Document):
    """All of them must hold; what is unknown does not."""

    min_volume: Bound | None = None
    """Of the day, in shares."""
    min_change_pct: Percent | None = None
    """Over the list's time_window; of the day where it has none."""
    price_min: Bound | None = None
    price_max: Bound | None = None
    exchanges: Annotated[list[Mic], Field(max_length=MAX_NAMES), AfterValidator(_once)] = Field(default_factory=list)
    """MICs such as XNAS, or names such as NASDAQ; empty for all."""
    market_cap_min: Bound | None = None
    """Dollars."""
    market_cap_max: Bound | None = None
    sectors: Annotated[list[Sector], Field(max_length=MAX_NAMES), AfterValidator(_once)] = Field(default_factory=list)
    """As the reference data write them; empty for all."""
    when: Annotated[str, Field(max_length=MAX_WHEN, json_schema_extra={"format": "list-filter"})] = ""
    """Any condition of the rule language that does not remember earlier scans."""

    _when: Condition | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _checked(self) -> "Filters":
        for low, high in (("price_min", "price_max"), ("market_cap_min", "market_cap_max")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                refuse_field(Filters, high, f"is below {low}", most)
        if self.when:
            try:
                self._when = texts.parse_condition(self.when)
            except Invalid as error:
                refuse_field(Filters, "when", str(error), self.when)
            if why := _why_not(self._when):
                refuse_field(Filters, "when", why, self.when)
            text = texts.format_condition(self._when)
            if len(text) > MAX_WHEN:
                refuse_field(Filters, "when", f"is longer than {MAX_WHEN:,} characters in its canonical form", text)
            self.__dict__["when"] = text
        return self

    def conditions(self, change: str) -> list[Condition]:
        """`change` is the metric that `min_change_pct` is of."""
        bounds: tuple[tuple[float | None, str, ComparisonOperator], ...] = (
            (self.min_volume, "volume_day", ">="),
            (self.min_change_pct, change, ">="),
            (self.price_min, "price", ">="),
            (self.price_max, "price", "<="),
            (self.market_cap_min, "market_cap", ">="),
            (self.market_cap_max, "market_cap", "<="),
        )
        found: list[Condition] = [
            Comparison(Operand(metric), operator, Number(float(bound)))
            for bound, metric, operator in bounds
            if bound is not None
        ]
        if self.exchanges:
            found.append(checked.attribute("exchange", self.exchanges))
        if self.sectors:
            found.append(checked.attribute("sector", self.sectors))
        return found if self._when is None else [*found, self._when]


def _why_not(condition: Condition) -> str:
    """Why a list cannot ask this; empty if it can."""
    if remembers(condition):
        kind = next(_NODES[type(node)] for node in walk(condition) if type(node) in _NODES)
        return f"{kind} cannot be asked by a list: it would have to remember earlier scans"
    for operand in operands(condition):
        if CATALOGUE[operand.metric].freshness == "scan":
            return f"{operand.metric} tells what happened since the scan before, and a list asks one board"
    return ""


class ToplistDraft(Document):
    """A toplist as its author writes it."""

    name: Annotated[Text, Field(min_length=1, max_length=120)]
    description: Annotated[Text, Field(max_length=2_000)] = ""
    metric: MetricName
    """A metric of the catalogue, or change_pct, volume, rsi, relative_volume or vwap_dist over the `time_window`."""
    time_window: TimeWindow | None = None
    sort_order: Literal["asc", "desc"] = "desc"
    filters: Filters = Field(default_factory=Filters)
    columns: Annotated[
        list[MetricName],
        Field(max_length=MAX_COLUMNS + 1),
        AfterValidator(_without_the_symbol),
    ] = Field(default_factory=lambda: ["price", "change_pct_day", "volume_day"])
    """Metrics, named as `metric` is; ``symbol`` is always there."""
    color_scheme: ColorScheme = Field(default_factory=ColorScheme)
    enabled: bool = True
    alerts: bool = False
    """Tell when a symbol enters, leaves, or jumps."""
    jump_ranks: Annotated[int, Field(ge=1, le=MAX_JUMP), BeforeValidator(_whole)] = 10
    """Places that are a jump."""

    @model_validator(mode="after")
    def _checked(self) -> "ToplistDraft":
        metric = self._resolved("metric", self.metric)
        window = CATALOGUE[metric].timeframe
        if self.time_window is not None and window in set(WINDOWS.values()) - {WINDOWS[self.time_window]}:
            refuse_field(ToplistDraft, "time_window", f"is not the one of {metric}; leave it out", self.time_window)
        if len(self.columns) > MAX_COLUMNS:
            refuse_field(ToplistDraft, "columns", f"are more than {MAX_COLUMNS}", self.columns)
        for name in self.columns:
            self._resolved("columns", name)
        try:
            where = self.ranked_by.where
            if where is not None:
                checked.check_size(where)
        except ValueError as error:
            refuse_field(ToplistDraft, "filters", str(error))
        if where is not None:
            asked_us = cost(where).scan_us
            if asked_us > MAX_COST_US:
                why = (
                    f"ask too much: {asked_us:,.0f} microseconds a scan of 10,000 symbols, "
                    f"and {MAX_COST_US:,.0f} are allowed"
                )
                refuse_field(ToplistDraft, "filters", why)
        return self

    def _resolved(self, field: str, name: str) -> str:
        try:
            return metric_of(name, self.time_window)
        except ValueError as error:
            refuse_field(ToplistDraft, field, str(error), name)

    @cached_property
    def shown(self) -> tuple[str, ...]:
        """The columns, as the catalogue calls them."""
        return tuple(dict.fromkeys(metric_of(name, self.time_window) for name in self.columns))

    @cached_property
    def ranked_by(self) -> RankedBy:
        """What the engine ranks."""
        change = f"change_pct_{WINDOWS[self.time_window or '1d']}"
        conditions = self.filters.conditions(change)
        return RankedBy(
            metric=metric_of(self.metric, self.time_window),
            descending=self.sort_order == "desc",
            where=checked.all_of(conditions) if conditions else None,
        )

    @property
    def reads(self) -> tuple[str, ...]:
        """The rows of the board that it needs."""
        return tuple(dict.fromkeys((*self.ranked_by.reads, *self.shown)))

    @property
    def watchlists(self) -> tuple[str, ...]:
        """Those that it names."""
        return watchlists(self.ranked_by.where)


class Toplist(ToplistDraft):
    """A saved toplist. `version` rises with each change."""

    id: Identifier
    owner: Identifier = "local"
    version: Annotated[int, Field(ge=1, le=2**31)] = 1
    created_at: str = ""
    updated_at: str = ""
