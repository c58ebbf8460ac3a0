"""How far the data can be trusted, as one document: what the status knows of gaps, rejects, late prints and parity.

It counts nothing itself. The figures are those since the processes started; docs/api.md says what each of them means.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

_LATE = ("late", "too_late", "future")
_REJECTED = ("rejected_price", "rejected_size", "unknown_condition")


def quality(status: Mapping[str, Any]) -> dict[str, Any]:
    """Of the system status, whose parts may be missing while processes start."""
    feed: Mapping[str, Any] = status.get("feed") or {}
    connections = feed.get("connections") or []
    rows: Mapping[str, int] = (status.get("scanner") or {}).get("rows") or {}
    rejected: Counter[str] = Counter()
    losses: Counter[str] = Counter()
    samples: dict[str, list[str]] = {}
    for connection in connections:
        rejected.update(connection.get("rejected") or {})
        losses.update(connection.get("losses") or {})
        for reason, shown in (connection.get("samples") or {}).items():
            samples.setdefault(reason, []).extend(shown)
    rejected.update({name.removeprefix("rejected_"): rows[name] for name in _REJECTED if rows.get(name)})
    parity = _parity(status.get("parity") or [])
    missing = (status.get("partitions") or {}).get("missing") or {}
    troubles = [
        *([f"a gap since {feed['gap']['since']}: {feed['gap']['reason']}"] if feed.get("gap") else []),
        *(f"no {role} works on partitions {', '.join(map(str, which))}" for role, which in missing.items()),
        *(["some of our bars differ from the provider's"] if parity["compared"] > parity["equal"] else []),
    ]
    return {
        "state": status.get("state"),
        "troubles": troubles,
        "feed": feed.get("name"),
        "market_time": feed.get("market_time"),
        "age_s": feed.get("age_s"),
        "gap": feed.get("gap"),
        "losses": dict(sorted(losses.items())),
        "overflow_frames": sum(connection.get("overflow_frames", 0) for connection in connections),
        "rows": feed.get("rows", 0),
        "duplicates": feed.get("duplicates", 0),
        "conflicts": feed.get("conflicts", 0),
        "rejected": dict(sorted(rejected.items())),
        "samples": samples,
        "late": {name: rows.get(name, 0) for name in _LATE},
        "parity": parity,
        "partitions": {"of": (status.get("partitions") or {}).get("of", 1), "missing": missing},
    }


def _parity(parts: list[Mapping[str, Any]]) -> dict[str, Any]:
    differing: Counter[str] = Counter()
    for part in parts:
        differing.update(part["differing"])
    compared, equal = (sum(part[name] for part in parts) for name in ("compared", "equal"))
    return {
        "compared": compared,
        "equal": equal,
        "equal_share": equal / compared if compared else None,
        "differing": dict(sorted(differing.items())),
        "samples": [sample for part in parts for sample in part["samples"]],
    }
