"""What schemathesis must be told: how to make the texts that only code can tell from others."""

import os
import unicodedata
from datetime import datetime
from typing import Any

import schemathesis
from hypothesis import strategies as st

from tapewatch.contracts.samples import EVERY_NODE
from tapewatch.contracts.store_deliveries import make_delivery
from tapewatch.serve.api import audit, deliveries, history
from tapewatch.serve.api.alerts import write_cursor

# Composing a text changes its length, and a limit of length holds for the composed one.
PLAIN_TEXT = st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs", "Co", "Cn")), max_size=100).filter(
    lambda text: unicodedata.is_normalized("NFC", text)
)
SECTOR_TEXT = PLAIN_TEXT.filter(lambda text: bool(text.strip()))
CURSOR = st.builds(
    write_cursor, st.integers(0, 2**63 - 1), st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}", fullmatch=True)
)
AUDIT_CURSOR = st.integers(0, 10**18 - 1).map(audit.write_cursor)
# Two instants of one question may be twenty years apart.
INSTANT = st.datetimes(datetime(2012, 1, 1), datetime(2030, 1, 1)).map(lambda at: f"{at.isoformat()}Z")  # noqa: DTZ001
HISTORY_CURSOR = st.integers(0, 2**63 - 1).map(history.write_cursor)
DELIVERY_CURSOR = st.integers(0, 2**63 - 1).map(lambda at_ns: deliveries.write_cursor(make_delivery(1, at_ns=at_ns)))
RULE_FIRE = st.sampled_from(["edge", "level", "once per bar 5m", "once per session", "once per day"])
RULE_TEXT = st.sampled_from(
    [
        "price > 1",
        "halted",
        "gap_pct between 2 and 4 or not price crosses_above vwap_session",
        "(abs(price - vwap_session) / price > 0.1 then volume_day > 100k within 5m) and symbol in watchlist mine",
        "close_day[1] < 5 for 30s and session in (pre, regular) and time_of_day > 09:45 3 times in a row",
        " ".join(EVERY_NODE.split()),
    ]
)

# Of no window of their own, which would have to be that of the list.
LIST_METRIC = st.sampled_from(["price", "vwap_session", "spread_pct"])
LIST_FILTER = st.sampled_from(["price > 1", "not halted", "symbol in watchlist mine and gap_pct between 2 and 4"])

schemathesis.openapi.format("date-time", INSTANT)
schemathesis.openapi.format("plain-text", PLAIN_TEXT)
schemathesis.openapi.format("alert-cursor", CURSOR)
schemathesis.openapi.format("audit-cursor", AUDIT_CURSOR)
schemathesis.openapi.format("history-cursor", HISTORY_CURSOR)
schemathesis.openapi.format("delivery-cursor", DELIVERY_CURSOR)
schemathesis.openapi.format("rule-text", RULE_TEXT)
schemathesis.openapi.format("sector-text", SECTOR_TEXT)
schemathesis.openapi.format("rule-fire", RULE_FIRE)
schemathesis.openapi.format("time-zone", st.sampled_from(["America/New_York", "UTC", "Europe/Berlin"]))
schemathesis.openapi.format("list-metric", LIST_METRIC)
schemathesis.openapi.format("list-filter", LIST_FILTER)

_GIVEN = "#/components/schemas/Given"
_PLAIN = {"$ref": f"{_GIVEN}Condition"}
_VALUE = {"oneOf": [{"type": "number", "minimum": -1e15, "maximum": 1e15}, {"$ref": f"{_GIVEN}MetricValue"}]}
_SENSE = {
    f"{_GIVEN}{name}"
    for name in ("MetricBetween", "ValueBetween", "ValueCondition", "AllOf", "AnyOf", "Least", "Greatest", "Quotient")
}
"""Forms with rules that no schema can tell: which bound is lower, what is divided by, how many parts there are
in all.
"""


@schemathesis.hook
def before_load_schema(_context: Any, document: dict[str, Any]) -> None:
    """Rules as far as a generator can follow: forms of a condition, and below them only plain ones; the text or the
    JSON, since they must say the same.
    """
    if os.environ.get("WITHOUT_ACCOUNTS"):  # nobody is asked for a token, whatever the document says
        for item in document["paths"].values():
            for operation in item.values():
                operation["security"] = []
    schemas = document["components"]["schemas"]
    for name, schema in schemas.items():
        if name.startswith("Given"):
            value = schema["properties"].get("value")
            schema["properties"] = {key: _shallow(part) for key, part in schema["properties"].items()}
            schema["properties"].pop("back", None)
            if "enum" in schema["properties"].get("metric", {}):  # it tries each
                schema["properties"]["metric"]["enum"] = schema["properties"]["metric"]["enum"][:3]
            if name == "GivenCondition":
                schema["properties"]["value"] = {
                    "oneOf": [form for form in value["oneOf"] if form.get("$ref") not in _SENSE]
                }
            if "seconds" in schema["properties"]:
                schema["properties"]["seconds"] = {"enum": [1, 90, 86_400]}
            if "times" in schema["properties"]:
                schema["properties"]["times"] = {"enum": [2, 7, 1_000]}
    _tell_of_channels(document)
    for most in ("price_max", "market_cap_max"):  # which must not lie below what is the least
        schemas["GivenFilters"]["properties"].pop(most)
    schemas["GivenFilters"]["properties"]["sectors"]["items"] = {"type": "string", "format": "sector-text"}
    schemas["GivenSectors"]["properties"]["sector"]["items"] = {"type": "string", "format": "sector-text"}
    for path, item in document["paths"].items():
        for operation in item.values():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "when" in body.get("schema", {}).get("properties", {}):
                whole = body["schema"]
                del whole["anyOf"]
                items = whole["properties"]["conditions"]["items"]
                items["oneOf"] = [form for form in items["oneOf"] if form["$ref"] not in _SENSE]
                if not path.endswith("/validate"):  # one operation meets every form; it takes long enough
                    whole["properties"]["conditions"]["items"] = _PLAIN
                forms = [_without(whole, {"conditions", "rearm"}, required="when")]
                if path.endswith(("/rules", "/validate")):  # the others read the same
                    forms.append(_without(whole, {"when", "fire"}, required="conditions"))
                body["schema"] = {"oneOf": forms}


def _tell_of_channels(document: dict[str, Any]) -> None:
    """Texts that only code can tell from others, and what must fit together."""
    schemas = document["components"]["schemas"]
    hook = schemas["GivenWebhookSettings"]
    # One address, since a secret that is left out is kept for the address that it was given for.
    hook["properties"]["url"] = {"enum": ["https://hooks.example.com/in"]}
    hook["properties"]["secret"] = {"enum": ["x" * 24, "a longer secret, with blanks and signs: %s"]}
    known = {**hook, "properties": {**hook["properties"], "secret": {"enum": ["y" * 24, None]}}}
    schemas["GivenKnownWebhookSettings"] = {**known, "required": ["kind", "url"]}
    hook["required"] = ["kind", "url", "secret"]
    schemas["GivenWhat"] = {
        "type": "object",
        "properties": {"all": {"enum": [True]}},
        "required": ["all"],
        "additionalProperties": False,
    }
    quiet = schemas["GivenQuietHours"]["properties"]
    quiet["from"], quiet["to"] = {"enum": ["22:00", "23:59"]}, {"enum": ["00:00", "07:30"]}
    quiet["time_zone"] = {"enum": ["America/New_York", "UTC"]}
    for path in ("/api/v1/channels", "/api/v1/channels/{channel_id}"):
        for method in {"post", "put"} & document["paths"][path].keys():
            body = document["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
            settings = "WebhookSettings" if method == "post" else "KnownWebhookSettings"
            body["properties"]["settings"] = {"$ref": f"{_GIVEN}{settings}"}
    for path in ("/api/v1/subscriptions", "/api/v1/subscriptions/{subscription_id}"):
        for method in {"post", "put"} & document["paths"][path].keys():
            body = document["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
            body["properties"]["channels"] = {"type": "array", "maxItems": 0}
            body["properties"]["muted_until"] = {"enum": ["", "2025-03-04T14:30:00Z"]}


def _without(schema: dict[str, Any], dropped: set[str], *, required: str) -> dict[str, Any]:
    properties = {name: part for name, part in schema["properties"].items() if name not in dropped}
    return {**schema, "properties": properties, "required": [*schema["required"], required]}


def _shallow(schema: Any) -> Any:
    """Conditions become plain ones, and values numbers or metrics."""
    if isinstance(schema, dict):
        forms = [form.get("$ref") for form in schema.get("oneOf", [])]
        if f"{_GIVEN}OnWatchlist" in forms:
            return _PLAIN
        if f"{_GIVEN}MetricValue" in forms:
            return _VALUE
        return {key: _shallow(part) for key, part in schema.items()}
    return schema
