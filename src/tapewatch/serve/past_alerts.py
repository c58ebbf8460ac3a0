"""Alerts from history for those who lost their place, in the order in which they went out: time, rule, symbol."""

from tapewatch.documents import Alert
from tapewatch.ports import AlertQuery, Store

MARGIN_S = 120
"""Partitions end their seconds at different moments: this far before the newest alert that somebody has, others may be
missing.
"""
_PAGE = 1_000


async def past_alerts(store: Store, *, since_ns: int, most: int, viewer: str | None = None) -> list[Alert] | None:
    """All that fired at `since_ns` or later and that the viewer sees; None if they are more than `most`."""
    found: list[Alert] = []
    before: tuple[int, str] | None = None
    while True:
        query = AlertQuery(since_ns=since_ns, before=before, limit=min(_PAGE, most + 1), viewer=viewer)
        page = await store.alerts(query)
        found += page
        if len(found) > most:
            return None
        if len(page) < min(_PAGE, most + 1):
            return sorted(found, key=lambda alert: (alert.fired_at_ns, alert.rule_id, alert.symbol))
        before = page[-1].fired_at_ns, page[-1].alert_id
