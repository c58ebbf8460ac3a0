"""Metrics over the last minutes by the clock."""

from collections.abc import Callable, Iterator

from tapewatch.engine.board import Board
from tapewatch.engine.columns import F64
from tapewatch.engine.history import GRAINS_S, reach_of
from tapewatch.engine.metrics.declare import Kept, Metric

WINDOWS = {"1m": 1, "2m": 2, "5m": 5, "10m": 10, "15m": 15, "30m": 30, "1h": 60}
LONG_WINDOWS = {"2h": 120, "4h": 240}
"""Of these only the price is kept."""
PUBLISHED_WINDOWS = ("1m", "5m", "15m", "1h")
_PUBLISHED_CHANGES = (*PUBLISHED_WINDOWS, "10m", "30m")
_KEPT: dict[int, Kept] = {5: "prices 5m", 60: "prices 1h", 240: "prices 4h"}
_GRAINS = {1: "second", 5: "5 seconds", 60: "minute"}


def prices_kept(minutes: int) -> tuple[Kept]:
    """What must be kept to know the price so many minutes ago."""
    return (_KEPT[reach_of(minutes)],)


def _changes(window: str, minutes: int) -> Iterator[Metric]:
    grain = _GRAINS[GRAINS_S[reach_of(minutes)]]
    before = f"p the last price before {window} ago by the clock, that instant rounded down to a whole {grain}"
    warm_up = f"{minutes} minutes of tape"

    def change(board: Board) -> F64:
        return board.price - board.price_ago(minutes)

    def change_pct(board: Board) -> F64:
        return board.pct(board.price, board.price_ago(minutes))

    yield Metric(
        name=f"change_{window}",
        unit="$",
        formula=f"price - p, {before}",
        compute=change,
        timeframe=window,
        warm_up=warm_up,
        freshness="second",
        keeps=prices_kept(minutes),
    )
    yield Metric(
        name=f"change_pct_{window}",
        unit="%",
        formula=f"(price / p - 1) * 100, {before}",
        compute=change_pct,
        timeframe=window,
        warm_up=warm_up,
        freshness="second",
        keeps=prices_kept(minutes),
        published=window in _PUBLISHED_CHANGES,
    )


def _sums(window: str, minutes: int) -> Iterator[Metric]:
    span = _span(minutes)

    def dollars(board: Board) -> F64:
        return board.dollars(board[f"volume_{window}"], board[f"vwap_{window}"])

    yield Metric(
        name=f"volume_{window}",
        unit="shares",
        formula=f"volume of {span}",
        compute=lambda board: board.over_minutes("volume", minutes),
        timeframe=window,
        published=window in PUBLISHED_WINDOWS,
    )
    yield Metric(
        name=f"dollar_volume_{window}",
        unit="$",
        formula=f"volume_{window} * vwap_{window}: trades that count in the volume alone are valued at the VWAP",
        compute=dollars,
        timeframe=window,
    )
    yield Metric(
        name=f"trades_{window}",
        unit="count",
        formula=f"trades that count in the volume, of {span}",
        compute=lambda board: board.over_minutes("count", minutes),
        timeframe=window,
    )


def _extremes(window: str, minutes: int) -> Iterator[Metric]:
    span, high, low = _span(minutes), f"window_high_{window}", f"window_low_{window}"
    yield Metric(
        name=high,
        unit="$",
        formula=f"highest price of {span}",
        compute=lambda board: board.over_minutes("high", minutes),
        timeframe=window,
    )
    yield Metric(
        name=low,
        unit="$",
        formula=f"lowest price of {span}",
        compute=lambda board: board.over_minutes("low", minutes),
        timeframe=window,
    )
    yield Metric(
        name=f"range_{window}",
        unit="$",
        formula=f"{high} - {low}",
        compute=lambda board: board[high] - board[low],
        timeframe=window,
    )
    yield Metric(
        name=f"range_pct_{window}",
        unit="%",
        formula=f"({high} / {low} - 1) * 100",
        compute=lambda board: board.pct(board[high], board[low]),
        timeframe=window,
        source="ChartsWatcher, which divides by the low",
    )
    yield Metric(
        name=f"position_in_range_{window}",
        unit="%",
        formula=f"(price - {low}) / ({high} - {low}) * 100; unknown where these are one",
        compute=lambda board: board.position(board.price, board[low], board[high]),
        timeframe=window,
    )


def _averages(window: str, minutes: int) -> Iterator[Metric]:
    def relative(board: Board) -> F64:
        return board.ratio(board.last_60_seconds(minutes), board[f"volume_avg_{window}"])

    def vwap(board: Board) -> F64:
        return board.ratio(board.over_minutes("value", minutes), board.over_minutes("weight", minutes))

    before = "the clock minute" if minutes == 1 else f"the {minutes} clock minutes"
    published = window in PUBLISHED_WINDOWS and minutes > 1
    yield Metric(
        name=f"volume_avg_{window}",
        unit="shares",
        formula=f"mean volume a minute over {before} before the live one",
        compute=lambda board: board.volume_average(minutes),
        timeframe=window,
        warm_up=f"{minutes} minutes of the day",
        freshness="minute",
        published=published,
    )
    yield Metric(
        name=f"relative_volume_{window}",
        unit="ratio",
        formula=(
            "volume of the last 60 seconds (the live minute, and of the one before the share that is not yet over) "
            f"/ volume_avg_{window}"
        ),
        compute=relative,
        timeframe=window,
        warm_up=f"{minutes} minutes of the day",
        freshness="second",
        published=window in PUBLISHED_WINDOWS,
    )
    yield Metric(
        name=f"vwap_{window}",
        unit="$",
        formula=(f"sum(price*size)/sum(size) over {_span(minutes)}, of trades that may set both high/low and volume"),
        compute=vwap,
        timeframe=window,
        published=published,
    )
    yield Metric(
        name=f"vwap_{window}_distance_pct",
        unit="%",
        formula=f"(price / vwap_{window} - 1) * 100, signed",
        compute=lambda board: board.pct(board.price, board[f"vwap_{window}"]),
        timeframe=window,
        published=window in PUBLISHED_WINDOWS,
    )


def _span(minutes: int) -> str:
    return "the live clock minute" if minutes == 1 else f"the {minutes} clock minutes that end with the live one"


_FAMILIES: tuple[Callable[[str, int], Iterator[Metric]], ...] = (_changes, _sums, _averages, _extremes)

METRICS = (
    *(metric for window, minutes in WINDOWS.items() for family in _FAMILIES for metric in family(window, minutes)),
    *(metric for window, minutes in LONG_WINDOWS.items() for metric in _changes(window, minutes)),
)
