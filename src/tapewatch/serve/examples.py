"""A body of each kind, as the OpenAPI document shows it: each of them can be sent as it stands."""

from typing import Any

_RULE: dict[str, Any] = {
    "name": "Fast movers over VWAP",
    "when": "change_pct_5m > 2 and price > vwap_session and volume_day > 500k",
    "cooldown": 300,
    "severity": "warning",
    "tags": ["momentum"],
}
_CHANNEL: dict[str, Any] = {
    "name": "My order desk",
    "settings": {
        "kind": "webhook",
        "url": "https://hooks.example.com/in",
        "secret": "at least 24 letters, drawn by lot",
    },
    "rate_per_minute": 60,
}
_SUBSCRIPTION: dict[str, Any] = {
    "name": "Everything urgent, not at night",
    "what": {"all": True},
    "severity": "warning",
    "quiet_hours": {"from": "22:00", "to": "07:00", "time_zone": "America/New_York"},
}
_TOPLIST: dict[str, Any] = {
    "name": "Small movers",
    "metric": "change_pct",
    "time_window": "5m",
    "filters": {"min_volume": 500_000, "price_max": 20, "when": "price > vwap_session"},
    "columns": ["price", "volume_day", "relative_volume"],
}
EXAMPLES: dict[str, dict[str, Any]] = {
    "NewRule": _RULE,
    "RuleChange": {**_RULE, "cooldown": 600},
    "Rollback": {"version": 1},
    "NewWatchlist": {"name": "Semiconductors", "symbols": ["NVDA", "AMD", "AVGO"]},
    "WatchlistChange": {"name": "Semiconductors", "symbols": ["NVDA", "AMD", "AVGO", "MU"]},
    "AlertNote": {"note": "Sold half at 101.20"},
    "Credentials": {"name": "ann", "password": "correct horse battery"},
    "RefreshToken": {"refresh_token": f"{'0123456789abcdef' * 2}.{'A' * 43}"},
    "Profile": {"display_name": "Ann", "time_zone": "Europe/Berlin", "preferences": {"theme": "dark"}},
    "PasswordChange": {"password": "correct horse battery", "new_password": "a longer horse battery"},
    "NewToken": {"name": "My notebook", "scopes": ["rules:read", "alerts:read"], "days": 90},
    "NewUser": {"name": "ann", "password": "correct horse battery", "role": "trader"},
    "UserChange": {"role": "operator", "disabled": False},
    "PasswordReset": {"password": "a password for once"},
    "ChannelDraft": _CHANNEL,
    "ChannelChange": {**_CHANNEL, "rate_per_minute": 30},
    "SubscriptionDraft": _SUBSCRIPTION,
    "SubscriptionChange": {**_SUBSCRIPTION, "cooldown": 300},
    "Mute": {"seconds": 3600},
    "ToplistDraft": _TOPLIST,
    "ToplistChange": {**_TOPLIST, "sort_order": "asc"},
}
"""By the name of the document that an operation reads."""
