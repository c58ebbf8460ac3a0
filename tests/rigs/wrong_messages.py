"""Messages to the gateway that are wrong, each with the code of its answer."""

import json

WRONG: list[tuple[str, str]] = [
    ("bad_json", "{"),
    ("bad_json", '{"type":"ping","type":"ping"}'),
    ("bad_json", '{"type":NaN}'),
    ("bad_json", "[" * 30_000),
    ("bad_json", "9" * 5_000),
    ("bad_message", "[]"),
    ("bad_message", '"ping"'),
    ("bad_message", "null"),
    ("bad_message", "{}"),
    ("bad_message", '{"type":1}'),
    ("bad_message", '{"type":"ping","__proto__":{}}'),
    ("bad_message", '{"type":"subscribe_toplist"}'),
    ("bad_message", '{"type":"subscribe_toplist","toplist_id":1}'),
    ("bad_message", '{"type":"subscribe_toplist","toplist_id":"\\ud800"}'),
    ("bad_message", json.dumps({"type": "subscribe_toplist", "toplist_id": "x" * 60_000})),
    ("bad_message", '{"type":"resume"}'),
    ("unknown_type", '{"type":"resumed"}'),
    ("unknown_type", '{"type":"\\ud800"}'),
    ("unknown_toplist", '{"type":"subscribe_toplist","toplist_id":"none"}'),
    ("unknown_toplist", '{"type":"subscribe_toplist","toplist_id":"gainers_1m","toplist_type":"user"}'),
    ("unknown_toplist", '{"type":"unsubscribe_toplist","toplist_id":"none"}'),
]
