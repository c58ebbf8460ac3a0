"""Whether an alert that a subscription is for is told now, later together with others, or not at all.

A state machine fed with alerts and their time; the same alerts in the same order give the same decisions. Bounded: the
cooldowns and storms that were touched least lately go first, and what they kept back is then told once more.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from tapewatch.delivery_documents import DAYS, QuietHours, Subscription, Told
from tapewatch.engine.columns import SECOND_NS

MOST_COOLDOWNS = 200_000
MOST_STORMS = 20_000

Verdict = Literal["tell", "hold", "drop"]
Reason = Literal["", "muted", "cooldown", "quiet_hours", "storm"]


class Decision(NamedTuple):
    verdict: Verdict
    reason: Reason = ""
    until_ns: int = 0
    """While it is held: when its digest is due."""


@dataclass(slots=True)
class _Storm:
    arrivals: deque[int] = field(default_factory=deque)
    """The newest, one more than may be told by themselves."""
    digest_ns: int = 0
    """When the digest that is being gathered is due."""


class Timing:
    def __init__(self, *, most_cooldowns: int = MOST_COOLDOWNS, most_storms: int = MOST_STORMS) -> None:
        self._most_cooldowns, self._most_storms = most_cooldowns, most_storms
        self._last: OrderedDict[tuple[str, str, str], int] = OrderedDict()
        """(subscription, rule, symbol) -> when it was told or held last; those touched last stand last."""
        self._storms: OrderedDict[str, _Storm] = OrderedDict()

    def decide(self, subscription: Subscription, rule_id: str, symbol: str, at_ns: int) -> Decision:
        """Mute before cooldown before quiet hours before storms: what is muted starts no cooldown."""
        if at_ns < subscription.muted_until_ns:
            return Decision("drop", "muted")
        if subscription.cooldown:
            last_ns = self._last.get((subscription.id, rule_id, symbol))
            if last_ns is not None and at_ns < last_ns + subscription.cooldown * SECOND_NS:
                return Decision("drop", "cooldown")
            self._cool_down(subscription.id, rule_id, symbol, at_ns)
        if subscription.quiet_hours is not None:
            until_ns = quiet_until_ns(subscription.quiet_hours, at_ns)
            if until_ns is not None:
                return Decision("hold", "quiet_hours", until_ns)
        return self._storm(subscription, at_ns)

    def remember(self, told: Iterable[Told], subscriptions: Iterable[Subscription]) -> None:
        """Take up what an earlier one decided, oldest first."""
        known = {subscription.id: subscription for subscription in subscriptions}
        for each in told:
            for name in each.subscriptions:
                subscription = known.get(name)
                if subscription is None:
                    continue
                if subscription.cooldown:
                    self._cool_down(name, each.rule_id, each.symbol, each.at_ns)
                quiet = subscription.quiet_hours
                if subscription.digest is not None and (quiet is None or quiet_until_ns(quiet, each.at_ns) is None):
                    storm = self._storm_of(name)
                    storm.digest_ns = max(storm.digest_ns, each.held_until_ns)
                    self._arrive(storm, each.at_ns, subscription.digest.more_than)

    def _cool_down(self, subscription_id: str, rule_id: str, symbol: str, at_ns: int) -> None:
        key = (subscription_id, rule_id, symbol)
        self._last[key] = at_ns
        self._last.move_to_end(key)
        if len(self._last) > self._most_cooldowns:
            self._last.popitem(last=False)

    def _storm(self, subscription: Subscription, at_ns: int) -> Decision:
        digest = subscription.digest
        if digest is None:
            return Decision("tell")
        storm = self._storm_of(subscription.id)
        arrivals = storm.arrivals
        at_ns = max(at_ns, arrivals[-1]) if arrivals else at_ns  # partitions are not in step
        self._arrive(storm, at_ns, digest.more_than)
        window_ns = digest.within_s * SECOND_NS
        blows = len(arrivals) > digest.more_than and arrivals[0] > at_ns - window_ns
        if at_ns >= storm.digest_ns:
            if not blows:
                return Decision("tell")
            storm.digest_ns = at_ns + window_ns
        return Decision("hold", "storm", storm.digest_ns)

    def _storm_of(self, subscription_id: str) -> _Storm:
        storm = self._storms.setdefault(subscription_id, _Storm())
        self._storms.move_to_end(subscription_id)
        if len(self._storms) > self._most_storms:
            self._storms.popitem(last=False)
        return storm

    @staticmethod
    def _arrive(storm: _Storm, at_ns: int, more_than: int) -> None:
        storm.arrivals.append(at_ns)
        while len(storm.arrivals) > more_than + 1:
            storm.arrivals.popleft()


def quiet_until_ns(quiet: QuietHours, at_ns: int) -> int | None:
    """The end of the quiet time in which this instant lies; None if it lies in none. A time of day that comes twice
    when clocks go back begins with the first and ends with the second; one that is left out is an hour later.
    """
    zone = ZoneInfo(quiet.time_zone)
    today = datetime.fromtimestamp(at_ns // SECOND_NS, zone).date()
    over_midnight = quiet.to <= quiet.from_
    ends = []
    for day in (today - timedelta(days=1), today):
        if DAYS[day.weekday()] not in quiet.days:
            continue
        start_ns = _instant_ns(day, quiet.from_, zone, fold=0)
        end_ns = _instant_ns(day + timedelta(days=1) if over_midnight else day, quiet.to, zone, fold=1)
        if start_ns <= at_ns < end_ns:
            ends.append(end_ns)
    return max(ends, default=None)


def _instant_ns(day: date, clock: str, zone: ZoneInfo, *, fold: int) -> int:
    local = datetime.combine(day, time.fromisoformat(clock), zone).replace(fold=fold)
    if datetime.fromtimestamp(local.timestamp(), zone).replace(tzinfo=None) != local.replace(tzinfo=None):
        local = local.replace(fold=0)  # there is no such time on this day: later by what the clocks leave out
    return round(local.astimezone(UTC).timestamp()) * SECOND_NS
