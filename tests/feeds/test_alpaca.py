"""Alpaca's conversation and messages, in JSON and MessagePack: what is said, what rows come of it, and what comes of
messages that are wrong.
"""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapewatch.engine.columns import SECOND_NS, Batch, Kind
from tapewatch.errors import ConfigError, FeedLost, FeedRefused
from tapewatch.feeds.alpaca import AlpacaSession, AlpacaSettings
from tapewatch.feeds.dictionary import Dictionary
from tapewatch.feeds.frames import Encoding
from tapewatch.feeds.quarantine import Quarantine
from tapewatch.feeds.session import Received

KEY, SECRET = "planted-key-77ac", "planted-secret-90fe"
NOW_NS = 1_741_620_600 * SECOND_NS  # 2025-03-10 11:30 New York
AT_NS = NOW_NS - SECOND_NS + 123_456_789
MINUTE_NS = NOW_NS - 60 * SECOND_NS
BOTH: tuple[Encoding, ...] = ("json", "msgpack")
BASE = {"S": "AAPL", "z": "C", "t": AT_NS}
TRADE = {"T": "t", "i": 52983525029461, "x": "Q", "p": 126.55, "s": 1, "c": ["@", "I"], **BASE}
QUOTE = {
    "T": "q", "bx": "Q", "bp": 126.5, "bs": 120, "ax": "Z", "ap": 126.6, "as": 280, "c": ["R"], **BASE,
}  # fmt: skip
BAR = {
    "T": "b", "S": "AAPL", "o": 388.9, "h": 389.1, "l": 388.8, "c": 389.0, "v": 49378, "vw": 389.06, "n": 461,
    "t": MINUTE_NS,
}  # fmt: skip
CORRECTION = {
    "T": "c", "x": "M", "oi": 7, "op": 10.5, "os": 200, "oc": [" "], "ci": 9, "cp": 10.25, "cs": 150,
    "cc": [" ", "F"], **BASE, "z": "A",
}  # fmt: skip
CANCEL = {"T": "x", "i": 7, "x": "N", "p": 10.5, "s": 200, "a": "C", **BASE, "z": "A"}
BAND = {"T": "l", "u": 3.24, "d": 2.65, "i": "B", **BASE}
STATUS = {
    "T": "s", "sc": "H", "sm": "Trading Halt", "rc": "T12", "rm": "Additional Information Requested", **BASE,
}  # fmt: skip
CONNECTED = {"T": "success", "msg": "connected"}
AUTHENTICATED = {"T": "success", "msg": "authenticated"}


def make(encoding: Encoding = "json", **settings: Any) -> AlpacaSession:
    return AlpacaSession(
        AlpacaSettings(key=KEY, secret=SECRET, encoding=encoding, **settings),
        symbols=Dictionary(),
        conditions=Dictionary(),
        quarantine=Quarantine(),
    )


def rfc3339(ts_ns: int) -> str:
    """As Alpaca writes it: as many digits as are needed."""
    whole = datetime.fromtimestamp(ts_ns // SECOND_NS, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f"{ts_ns % SECOND_NS:09}".rstrip("0")
    return f"{whole}.{digits}Z" if digits else f"{whole}Z"


def timestamp(ts_ns: int) -> msgspec.msgpack.Ext:
    """The shortest form that MessagePack has for it."""
    seconds, rest = divmod(ts_ns, SECOND_NS)
    if rest == 0 and seconds < 2**32:
        return msgspec.msgpack.Ext(-1, seconds.to_bytes(4))
    return msgspec.msgpack.Ext(-1, (rest << 34 | seconds).to_bytes(8))


def frame(encoding: Encoding, *messages: Any) -> bytes:
    """Times that are integers become what the encoding has for them."""
    write = rfc3339 if encoding == "json" else timestamp
    dressed = [{**m, "t": write(m["t"])} if isinstance(m, dict) and type(m.get("t")) is int else m for m in messages]
    return json.dumps(dressed).encode() if encoding == "json" else msgspec.msgpack.encode(dressed)


def say(session: AlpacaSession, *messages: Any) -> Received:
    return session.receive([(NOW_NS, frame(session._settings.encoding, *messages))])


def heard(reply: str | bytes) -> Any:
    return json.loads(reply) if isinstance(reply, str) else msgspec.msgpack.decode(reply)


def rows(batch: Batch | None) -> list[dict[str, Any]]:
    """The rows as a person would write them."""
    if batch is None:
        return []
    return [
        {
            "kind": Kind(batch.kind[row]).name,
            "symbol": batch.symbols[batch.symbol[row]],
            "condition": batch.conditions[batch.condition[row]],
            "ts_ns": int(batch.ts_ns[row]),
            "price": float(batch.price[row]),
            "size": float(batch.size[row]),
            "tape": chr(batch.tape[row]),
            "exchange": chr(batch.exchange[row]),
            "trade_id": int(batch.trade_id[row]),
        }
        for row in range(len(batch))
    ]


def only(batch: Batch | None) -> dict[str, Any]:
    (row,) = rows(batch)
    return row


def row(kind: str, **changes: Any) -> dict[str, Any]:
    """A row of AAPL at the usual time."""
    usual = {
        "kind": kind, "symbol": "AAPL", "condition": "", "ts_ns": AT_NS, "price": 0.0, "size": 0.0, "tape": "C",
        "exchange": "\0", "trade_id": 0,
    }  # fmt: skip
    return {**usual, **changes}


# -- the conversation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", BOTH)
def test_handshake_ends_ready_when_the_acknowledgement_covers_what_was_asked(encoding: Encoding) -> None:
    session = make(encoding, symbols=("AAPL", "IBM"), channels=("trades", "updatedBars"))
    assert list(session.opening()) == []
    (auth,) = say(session, CONNECTED).replies
    assert isinstance(auth, str if encoding == "json" else bytes)
    assert heard(auth) == {"action": "auth", "key": KEY, "secret": SECRET}
    (subscribe,) = say(session, AUTHENTICATED).replies
    assert heard(subscribe) == {"action": "subscribe", "trades": ["AAPL", "IBM"], "updatedBars": ["AAPL", "IBM"]}
    assert not session.ready
    held = {"T": "subscription", "trades": ["IBM", "AAPL"], "quotes": [], "bars": [], "corrections": ["AAPL", "IBM"]}
    say(session, held)
    assert not session.ready
    say(session, {**held, "updatedBars": ["AAPL", "IBM"]})
    assert session.ready


def test_all_symbols_cover_each_of_them() -> None:
    session = make(symbols=("AAPL", "*"), channels=("bars",))
    (subscribe,) = say(session, AUTHENTICATED).replies
    assert heard(subscribe) == {"action": "subscribe", "bars": ["*"]}
    say(session, {"T": "subscription", "bars": ["*"]})
    assert session.ready


def test_acknowledgement_of_nothing_has_no_keys_and_is_not_ready() -> None:
    session = make()
    say(session, {"T": "subscription"})
    assert not session.ready


def test_connection_that_is_authenticated_already_goes_on() -> None:
    (subscribe,) = say(make(channels=("trades",)), {"T": "error", "code": 403, "msg": "already authenticated"}).replies
    assert heard(subscribe) == {"action": "subscribe", "trades": ["*"]}


def test_long_desired_set_is_asked_for_in_pieces() -> None:
    symbols = tuple(f"S{number}" for number in range(2_500))
    session = make(symbols=symbols, channels=("trades", "lulds"))
    replies = say(session, AUTHENTICATED).replies
    assert [name for reply in replies for name in heard(reply)["lulds"]] == list(symbols)
    assert max(len(reply) for reply in replies) < 32_768
    for held in (1_000, 2_000, 2_500):
        assert not session.ready
        say(session, {"T": "subscription", "trades": symbols[:held], "lulds": symbols[:held]})
    assert session.ready


@pytest.mark.parametrize("encoding", BOTH)
@pytest.mark.parametrize("code", [400, 401, 402, 405, 408, 409, 410])
def test_error_that_asks_for_a_change(code: int, encoding: Encoding) -> None:
    ended = say(make(encoding), {"T": "error", "code": code, "msg": f"no: {KEY} {SECRET}"}).ended
    assert isinstance(ended, FeedRefused)
    assert str(code) in str(ended)
    assert KEY not in str(ended)
    assert SECRET not in str(ended)


def test_symbol_limit_says_what_to_do() -> None:
    ended = say(make(), {"T": "error", "code": 405, "msg": "symbol limit exceeded"}).ended
    assert "ask for fewer symbols" in str(ended)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (404, "network"),
        (406, "connection_limit"),
        (407, "slow_consumer"),
        (500, "network"),
        (499, "protocol"),
        (0, "protocol"),
    ],
)
def test_error_after_which_to_connect_again(code: int, reason: str) -> None:
    ended = say(make(), {"T": "error", "code": code, "msg": f"no: {KEY} {SECRET}"}).ended
    assert isinstance(ended, FeedLost)
    assert ended.reason == reason
    assert KEY not in str(ended)
    assert SECRET not in str(ended)


def test_rows_before_the_end_are_kept_and_those_after_it_are_not() -> None:
    session = make()
    frames = [frame("json", TRADE), frame("json", {"T": "error", "code": 407, "msg": ""}), frame("json", TRADE, TRADE)]
    received = session.receive([(NOW_NS, data) for data in frames])
    assert isinstance(received.ended, FeedLost)
    assert len(rows(received.batch)) == 1


@pytest.mark.parametrize(
    ("feed", "path"),
    [
        ("sip", "v2/sip"), ("iex", "v2/iex"), ("delayed", "v2/delayed_sip"), ("overnight", "v1beta1/overnight"),
        ("boats", "v1beta1/boats"), ("test", "v2/test"),
    ],
)  # fmt: skip
def test_feed_is_a_place_on_the_server(feed: str, path: str) -> None:
    settings = AlpacaSettings(key=KEY, secret=SECRET, feed=feed)
    assert settings.url == f"wss://stream.data.alpaca.markets/{path}"
    assert AlpacaSettings(key=KEY, secret=SECRET, feed=feed, host="ws://127.0.0.1:1/").url == f"ws://127.0.0.1:1/{path}"


@pytest.mark.parametrize("encoding", BOTH)
def test_header_asks_for_the_encoding(encoding: Encoding) -> None:
    settings = AlpacaSettings(key=KEY, secret=SECRET, encoding=encoding)
    assert settings.headers == {"Content-Type": f"application/{encoding}"}


@pytest.mark.parametrize("wrong", [{"channels": ()}, {"channels": ("all",)}, {"symbols": ()}, {"feed": "x"}], ids=repr)
def test_settings_that_ask_for_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        AlpacaSettings(key=KEY, secret=SECRET, **wrong)


# -- messages ----------------------------------------------------------------------------------------------------------

MESSAGES: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    (TRADE, [row("TRADE", condition="@I", price=126.55, size=1.0, exchange="Q", trade_id=52983525029461)]),
    (
        {"T": "t", "i": 1, "S": "AAPL", "p": 2, "s": 0.5, "t": AT_NS},
        [row("TRADE", price=2.0, size=0.5, tape="\0", trade_id=1)],
    ),
    ({**TRADE, "c": None, "z": "O", "x": "?", "i": 2}, [row("TRADE", price=126.55, size=1.0, tape="\0", trade_id=2)]),
    (
        {**TRADE, "c": [" ", "F"], "i": 3},
        [row("TRADE", condition=" F", price=126.55, size=1.0, exchange="Q", trade_id=3)],
    ),
    (
        CORRECTION,
        [row("CORRECTION", condition=" F", price=10.25, size=150.0, tape="A", exchange="M", trade_id=7)],
    ),
    (CANCEL, [row("CANCEL", price=10.5, size=200.0, tape="A", exchange="N", trade_id=7)]),
    (
        QUOTE,
        [row("BID", price=126.5, size=120.0, exchange="Q"), row("ASK", price=126.6, size=280.0, exchange="Z")],
    ),
    (BAND, [row("BAND_LOW", price=2.65), row("BAND_HIGH", price=3.24)]),
    (STATUS, [row("HALT", condition="T12")]),
    ({**STATUS, "sc": "P", "rc": "LUDP"}, [row("HALT", condition="LUDP")]),
    ({**STATUS, "sc": "T", "rc": "C11"}, [row("RESUME", condition="C11")]),
    ({**STATUS, "sc": "Q", "rc": "R4"}, []),
    ({**STATUS, "sc": "2", "rc": "M", "z": "A"}, [row("HALT", condition="M", tape="A")]),
    ({**STATUS, "sc": "3", "rc": "D", "z": "B"}, [row("RESUME", condition="D", tape="B")]),
    ({**STATUS, "sc": "E", "rc": "", "z": "A"}, []),
    ({**STATUS, "sc": "H", "z": "A"}, []),
]  # fmt: skip


@pytest.mark.parametrize("encoding", BOTH)
@pytest.mark.parametrize(("message", "expected"), MESSAGES, ids=lambda value: str(value)[:50])
def test_message_field_by_field(message: dict[str, Any], expected: list[dict[str, Any]], encoding: Encoding) -> None:
    session = make(encoding)
    received = say(session, message)
    assert rows(received.batch) == expected
    assert received.notes == ({} if expected else {"status": 1})
    assert session.quarantine.counts == {}


def test_both_encodings_give_the_same_rows_in_the_order_of_arrival() -> None:
    everything = [message for message, _ in MESSAGES] * 3
    expected = [made for _, found in MESSAGES for made in found] * 3
    for encoding in BOTH:
        cut = [frame(encoding, *everything[:7]), frame(encoding, *everything[7:])]
        received = make(encoding).receive([(NOW_NS, data) for data in cut])
        assert rows(received.batch) == expected


@pytest.mark.parametrize("encoding", BOTH)
@pytest.mark.parametrize(("kind", "revision"), [("b", 0), ("u", 1)])
def test_bar_field_by_field(kind: str, revision: int, encoding: Encoding) -> None:
    received = say(make(encoding), {**BAR, "T": kind})
    (bars,) = received.bars
    assert received.batch is None
    assert bars.symbols[bars.symbol[0]] == "AAPL"
    assert (bars.ts_ns[0], bars.volume[0], bars.trade_count[0], bars.revision[0]) == (MINUTE_NS, 49378.0, 461, revision)
    assert (bars.open[0], bars.high[0], bars.low[0], bars.close[0]) == (388.9, 389.1, 388.8, 389.0)
    assert bars.vwap[0] == 389.06
    assert np.isnan(bars.vwap_volume[0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"h": 1}, "price"),
        ({"l": 999}, "price"),
        ({"c": -1}, "price"),
        ({"v": -1}, "size"),
        ({"t": NOW_NS - 1}, "ts_ns"),
    ],
    ids=repr,
)
def test_bar_that_is_none(change: dict[str, Any], reason: str) -> None:
    session = make()
    (bars,) = say(session, {**BAR, **change}, BAR).bars
    assert len(bars) == 1
    assert session.quarantine.counts == {reason: 1}


def test_bar_with_no_mean_price_is_kept_without_it() -> None:
    (bars,) = say(make(), {name: value for name, value in BAR.items() if name not in {"vw", "n"}}).bars
    assert np.isnan(bars.vwap[0])
    assert bars.trade_count[0] == -1


def test_messages_of_channels_that_nobody_reads_are_noted() -> None:
    session = make()
    received = say(session, {**BAR, "T": "d"}, {"T": "i", "S": "AAPL", "p": 1.0, "z": "C", "t": AT_NS})
    assert received.notes == {"daily_bar": 1, "imbalance": 1}
    assert session.quarantine.counts == {}


@pytest.mark.parametrize("encoding", BOTH)
@pytest.mark.parametrize("rest", [0, 1, 208_000_000, 999_999_999])
def test_time_is_exact_to_the_nanosecond(rest: int, encoding: Encoding) -> None:
    at_ns = NOW_NS - 5 * SECOND_NS + rest
    batch = say(make(encoding), TRADE, {**TRADE, "t": at_ns}, TRADE).batch
    assert [made["ts_ns"] for made in rows(batch)] == [AT_NS, at_ns, AT_NS]


def test_long_form_of_a_timestamp_is_read() -> None:
    long = msgspec.msgpack.Ext(-1, (123_456_789).to_bytes(4) + (AT_NS // SECOND_NS).to_bytes(8))
    batch = say(make("msgpack"), TRADE, {**TRADE, "t": long}, {**TRADE, "t": NOW_NS}).batch
    assert [made["ts_ns"] for made in rows(batch)] == [AT_NS, AT_NS, NOW_NS]


def test_time_with_an_offset_is_read() -> None:
    written = rfc3339(AT_NS).replace("15:29", "11:29").replace("Z", "-04:00")
    assert only(say(make(), {**TRADE, "t": written}).batch)["ts_ns"] == AT_NS


@pytest.mark.parametrize("trade_id", [2**63, 2**64 - 1])
def test_trade_id_beyond_the_column_gets_the_same_number_in_any_company(trade_id: int) -> None:
    alone = only(say(make("msgpack"), {**TRADE, "i": trade_id}).batch)["trade_id"]
    among = rows(say(make("msgpack"), {**TRADE, "i": 4}, {**TRADE, "i": trade_id}).batch)
    assert [made["trade_id"] for made in among] == [4, alone]
    assert 0 < alone < 2**56


def test_side_that_nobody_quotes_has_no_price() -> None:
    bid, ask = rows(say(make(), {**QUOTE, "ap": 0, "as": 0, "ax": " "}).batch)
    assert bid["price"] == 126.5
    assert np.isnan(ask["price"])
    assert ask["size"] == 0.0


# -- bad messages ------------------------------------------------------------------------------------------------------


def each(name: str, reason: str, *values: Any) -> list[tuple[dict[str, Any], str]]:
    """A change of one field for each value, and by which reason the message is counted."""
    return [({name: value}, reason) for value in values]


BAD = [
    *each("p", "price", 0, -1, 1e308, 10_000_001, "1.5", True, None, []),
    *each("s", "size", -5, 2**63, 1e300, "100"),
    *each("t", "ts_ns", 0, 4_102_444_800 * SECOND_NS, NOW_NS + 3600 * SECOND_NS),
    *each("t", "ts_ns", "now", "", 1.5, None, [], "2025-03-10T15:29:59", '""', "9999-01-01T00:00:00Z"),
    *each("S", "symbol", "", "../../x", "A\nB", "A" * 300, "a", "A..B", "\u0410", 1, None),
    *each("c", "condition", "@", 0, {}, [1], ["@@"], ["\n"], ["\u2028"], ["@", None]),
    *each("z", "tape", 3),
    *each("x", "exchange", 4),
    *each("i", "trade_id", "7", 1.5),
    *each("T", "unknown_type", "zz", ""),
    *each("T", "malformed", 5, None),
]


@pytest.mark.parametrize("encoding", BOTH)
@pytest.mark.parametrize(("change", "reason"), BAD, ids=[f"{change!r:.40}" for change, _ in BAD])
def test_bad_message_costs_only_itself(change: dict[str, Any], reason: str, encoding: Encoding) -> None:
    session = make(encoding)
    received = say(session, TRADE, {**TRADE, **change}, QUOTE)
    assert [made["kind"] for made in rows(received.batch)] == ["TRADE", "BID", "ASK"]
    assert session.quarantine.counts == {reason: 1}
    assert len(session.quarantine.samples[reason]) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("name", ["p", "s"])
def test_number_that_is_none_costs_only_its_message(name: str, value: float) -> None:
    session = make("msgpack")
    assert len(rows(say(session, TRADE, {**TRADE, name: value}).batch)) == 1
    assert session.quarantine.counts.total() == 1


@pytest.mark.parametrize(
    "ext",
    [
        (-1, b""),
        (-1, b"\xff" * 8),
        (-1, b"\xff" * 12),
        (-1, b"\xff" * 4),
        (5, bytes(8)),
        (-1, bytes(5)),
        (-2, b"\x67" * 4),
    ],
    ids=repr,
)
def test_extension_that_is_no_time_costs_only_its_message(ext: tuple[int, bytes]) -> None:
    session = make("msgpack")
    assert len(rows(say(session, TRADE, {**TRADE, "t": msgspec.msgpack.Ext(*ext)}).batch)) == 1
    assert session.quarantine.counts == {"ts_ns": 1}


@pytest.mark.parametrize("encoding", BOTH)
@pytest.mark.parametrize("name", ["S", "p", "s", "t", "i"])
def test_message_without_a_field_is_counted_by_it(name: str, encoding: Encoding) -> None:
    session = make(encoding)
    received = say(session, {key: value for key, value in TRADE.items() if key != name}, TRADE)
    assert len(rows(received.batch)) == 1
    reason = {"S": "symbol", "p": "price", "s": "size", "t": "ts_ns", "i": "trade_id"}[name]
    assert session.quarantine.counts == {reason: 1}


@pytest.mark.parametrize("encoding", BOTH)
@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"\xff\xfe", b"{}", b"\x80", b"5", b"\xc0", b"[" * 99_999, b"\x91" * 99_999, b"\xdd" + b"\xff" * 4],
    ids=lambda data: repr(data[:8]),
)
def test_frame_that_is_none_is_counted(data: bytes, encoding: Encoding) -> None:
    session = make(encoding)
    received = session.receive([(NOW_NS, data), (NOW_NS, frame(encoding, TRADE))])
    assert len(rows(received.batch)) == 1
    assert session.quarantine.counts.total() == 1
    assert received.ended is None


def test_too_many_conditions_cost_only_their_message() -> None:
    for encoding in BOTH:
        session = make(encoding)
        assert len(rows(say(session, TRADE, {**TRADE, "c": ["@"] * 7}).batch)) == 1
        assert session.quarantine.counts.total() == 1


def test_new_symbols_have_a_cap_and_one_label() -> None:
    session = make("msgpack", most_symbols=50)
    for start in range(0, 3_000, 300):
        say(session, *({**TRADE, "S": f"S{number}"} for number in range(start, start + 300)))
    assert session.quarantine.counts == {"too_many_symbols": 2_950}


def test_flood_of_conditions_is_bounded() -> None:
    session = make("msgpack")
    letters = [chr(code) for code in range(33, 127)]
    for first in letters:
        say(session, *({**TRADE, "c": [first, second]} for second in letters))
    received = say(session, TRADE, {**TRADE, "c": ["~", "~", "~"]})
    assert received.batch is not None
    assert len(received.batch.conditions) == 8_192
    assert session.quarantine.counts["condition"] > 0


def test_symbol_that_nobody_asked_for_is_counted() -> None:
    session = make(symbols=("AAPL",))
    assert only(say(session, TRADE, {**TRADE, "S": "IBM"}).batch)["symbol"] == "AAPL"
    assert session.quarantine.counts == {"unknown_symbol": 1}


@pytest.mark.parametrize("encoding", BOTH)
def test_unknown_field_is_noted_and_its_row_kept(encoding: Encoding) -> None:
    session = make(encoding)
    received = say(session, {**TRADE, "new": 1})
    assert len(rows(received.batch)) == 1
    assert received.notes == {"unknown_field": 1}
    assert session.quarantine.counts == {"unknown_field": 0}
    assert session.quarantine.samples == {"unknown_field": ["t: new"]}


def test_dictionaries_last_longer_than_a_connection() -> None:
    symbols, conditions = Dictionary(), Dictionary()
    settings = AlpacaSettings(key=KEY, secret=SECRET, encoding="json")
    batches = [
        say(AlpacaSession(settings, symbols=symbols, conditions=conditions, quarantine=Quarantine()), *messages).batch
        for messages in ((TRADE, {**TRADE, "S": "IBM"}), ({**TRADE, "S": "IBM", "c": [" "]}, TRADE))
    ]
    first, second = (batch for batch in batches if batch is not None)
    assert first.symbols is second.symbols
    assert [made["symbol"] for made in rows(second)] == ["IBM", "AAPL"]
    assert [made["condition"] for made in rows(second)] == [" ", "@I"]


def test_secrets_are_nowhere() -> None:
    for encoding in BOTH:
        session = make(encoding)
        for planted in (KEY, SECRET):
            bad = [{**TRADE, "S": planted}, {**TRADE, "T": planted}, {**TRADE, "p": planted}, {**TRADE, planted: 1}]
            told = say(session, *bad, {"T": "success", "msg": planted})
            cut = frame(encoding, {"T": "error", "code": 402, "msg": planted})[:-1]
            session.receive([(NOW_NS, cut), (NOW_NS, frame(encoding, {"T": "error", "code": planted}))])
            everything = repr((session._settings, told.notes, session.quarantine.counts, session.quarantine.samples))
            assert planted not in everything
            assert "***" in everything


# -- any bytes ---------------------------------------------------------------------------------------------------------


def promises_hold(batch: Batch) -> bool:
    """What every reader of a live batch relies on."""
    printed = np.isin(batch.kind, [Kind.TRADE, Kind.CANCEL, Kind.CORRECTION, Kind.BAND_LOW, Kind.BAND_HIGH])
    quotes = np.isin(batch.kind, [Kind.BID, Kind.ASK])
    priced = (batch.price > 0) & (batch.price <= 1e7)
    return bool(
        np.all((batch.symbol >= 0) & (batch.symbol < len(batch.symbols)))
        and np.all(batch.condition < len(batch.conditions))
        and np.all(priced[printed])
        and np.all(priced[quotes] | (np.isnan(batch.price[quotes]) & (batch.size[quotes] == 0)))
        and np.all((batch.size >= 0) & np.isfinite(batch.size))
        and np.all((batch.ts_ns > 0) & (batch.ts_ns <= NOW_NS + 5 * SECOND_NS))
        and np.all(np.isin(batch.tape, [0, *b"ABC"]))
        and len({len(getattr(batch, name)) for name in ("symbol", "price", "trade_id", "exchange", "kind")}) == 1
    )


EVERY = [TRADE, QUOTE, BAR, CORRECTION, CANCEL, BAND, STATUS]


@given(
    encoding=st.sampled_from(BOTH),
    messages=st.lists(st.sampled_from(EVERY), min_size=1, max_size=4),
    cut=st.integers(0, 300),
    edits=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=4), st.integers(0, 4)), max_size=6),
)
def test_mutated_frames_never_raise_and_never_break_a_batch(
    encoding: Encoding, messages: list[dict[str, Any]], cut: int, edits: list[tuple[int, bytes, int]]
) -> None:
    data = frame(encoding, *messages)
    for at, new, length in edits:
        data = data[:at] + new + data[at + length :]
    received = make(encoding).receive([(NOW_NS, data[: len(data) - cut] if cut < len(data) else data)])
    assert received.batch is None or promises_hold(received.batch)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(encoding=st.sampled_from(BOTH), message=st.sampled_from(EVERY), data=st.data())
def test_any_value_in_any_field_costs_at_most_its_own_message(
    encoding: Encoding, message: dict[str, Any], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(message.keys() - {"T", "t"})))
    session = make(encoding)
    received = say(session, TRADE, {**message, name: data.draw(values)}, TRADE)
    assert received.batch is not None
    assert promises_hold(received.batch)
    assert np.count_nonzero(received.batch.kind == Kind.TRADE) >= 2
    assert session.quarantine.counts.total() <= 1
