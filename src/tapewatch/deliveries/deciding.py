"""From an alert to deliveries: one for each channel that some subscription leads to."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from tapewatch.deliveries.matching import Matching
from tapewatch.deliveries.timing import Decision, Timing
from tapewatch.delivery_documents import Delivery, Subscription
from tapewatch.documents import Alert


def happened_ns(alert: Alert) -> int:
    """When the trades that led to it were there: of a live feed about when it fired, of a tape that is replayed when
    it was. Cooldowns, quiet hours and lateness are told by it.
    """
    return int(alert.received_ns or alert.fired_at_ns)


def delivery_id(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


class Deciding:
    """`matching` is replaced as subscriptions change; what was told before stays known."""

    def __init__(self, timing: Timing | None = None) -> None:
        self.timing = timing or Timing()
        self.matching = Matching((), rules={})
        self.channels: Mapping[str, str] = {}
        """Those that are switched on -> their owner, by whose subscriptions alone they are told anything."""
        self.kept_back: Counter[str] = Counter()
        """Alerts for a subscription that were not told, by reason; and `unknown_rule`."""

    def deliveries_of(self, alerts: Sequence[Alert]) -> list[Delivery]:
        """An alert with a note came before, without it: it is not told again."""
        return [delivery for alert in alerts if not alert.note for delivery in self._of(alert)]

    def _of(self, alert: Alert) -> list[Delivery]:
        if not self.matching.knows(alert.rule_id):
            self.kept_back["unknown_rule"] += 1
            return []
        at_ns = happened_ns(alert)
        decided: dict[str, list[tuple[Subscription, Decision]]] = {}
        for subscription in self.matching.of(alert):
            decision = self.timing.decide(subscription, alert.rule_id, alert.symbol, at_ns)
            if decision.verdict == "drop":
                self.kept_back[decision.reason] += 1
                continue
            for channel_id in subscription.channels:
                if self.channels.get(channel_id) != subscription.owner:
                    self.kept_back["channel_off"] += 1
                    continue
                decided.setdefault(channel_id, []).append((subscription, decision))
        return [_delivery(alert, channel_id, at_ns, led) for channel_id, led in decided.items()]


def _delivery(alert: Alert, channel_id: str, at_ns: int, led: list[tuple[Subscription, Decision]]) -> Delivery:
    """If one of the subscriptions tells it now, it is told now; else with the first digest."""
    now = any(decision.verdict == "tell" for _, decision in led)
    return Delivery(
        delivery_id=delivery_id(alert.alert_id, channel_id),
        channel_id=channel_id,
        owner=led[0][0].owner,
        state="pending" if now else "held",
        alert_id=alert.alert_id,
        rule_id=alert.rule_id,
        symbol=alert.symbol,
        subscriptions=tuple(sorted(subscription.id for subscription, _ in led)),
        at_ns=at_ns,
        next_try_ns=at_ns if now else min(decision.until_ns for _, decision in led),
        body=alert.as_json(),
    )
