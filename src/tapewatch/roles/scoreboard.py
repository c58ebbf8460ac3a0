"""scoreboard: how the running day's alerts of each rule have fared so far, to hot state under `scoreboard`.

It follows `alerts.filtered:{p}` and `bars.finalized:{p}` with the code that a backtest uses. The day is the tape's, and
its board stands until the next pre-market begins. Nothing of it is stored: the first entry that comes tells the time,
and the alerts and bars of that day before it are read from the store once more.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import msgspec
import numpy as np
import structlog

from tapewatch.documents import Alert, day_of_number, rfc3339
from tapewatch.engine.calendar import TradingDays
from tapewatch.engine.columns import BAR_COLUMNS, MINUTE_NS, SECOND_NS, Bars
from tapewatch.engine.outcomes import MOST_OPEN, Fired, Outcomes, RuleKey
from tapewatch.engine.scores import Scores, too_broad
from tapewatch.errors import Unavailable
from tapewatch.patience import patiently, read_on
from tapewatch.ports import AlertQuery, Alerts, Bus, Clock, HotState, Position, Store
from tapewatch.telemetry import ERRORS_TOTAL

KEY = "scoreboard"
_TTL_S = 86_400.0
_EACH_S = 5.0
_DAY_NS = 86_400 * SECOND_NS
_ALERTS_AT_ONCE = 500
_BARS_AT_ONCE = 500_000
"""Rows in memory while it catches up."""
_LEAST_SPAN = 30
"""Minutes of bars asked for at a time, at least."""

log = structlog.get_logger("tapewatch")
T = TypeVar("T")


class ScoreboardRole:
    """Past `most_open` alerts of a day the further ones are counted and not followed; so it is while it catches up,
    where the oldest are left out.
    """

    def __init__(
        self,
        *,
        days: TradingDays,
        bus: Bus,
        hot: HotState,
        store: Store,
        clock: Clock,
        partitions: int = 1,
        most_open: int = MOST_OPEN,
    ) -> None:
        self._days, self._bus, self._hot, self._store, self._clock = days, bus, hot, store, clock
        self._partitions = partitions
        self._most_open = most_open
        self._outcomes = Outcomes(days, most_open=most_open)
        self._left: dict[int, Scores] = {}
        """Trading day -> the alerts that nobody follows any more."""
        self._about: dict[RuleKey, dict[str, Any]] = {}
        """What alerts tell of their rule."""
        self._newest_ns = 0
        """Event time of the newest alert or bar."""
        self._started = asyncio.Lock()
        self._caught_up = False
        self._changes = self._shown = 0
        """So many there were, and so many are on the board in hot state."""
        self.positions: dict[str, Position] = {}
        """Stream -> the newest entry of it that is on the board."""

    async def run(self) -> None:
        streams = [f"{topic}:{p}" for topic in ("alerts.filtered", "bars.finalized") for p in range(self._partitions)]
        async with asyncio.TaskGroup() as tasks:
            showing = tasks.create_task(self._show_as_it_changes(), name="scoreboard snapshot")
            async with asyncio.TaskGroup() as following:
                for stream in streams:
                    following.create_task(self._follow(stream), name=f"scoreboard {stream}")
            showing.cancel()
        await self._show()

    async def _follow(self, stream: str) -> None:
        async for position, entry in read_on(self._bus, stream, clock=self._clock, where="scoreboard.read"):
            if isinstance(entry, Alerts):
                await self._catch_up(max(alert.fired_at_ns for alert in entry.alerts) + 1)
                self._fired(entry.alerts)
            elif isinstance(entry, Bars) and len(entry):
                await self._catch_up(int(entry.ts_ns.max()) + MINUTE_NS)
                self._bars(entry)
            self.positions[stream] = position

    # -- what comes in ------------------------------------------------------------------------------------------------

    def _fired(self, alerts: Sequence[Alert]) -> None:
        self._about.update((_rule(alert), _about(alert)) for alert in alerts)
        self._outcomes.fired(map(_fired, alerts))
        self._came(max(alert.fired_at_ns for alert in alerts))

    def _bars(self, bars: Bars) -> None:
        self._outcomes.bars(bars)
        self._came(int(bars.ts_ns.max()) + MINUTE_NS)

    def _came(self, ts_ns: int) -> None:
        self._changes += 1
        self._newest_ns = max(self._newest_ns, ts_ns)
        left = self._outcomes.left()
        for day in np.unique(left.day).tolist():
            self._left.setdefault(day, Scores()).add(left.take(left.day == day))
        shown = self._shown_day(self._newest_ns)
        for day in [day for day in self._left if day < shown]:
            del self._left[day]

    def _shown_day(self, ts_ns: int) -> int:
        """The trading day whose pre-market began last."""
        return max(0, int(np.searchsorted(self._days.pre_ns, ts_ns, side="right")) - 1)

    # -- what came before ---------------------------------------------------------------------------------------------

    async def _catch_up(self, until_ns: int) -> None:
        """Once: the alerts and bars of the day before this instant."""
        async with self._started:
            if self._caught_up:
                return
            day = self._shown_day(until_ns)
            start_ns = int(self._days.post_ns[day - 1]) if day else int(self._days.pre_ns[0])
            alerts = await self._alerts_between(start_ns, until_ns)
            if alerts:
                self._outcomes.fired(alerts)
                self._came(alerts[-1].fired_at_ns)
                await self._read_bars(alerts, until_ns)
            self._caught_up = True

    async def _alerts_between(self, start_ns: int, until_ns: int) -> list[Fired]:
        """Oldest first."""
        found: list[Fired] = []
        query = AlertQuery(since_ns=start_ns, until_ns=until_ns, limit=_ALERTS_AT_ONCE)
        while len(found) < self._most_open:
            page = await self._patiently(partial(self._store.alerts, query))
            found += map(_fired, page)
            self._about.update((_rule(alert), _about(alert)) for alert in reversed(page))
            if len(page) < _ALERTS_AT_ONCE:
                break
            query = query._replace(before=(page[-1].fired_at_ns, page[-1].alert_id))
        else:
            log.warning("older alerts of the day are not on the scoreboard", alerts=len(found))
        return found[::-1]

    async def _read_bars(self, alerts: Sequence[Fired], until_ns: int) -> None:
        """Those of symbols with alerts, in spans of all of them: time goes on for all together."""
        since: dict[str, int] = {}
        for alert in alerts:
            since.setdefault(alert.symbol, alert.fired_at_ns // MINUTE_NS * MINUTE_NS)
        minutes = max(_LEAST_SPAN, _BARS_AT_ONCE // len(since))
        for start_ns in range(min(since.values()), until_ns, minutes * MINUTE_NS):
            end_ns = min(start_ns + minutes * MINUTE_NS, until_ns)
            parts = [
                await self._patiently(
                    partial(self._store.bars, symbol, start_ns=max(start_ns, first_ns), end_ns=end_ns, limit=minutes)
                )
                for symbol, first_ns in since.items()
                if first_ns < end_ns
            ]
            bars = _by_time([part for part in parts if len(part)])
            if bars is not None:
                self._bars(bars)

    async def _patiently(self, ask: Any) -> Any:
        return await patiently(ask, clock=self._clock, where="scoreboard.store")

    # -- what goes out ------------------------------------------------------------------------------------------------

    async def _show_as_it_changes(self) -> None:
        while True:
            await self._clock.sleep(_EACH_S)
            await self._show()

    async def _show(self) -> None:
        changes = self._changes
        if changes == self._shown:
            return
        day = self._shown_day(self._newest_ns)
        open_now = self._outcomes.open()
        scores = self._left.get(day, Scores()).plus(open_now.take(open_now.day == day))
        facts = (day, self._newest_ns, self._outcomes.traded().get(day, 0))
        # A day of too many alerts takes a third of a second.
        body = await asyncio.to_thread(self._body, scores, *facts)
        try:
            await self._hot.put({KEY: body}, ttl_s=_TTL_S)
        except Unavailable:  # it comes again in five seconds
            ERRORS_TOTAL.labels(where="scoreboard.show").inc()
        else:
            self._shown = changes

    def _body(self, scores: Scores, day: int, newest_ns: int, traded: int) -> bytes:
        table = sorted(scores.table().values(), key=lambda score: (-score.alerts, score.rule))
        return msgspec.json.encode(
            {
                "date": day_of_number(int(self._days.open_ns[day]) // _DAY_NS).isoformat(),
                "as_of": rfc3339(newest_ns),
                "symbols": traded,
                "alerts": sum(score.alerts for score in table),
                "unfollowed": sum(score.unfollowed for score in table),
                "rules": [
                    {
                        **self._about[score.rule],
                        **score.as_json(days=1),
                        "too_broad": too_broad(alerts=score.alerts, symbol_days=score.symbol_days, traded={day: traded})
                        or None,
                    }
                    for score in table
                ],
            }
        )


def _rule(alert: Alert) -> RuleKey:
    return RuleKey(alert.rule_id, alert.rule_version)


def _about(alert: Alert) -> dict[str, Any]:
    return {"name": alert.rule_name, "owner": alert.owner, "shared": alert.shared}


def _fired(alert: Alert) -> Fired:
    return Fired(_rule(alert), alert.symbol, alert.fired_at_ns, alert.price)


def _by_time(parts: list[Bars]) -> Bars | None:
    """Bars of one symbol each as bars of all; None if there are none."""
    if not parts:
        return None
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in BAR_COLUMNS[1:]}
    symbol = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    together = replace(parts[0], symbols=tuple(part.symbols[0] for part in parts), symbol=symbol, **columns)
    return together.take(np.argsort(together.ts_ns, kind="stable"))
