"""Quotes, price bands and halts."""

from collections.abc import Callable, Iterator

import numpy as np

from tapewatch.engine.board import Board
from tapewatch.engine.columns import F64
from tapewatch.engine.metrics.declare import Metric, Unit


def _metric(name: str, unit: Unit, formula: str, compute: Callable[[Board], F64], *, published: bool = False) -> Metric:
    return Metric(
        name=name,
        unit=unit,
        formula=formula,
        compute=compute,
        session="day",
        freshness="quote",
        needs="quotes",
        keeps=("quotes",),
        published=published,
    )


def _flag(holds: Callable[[F64, F64], F64]) -> Callable[[Board], F64]:
    def compute(board: Board) -> F64:
        bid, ask = board["bid"], board["ask"]
        return np.where(np.isnan(bid) | np.isnan(ask), np.nan, holds(bid, ask))

    return compute


def _mid(board: Board) -> F64:
    return (board["bid"] + board["ask"]) / 2.0


def _quotes() -> Iterator[Metric]:
    yield _metric(
        "bid",
        "$",
        "bid of the newest quote; unknown without one, while the symbol is halted, and after 10 minutes",
        lambda b: b.quote("bid"),
        published=True,
    )
    yield _metric("ask", "$", "ask of the newest quote, as bid", lambda b: b.quote("ask"), published=True)
    yield _metric("bid_size", "shares", "size of the bid", lambda b: b.quote("bid_size"))
    yield _metric("ask_size", "shares", "size of the ask", lambda b: b.quote("ask_size"))
    yield _metric("spread", "$", "ask - bid", lambda b: b["ask"] - b["bid"])
    yield _metric(
        "spread_pct",
        "%",
        "(ask - bid) / ((ask + bid) / 2) * 100",
        lambda b: (b["ask"] - b["bid"]) / _mid(b) * 100.0,
        published=True,
    )
    yield _metric("bid_ask_ratio", "ratio", "bid_size / ask_size", lambda b: b.ratio(b["bid_size"], b["ask_size"]))
    yield _metric(
        "distance_from_mid_pct",
        "%",
        "(price / ((ask + bid) / 2) - 1) * 100, signed",
        lambda b: b.pct(b.price, _mid(b)),
    )
    yield _metric(
        "crossed_market", "flag", "1 where bid > ask, else 0", _flag(lambda bid, ask: (bid > ask).astype(np.float64))
    )
    yield _metric(
        "locked_market", "flag", "1 where bid == ask, else 0", _flag(lambda bid, ask: (bid == ask).astype(np.float64))
    )
    yield Metric(
        name="quote_age",
        unit="seconds",
        formula="seconds since the newest quote; unknown where the quote is",
        compute=lambda b: b.quote_age_s(),
        session="day",
        freshness="clock",
        needs="quotes",
        keeps=("quotes",),
    )


def _bands() -> Iterator[Metric]:
    def band(name: str, unit: Unit, formula: str, compute: Callable[[Board], F64]) -> Metric:
        return Metric(
            name=name,
            unit=unit,
            formula=formula,
            compute=compute,
            session="regular",
            freshness="status",
            needs="quotes",
            keeps=("quotes",),
        )

    yield band("band_low", "$", "lower price of the limit-up/limit-down band", lambda b: b.band("band_low"))
    yield band("band_high", "$", "upper price of the limit-up/limit-down band", lambda b: b.band("band_high"))
    yield band(
        "distance_to_band_up_pct",
        "%",
        "(band_high / price - 1) * 100",
        lambda b: b.pct(b["band_high"], b.price),
    )
    yield band(
        "distance_to_band_down_pct",
        "%",
        "(1 - band_low / price) * 100",
        lambda b: -b.pct(b["band_low"], b.price),
    )


def _halts() -> Iterator[Metric]:
    yield Metric(
        name="halts_day",
        unit="count",
        formula="halts since 04:00 New York; one that has begun before is none of them",
        compute=lambda b: b.halts(),
        timeframe="day",
        freshness="status",
    )
    yield Metric(
        name="seconds_since_halt",
        unit="seconds",
        formula="seconds since today's newest halt began; unknown without one and while the market is closed",
        compute=lambda b: b.since_halt_s("halted_ns"),
        session="day",
        freshness="clock",
    )
    yield Metric(
        name="seconds_since_resume",
        unit="seconds",
        formula="seconds since today's newest halt ended; unknown without one and while the market is closed",
        compute=lambda b: b.since_halt_s("resumed_ns"),
        session="day",
        freshness="clock",
    )


METRICS = (*_quotes(), *_bands(), *_halts())
