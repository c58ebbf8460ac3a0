"""A body of each kind, as the OpenAPI document shows it: each of them can be sent as it stands."""

from typing import Any

_RULE: dict[str, Any] = {
    "name": "Fast movers over VWAP",
    "when": "change_pct_5m > 2 and price > vwap_session and volume_day > 500k",
    "cooldown": 300,
    "severity": "warning",
    "tags": ["momentum"],
}
EXAMPLES: dict[str, dict[str, Any]] = {
    "NewRule": _RULE,
    "RuleChange": {**_RULE, "cooldown": 600},
    "Rollback": {"version": 1},
    "NewWatchlist": {"name": "Semiconductors", "symbols": ["NVDA", "AMD", "AVGO"]},
    "WatchlistChange": {"name": "Semiconductors", "symbols": ["NVDA", "AMD", "AVGO", "MU"]},
    "AlertNote": {"note": "Sold half at 101.20"},
}
"""By the name of the document that an operation reads."""
