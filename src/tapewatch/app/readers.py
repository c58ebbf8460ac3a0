"""The readers of one partition, wired: what one process and many make in the same way."""

from functools import partial
from typing import Any, TypeAlias

from tapewatch.config import UpConfig
from tapewatch.eligibility import load_profile
from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.columns import SECOND_NS
from tapewatch.engine.indicators import Indicators
from tapewatch.engine.scanner import Scanner
from tapewatch.nyse import trading_days
from tapewatch.ports import Bus, Clock, HotState, Store
from tapewatch.roles.alerts import AlertsRole
from tapewatch.roles.bars import BarsRole
from tapewatch.roles.indicators import IndicatorsRole
from tapewatch.roles.scanner import ScannerRole

BOARD_INTERVAL_NS = SECOND_NS
BOARD_OFFSET_NS = SECOND_NS // 2
"""Most rules come true at whole seconds; their alerts need not wait for boards and lists."""

Reader: TypeAlias = BarsRole | IndicatorsRole | ScannerRole | AlertsRole


class Readers:
    """`alone`: the bus lives and dies with this process (see `roles.recovery`). `kept_trades` are a partition's."""

    def __init__(
        self,
        config: UpConfig,
        *,
        bus: Bus,
        hot: HotState,
        store: Store,
        clock: Clock,
        kept_trades: int,
        alone: bool,
    ) -> None:
        self._shared: dict[str, Any] = {"bus": bus, "store": store, "clock": clock}
        self._hot, self._alone, self._days = hot, alone, trading_days()
        self._engine: dict[str, Any] = {
            "days": self._days,
            "profile": load_profile(config.profile),
            "kept_trades": kept_trades,
        }
        self._intervals: dict[str, Any] = {
            "scan_interval_ns": config.scan_interval_ns,
            "board_interval_ns": BOARD_INTERVAL_NS,
            "board_offset_ns": BOARD_OFFSET_NS,
        }

    def bars(self, p: int) -> BarsRole:
        make = partial(BarBuilder, **self._engine)
        thaw = partial(BarBuilder.thaw, **self._engine)
        return BarsRole(
            builder=make(), thaw=thaw, anew=make, alone=self._alone, hot=self._hot, partition=p, **self._shared
        )

    def scanner(self, p: int) -> ScannerRole:
        make = partial(Scanner, **self._engine, **self._intervals)
        thaw = partial(Scanner.thaw, **self._engine, **self._intervals)
        return ScannerRole(scanner=make(), thaw=thaw, anew=make, alone=self._alone, partition=p, **self._shared)

    def indicators(self, p: int) -> IndicatorsRole:
        thaw = partial(Indicators.thaw, days=self._days)
        return IndicatorsRole(
            indicators=Indicators(self._days),
            thaw=thaw,
            alone=self._alone,
            hot=self._hot,
            partition=p,
            **self._shared,
        )

    def alerts(self, p: int) -> AlertsRole:
        return AlertsRole(partition=p, resumes=not self._alone, **self._shared)
