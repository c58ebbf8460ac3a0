"""Many deliveries of a channel as one."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from tapewatch.deliveries.deciding import delivery_id
from tapewatch.delivery_documents import Delivery
from tapewatch.documents import rfc3339

DigestReason = Literal["gathered", "behind", "full"]
"""gathered: of a storm or of quiet hours. behind: more waited than the channel may be told in a minute. full: more than
may wait at all."""
SHOWN_ALERTS = 20
"""The newest; the others are counted."""
SHOWN_RULES = 20
SHOWN_SUBSCRIPTIONS = 20


def digest_of(deliveries: Sequence[Delivery], reason: DigestReason, *, now_ns: int) -> Delivery:
    """Alerts and digests of one channel, at least one. The id is that of what is in it."""
    first = deliveries[0]
    alerts, rules, names, count = [], Counter[str](), dict[str, str](), 0
    since_ns, until_ns = min(each.at_ns for each in deliveries), max(each.at_ns for each in deliveries)
    since = rfc3339(since_ns)
    for each in deliveries:
        body = each.body
        if each.kind == "digest":
            count += body["count"]
            since = min(since, body["since"])
            alerts += body["alerts"]
            for rule in body["rules"]:
                rules[rule["rule_id"]] += rule["count"]
                names[rule["rule_id"]] = rule["rule_name"]
        else:
            count += 1
            alerts.append(body)
            rules[body["rule_id"]] += 1
            names[body["rule_id"]] = body["rule_name"]
    alerts.sort(key=lambda alert: (alert["fired_at"], alert["alert_id"]))
    subscriptions = sorted({name for each in deliveries for name in each.subscriptions})
    return Delivery(
        delivery_id=delivery_id(first.channel_id, "digest", *sorted(each.delivery_id for each in deliveries)),
        channel_id=first.channel_id,
        owner=first.owner,
        kind="digest",
        subscriptions=tuple(subscriptions[:SHOWN_SUBSCRIPTIONS]),
        at_ns=until_ns,
        next_try_ns=now_ns,
        body={
            "reason": reason,
            "count": count,
            "since": since,
            "until": rfc3339(until_ns),
            "rules": [
                {"rule_id": rule_id, "rule_name": names[rule_id], "count": number}
                for rule_id, number in sorted(rules.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_RULES]
            ],
            "alerts": alerts[-SHOWN_ALERTS:],
        },
    )
