"""What a delivery says, as JSON for programs and as text for people."""

from typing import Any

from tapewatch.delivery_documents import Delivery
from tapewatch.documents import rfc3339
from tapewatch.engine.columns import SECOND_NS

LATE_NS = 60 * SECOND_NS
"""What is told later than this after it happened says so."""
_SHOWN_VALUES = 8


def as_json(delivery: Delivery, *, now_ns: int) -> dict[str, Any]:
    """The body of a webhook; see docs/channels.md."""
    return {
        "type": delivery.kind,
        "delivery_id": delivery.delivery_id,
        "channel_id": delivery.channel_id,
        "subscriptions": list(delivery.subscriptions),
        "attempt": delivery.attempts,
        "sent_at": rfc3339(now_ns),
        "late_s": late_s(delivery, now_ns=now_ns),
        delivery.kind: delivery.body,
    }


def late_s(delivery: Delivery, *, now_ns: int) -> int | None:
    """Seconds since it happened; None if it is not late, and for what waited on purpose."""
    behind_ns = now_ns - delivery.at_ns
    return behind_ns // SECOND_NS if behind_ns > LATE_NS and delivery.kind == "alert" else None


def as_text(delivery: Delivery, *, now_ns: int) -> tuple[str, str]:
    """Title and text."""
    if delivery.kind == "test":
        return "tapewatch: test", "This channel works: alerts will arrive like this message."
    if delivery.kind == "digest":
        return _digest(delivery.body)
    alert = delivery.body
    price = "" if alert["price"] is None else f" @ {alert['price']:,.10g}"
    lines = [f"Fired {_clock(alert['fired_at'])} UTC in session {alert['session']}."]
    lines += [
        f"{name}: {'unknown' if value is None else format(value, ',.6g')}"
        for name, value in list(alert["values"].items())[:_SHOWN_VALUES]
    ]
    late = late_s(delivery, now_ns=now_ns)
    if late is not None:
        lines.insert(0, f"Late by {late} s.")
    return f"{alert['symbol']}: {alert['rule_name']}{price}", "\n".join(lines)


def _digest(digest: dict[str, Any]) -> tuple[str, str]:
    lines = [f"From {_clock(digest['since'])} to {_clock(digest['until'])} UTC."]
    lines += [f"{rule['count']} of {rule['rule_name']}" for rule in digest["rules"]]
    lines += [f"{_clock(alert['fired_at'])} {alert['symbol']}: {alert['rule_name']}" for alert in digest["alerts"]]
    return f"tapewatch: {digest['count']:,} alerts", "\n".join(lines)


def _clock(time: str) -> str:
    return time[:19].replace("T", " ")
