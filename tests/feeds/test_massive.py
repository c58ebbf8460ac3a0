"""Massive's conversation and messages: what is said, what rows come of it, what comes of messages that are wrong."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapewatch.eligibility import load_profile
from tapewatch.engine.calendar import Phase
from tapewatch.engine.columns import SECOND_NS, Batch, Kind
from tapewatch.engine.conditions import Effect
from tapewatch.errors import ConfigError, FeedLost, FeedRefused
from tapewatch.feeds.dictionary import Dictionary
from tapewatch.feeds.massive import MassiveSession, MassiveSettings
from tapewatch.feeds.quarantine import Quarantine
from tapewatch.feeds.session import Received

KEY = "planted-key-5be1"
NOW_NS = 1_741_620_600 * SECOND_NS  # 2025-03-10 11:30 New York
NOW_MS = NOW_NS // 10**6
MINUTE_MS = NOW_MS - 60_000
TRADE = {
    "ev": "T",
    "sym": "MSFT",
    "x": 4,
    "i": "12345",
    "z": 3,
    "p": 114.125,
    "s": 100,
    "c": [0, 12],
    "t": NOW_MS,
    "q": 8,
}
QUOTE = {
    "ev": "Q", "sym": "MSFT", "bx": 12, "bp": 114.1, "bs": 3, "ax": 19, "ap": 114.2, "as": 5, "c": 0, "i": [604],
    "t": NOW_MS, "q": 9, "z": 3,
}  # fmt: skip
MINUTE = {
    "ev": "AM", "sym": "GTE", "v": 4110, "av": 9470157, "op": 0.4372, "vw": 0.4488, "o": 0.4488, "c": 0.4486,
    "h": 0.4489, "l": 0.4486, "a": 0.4352, "z": 685, "s": MINUTE_MS, "e": NOW_MS,
}  # fmt: skip
BAND = {"ev": "LULD", "T": "MSFT", "h": 218.94, "l": 178.04, "i": [16], "z": 3, "t": NOW_NS, "q": 10}


def make(**settings: Any) -> MassiveSession:
    return MassiveSession(
        MassiveSettings(key=KEY, **settings), symbols=Dictionary(), conditions=Dictionary(), quarantine=Quarantine()
    )


def say(session: MassiveSession, *messages: Any) -> Received:
    """One frame of these messages."""
    return session.receive([(NOW_NS, json.dumps(messages).encode())])


def status(word: str, message: str = "") -> dict[str, str]:
    return {"ev": "status", "status": word, "message": message}


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


# -- the conversation --------------------------------------------------------------------------------------------------


def test_handshake_ends_ready_when_trades_are_confirmed() -> None:
    session = make(symbols=("MSFT", "AAPL"), channels=("T", "LULD"))
    assert list(session.opening()) == []
    (auth,) = say(session, status("connected", "Connected Successfully")).replies
    assert json.loads(auth) == {"action": "auth", "params": KEY}
    (subscribe,) = say(session, status("auth_success", "authenticated")).replies
    assert json.loads(subscribe) == {"action": "subscribe", "params": "T.MSFT,T.AAPL,LULD.MSFT,LULD.AAPL"}
    say(session, status("success", "subscribed to: T.MSFT"))
    assert not session.ready
    say(session, status("success", "subscribed to: T.AAPL"))
    assert session.ready


def test_first_trade_proves_a_subscription_that_is_never_confirmed() -> None:
    session = make()
    say(session, status("connected"))
    say(session, status("auth_success"))
    say(session, QUOTE, MINUTE)
    assert not session.ready
    assert only(say(session, TRADE).batch)["symbol"] == "MSFT"
    assert session.ready


def test_without_trades_every_channel_must_be_confirmed_or_proved() -> None:
    session = make(channels=("AM", "LULD"))
    say(session, status("auth_success"))
    say(session, status("success", "subscribed to: AM.*"))
    assert not session.ready
    say(session, BAND)
    assert session.ready


def test_rows_before_the_authentication_do_not_make_it_ready() -> None:
    session = make()
    say(session, TRADE)
    assert not session.ready


def test_statuses_may_share_a_frame_with_each_other_and_with_trades() -> None:
    session = make()
    received = say(session, status("connected"), status("auth_success"), status("success", "subscribed to: T.*"), TRADE)
    assert len(received.replies) == 2
    assert only(received.batch)["kind"] == "TRADE"
    assert session.ready


def test_long_desired_set_is_asked_for_in_pieces() -> None:
    symbols = tuple(f"S{number}" for number in range(2_500))
    replies = say(make(symbols=symbols, channels=("T",)), status("auth_success")).replies
    asked = [name for reply in replies for name in json.loads(reply)["params"].split(",")]
    assert asked == [f"T.{symbol}" for symbol in symbols]
    assert max(len(reply) for reply in replies) < 32_768


@pytest.mark.parametrize(
    ("word", "message", "reason"),
    [
        ("auth_timeout", "", "network"),
        ("max_connections", "Maximum number of websocket connections exceeded.", "connection_limit"),
        ("slow_consumer", "", "slow_consumer"),
        ("force_disconnect", "", "closed"),
        ("error", "internal", "protocol"),
    ],
)
def test_status_that_ends_the_connection(word: str, message: str, reason: str) -> None:
    ended = say(make(), status(word, f"{message} {KEY}")).ended
    assert isinstance(ended, FeedLost)
    assert ended.reason == reason
    assert KEY not in str(ended)


@pytest.mark.parametrize(
    ("word", "message"), [("auth_failed", "authentication failed"), ("error", "You are not authorized for this")]
)
def test_status_that_asks_for_a_change(word: str, message: str) -> None:
    ended = say(make(), status(word, f"{message} {KEY}")).ended
    assert isinstance(ended, FeedRefused)
    assert KEY not in str(ended)


def test_error_after_the_handshake_is_counted_and_ends_nothing() -> None:
    session = make()
    say(session, status("auth_success"), status("success", "subscribed to: T.*"))
    received = say(session, status("error", "something"), TRADE)
    assert received.ended is None
    assert received.notes["other_status"] == 1
    assert len(rows(received.batch)) == 1


def test_rows_before_the_end_are_kept_and_those_after_it_are_not() -> None:
    received = say(make(), TRADE, status("max_connections"), {**TRADE, "p": 1.0})
    assert isinstance(received.ended, FeedLost)
    assert only(received.batch)["price"] == 114.125


@pytest.mark.parametrize("wrong", [{"channels": ()}, {"channels": ("NOI",)}, {"symbols": ()}], ids=repr)
def test_settings_that_ask_for_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        MassiveSettings(key=KEY, **wrong)


def test_old_hosts_are_only_another_url() -> None:
    settings = MassiveSettings(key=KEY, url="wss://socket.polygon.io/stocks")
    assert settings.url == "wss://socket.polygon.io/stocks"
    assert dict(settings.headers) == {}


# -- messages ----------------------------------------------------------------------------------------------------------


def test_trade_field_by_field() -> None:
    assert only(say(make(), TRADE).batch) == {
        "kind": "TRADE", "symbol": "MSFT", "condition": "@T", "ts_ns": NOW_NS, "price": 114.125, "size": 100.0,
        "tape": "C", "exchange": "D", "trade_id": 12345,
    }  # fmt: skip


def test_trade_without_what_may_be_missing() -> None:
    bare = {name: TRADE[name] for name in ("ev", "sym", "p", "s", "t")}
    row = only(say(make(), bare).batch)
    assert (row["condition"], row["tape"], row["exchange"], row["trade_id"]) == ("", "\0", "\0", 0)


def test_decimal_size_wins_over_the_whole_one() -> None:
    batch = say(make(), {**TRADE, "s": 0, "ds": "0.25"}, TRADE, {**TRADE, "s": 3, "ds": "3.5"}).batch
    assert [row["size"] for row in rows(batch)] == [0.25, 100.0, 3.5]


@pytest.mark.parametrize(
    ("text", "number"),
    [("12345", 12345), ("", 0), ("9223372036854775807", 2**63 - 1), ("71675577320245", 71675577320245)],
)
def test_trade_id_that_is_an_integer_stays_one(text: str, number: int) -> None:
    assert only(say(make(), {**TRADE, "i": text}).batch)["trade_id"] == number


@pytest.mark.parametrize("text", ["a1b2", "9223372036854775808", "1_0", " 5", "x" * 300])
def test_trade_id_that_is_text_gets_the_same_number_in_any_company(text: str) -> None:
    alone = only(say(make(), {**TRADE, "i": text}).batch)["trade_id"]
    among = rows(say(make(), {**TRADE, "i": "7"}, {**TRADE, "i": text}, {**TRADE, "i": "8"}).batch)
    assert [row["trade_id"] for row in among] == [7, alone, 8]
    assert 0 < alone < 2**56


@pytest.mark.parametrize(
    ("ids", "tape", "letters"),
    [
        ([2], 1, "B"), ([2], 2, "B"), ([2], 3, "W"), ([4], 3, "B"), ([4], 1, "?"), ([0], 1, " "), ([0], 3, "@"),
        ([14, 41], 1, "F"), ([12, 37], 3, "TI"), ([53], 1, "7"), ([16, 17], 3, "QO"), ([999], 3, "?"), ([22], 1, "P"),
        ([], 1, ""), ([0, 14, 12, 37], 1, " FTI"),
    ],
)  # fmt: skip
def test_condition_ids_become_the_letters_of_the_tape(ids: list[int], tape: int, letters: str) -> None:
    session = make()
    assert only(say(session, {**TRADE, "c": ids, "z": tape}).batch)["condition"] == letters
    assert ("unknown_condition" in session.quarantine.samples) == (999 in ids)


def test_unknown_condition_counts_in_the_volume_only() -> None:
    condition = only(say(make(), {**TRADE, "c": [14, 999]}).batch)["condition"]
    assert load_profile("alpaca").effect(condition, "C", Phase.REGULAR) == Effect.VOLUME | Effect.UNKNOWN


def test_same_ids_on_different_tapes_stay_apart_in_one_frame() -> None:
    batch = say(make(), *({**TRADE, "c": [2], "z": tape} for tape in (1, 3, 2, 0))).batch
    assert [row["condition"] for row in rows(batch)] == ["B", "W", "B", "W"]


@pytest.mark.parametrize(
    ("number", "tape", "letter"),
    [
        (12, 1, "T"),
        (12, 2, "T"),
        (12, 3, "Q"),
        (10, 1, "N"),
        (4, 3, "D"),
        (5, 1, "\0"),
        (0, 1, "\0"),
        (300, 1, "\0"),
        (-1, 1, "\0"),
    ],
)
def test_exchange_becomes_the_participant_letter_of_the_tape(number: int, tape: int, letter: str) -> None:
    assert only(say(make(), {**TRADE, "x": number, "z": tape}).batch)["exchange"] == letter


def test_quote_is_a_bid_and_an_ask() -> None:
    bid, ask = rows(say(make(), QUOTE).batch)
    assert (bid["kind"], bid["price"], bid["size"], bid["exchange"], bid["ts_ns"]) == ("BID", 114.1, 3.0, "Q", NOW_NS)
    assert (ask["kind"], ask["price"], ask["size"], ask["exchange"], ask["tape"]) == ("ASK", 114.2, 5.0, "Z", "C")


def test_side_that_nobody_quotes_has_no_price() -> None:
    bid, ask = rows(say(make(), {name: QUOTE[name] for name in ("ev", "sym", "ap", "as", "ax", "t")}).batch)
    assert np.isnan(bid["price"])
    assert bid["size"] == 0.0
    assert ask["price"] == 114.2


def test_minute_bar_field_by_field() -> None:
    received = say(make(), MINUTE)
    (bars,) = received.bars
    assert received.batch is None
    assert bars.symbols[bars.symbol[0]] == "GTE"
    assert (bars.ts_ns[0], bars.volume[0], bars.vwap[0]) == (MINUTE_MS * 10**6, 4110.0, 0.4488)
    assert (bars.open[0], bars.high[0], bars.low[0], bars.close[0]) == (0.4488, 0.4489, 0.4486, 0.4486)
    assert (bars.trade_count[0], bars.revision[0]) == (-1, 0)
    assert np.isnan(bars.vwap_volume[0])


def test_minute_bar_that_comes_again_is_a_revision() -> None:
    session = make()
    (first,) = say(session, MINUTE, {**MINUTE, "sym": "MSFT"}).bars
    (again,) = say(session, {**MINUTE, "v": 4200, "dv": "4200.5"}, {**MINUTE, "s": MINUTE_MS + 60_000}).bars
    assert first.revision.tolist() == [0, 0]
    assert again.revision.tolist() == [1, 0]
    assert again.volume[0] == 4200.5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"h": 0.1}, "price"),
        ({"l": 9.0}, "price"),
        ({"o": 0}, "price"),
        ({"v": -1}, "size"),
        ({"s": NOW_MS - 1}, "ts_ns"),
    ],
    ids=repr,
)
def test_minute_bar_that_is_none(change: dict[str, Any], reason: str) -> None:
    session = make()
    assert list(say(session, {**MINUTE, **change}).bars) == []
    assert session.quarantine.counts == {reason: 1}


@pytest.mark.parametrize("t", [NOW_NS, NOW_NS // 1_000, NOW_NS // 10**6])
def test_price_band_in_any_unit_of_time(t: int) -> None:
    low, high = rows(say(make(), {**BAND, "t": t}).batch)
    assert (low["kind"], low["price"], low["ts_ns"]) == ("BAND_LOW", 178.04, NOW_NS)
    assert (high["kind"], high["price"], high["tape"]) == ("BAND_HIGH", 218.94, "C")


@pytest.mark.parametrize(("indicator", "kind"), [(17, "HALT"), (18, "RESUME")])
def test_band_message_can_be_a_halt_or_its_end(indicator: int, kind: str) -> None:
    row = only(say(make(), {**BAND, "i": [indicator], "h": 0, "l": 0}).batch)
    assert (row["kind"], row["symbol"], row["condition"]) == (kind, "MSFT", f"LULD {indicator}")


def test_rows_keep_the_order_of_arrival_over_types_and_frames() -> None:
    second = [{**TRADE, "sym": "B"}, {**BAND, "i": [17], "T": "C"}, {**TRADE, "sym": "D"}]
    frames = [json.dumps([TRADE, QUOTE, TRADE]).encode(), json.dumps(second).encode()]
    batch = make().receive([(NOW_NS, frame) for frame in frames]).batch
    assert [(row["symbol"], row["kind"]) for row in rows(batch)] == [
        ("MSFT", "TRADE"), ("MSFT", "BID"), ("MSFT", "ASK"), ("MSFT", "TRADE"), ("B", "TRADE"), ("C", "HALT"),
        ("D", "TRADE"),
    ]  # fmt: skip


def test_messages_of_channels_that_nobody_reads_are_noted() -> None:
    session = make()
    received = say(session, {"ev": "A", "sym": "X"}, {"ev": "NOI", "T": "X"}, {"ev": "FMV", "sym": "X"}, {"ev": "LV"})
    assert received.notes == {"second_bar": 1, "imbalance": 1, "fair_value": 2}
    assert session.quarantine.counts == {}


def test_test_symbols_are_left_out_and_noted() -> None:
    session = make()
    received = say(session, {**TRADE, "sym": "ZVZZT"}, TRADE)
    assert only(received.batch)["symbol"] == "MSFT"
    assert received.notes["test_symbol"] == 1
    assert session.quarantine.counts == {}


# -- bad messages ------------------------------------------------------------------------------------------------------


def each(name: str, reason: str, *values: Any) -> list[tuple[dict[str, Any], str]]:
    """A change of one field for each value, and by which reason the message is counted."""
    return [({name: value}, reason) for value in values]


BAD = [
    *each("p", "price", 0, -1, 1e308, 10_000_001, "1.5", True, None, [], {}),
    *each("s", "size", -5, 2**63, 1e300, "100", False),
    *each("ds", "size", "nan", "inf", "-1", "x", "1e400", "\uff11"),
    *each("ds", "exact_size", 1.5),
    *each("t", "ts_ns", 0, -1, 4_102_444_800_000, NOW_MS // 1000, NOW_MS + 3_600_000),
    *each("t", "ts_ns", NOW_MS + 5_001, 2**63 - 1, 2**64, 10**40, 1.5, "now", NOW_NS),
    *each("sym", "symbol", "", "../../x", "A\nB", "A" * 300, "<img>", "a", "A..B", "\u0410"),
    *each("sym", "symbol", 1, None),
    *each("c", "condition", "@", 0, {}, None),
    *each("z", "tape", "C"),
    *each("x", "exchange", "Q"),
    *each("i", "trade_id", 1.5),
    *each("ev", "unknown_type", "Z", "", "t"),
    *each("ev", "malformed", 5, None),
    *each("c", "malformed", [0] * 7),
]


@pytest.mark.parametrize(("change", "reason"), BAD, ids=[f"{change!r:.40}" for change, _ in BAD])
def test_bad_message_costs_only_itself(change: dict[str, Any], reason: str) -> None:
    session = make()
    received = say(session, TRADE, {**TRADE, **change}, QUOTE)
    assert [row["kind"] for row in rows(received.batch)] == ["TRADE", "BID", "ASK"]
    assert session.quarantine.counts == {reason: 1}
    assert len(session.quarantine.samples[reason]) == 1


@pytest.mark.parametrize("name", ["sym", "p", "s", "t"])
def test_message_without_a_field_is_counted_by_it(name: str) -> None:
    session = make()
    received = say(session, {key: value for key, value in TRADE.items() if key != name}, TRADE)
    assert len(rows(received.batch)) == 1
    assert session.quarantine.counts == {{"sym": "symbol", "p": "price", "s": "size", "t": "ts_ns"}[name]: 1}


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "1e999", "0x10", "01", "1.2.3"])
def test_number_that_is_no_json_costs_only_its_message(literal: str) -> None:
    session = make()
    good = json.dumps(TRADE)
    broken = good.replace("114.125", literal)
    received = session.receive([(NOW_NS, f"[{good},{broken},{good}]".encode())])
    assert len(rows(received.batch)) == 2
    assert session.quarantine.counts.total() == 1
    assert session.quarantine.counts.keys() <= {"malformed", "price"}


def test_price_with_many_decimals_is_rounded() -> None:
    frame = json.dumps([TRADE]).replace("114.125", "114.12345678901234567890").encode()
    assert only(make().receive([(NOW_NS, frame)]).batch)["price"] == pytest.approx(114.12345678901235)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"hello",
        b"\xff\xfe\x00",
        b"{}",
        b"5",
        b"null",
        b"[" * 100_000,
        b"[1,2]",
        b"[[]]",
        b"[null]",
        b'["T"]',
        b"\0" * 99,
    ],
    ids=lambda frame: repr(frame[:12]),
)
def test_frame_that_is_none_is_counted(frame: bytes) -> None:
    session = make()
    received = session.receive([(NOW_NS, frame), (NOW_NS, json.dumps([TRADE]).encode())])
    assert len(rows(received.batch)) == 1
    assert session.quarantine.counts.total() >= 1
    assert received.ended is None


def test_whole_messages_of_a_truncated_frame_are_kept() -> None:
    session = make()
    received = session.receive([(NOW_NS, json.dumps([TRADE, TRADE, TRADE]).encode()[:-20])])
    assert len(rows(received.batch)) == 2
    assert session.quarantine.counts == {"frame": 1}


def test_frame_of_fifty_megabytes_is_not_decoded() -> None:
    session = make()
    assert session.receive([(NOW_NS, b"[" + b" " * 50_000_000 + b"]")]).batch is None
    assert session.quarantine.counts == {"frame_size": 1}


def test_wrong_encoding_of_a_text_costs_only_its_message() -> None:
    session = make()
    good = json.dumps(TRADE).encode()
    received = session.receive([(NOW_NS, b"[" + good.replace(b"MSFT", b"\xff\xfe") + b"," + good + b"]")])
    assert len(rows(received.batch)) == 1
    assert session.quarantine.counts.total() == 1


def test_new_symbols_have_a_cap_and_one_label() -> None:
    session = make(most_symbols=50)
    for start in range(0, 3_000, 300):
        say(session, *({**TRADE, "sym": f"S{number}"} for number in range(start, start + 300)))
    assert session.quarantine.counts == {"too_many_symbols": 2_950}
    batch = say(session, {**TRADE, "sym": "S49"}, {**TRADE, "sym": "S50"}).batch
    assert only(batch)["symbol"] == "S49"
    assert batch is not None
    assert len(batch.symbols) == 50


def test_symbol_that_nobody_asked_for_is_counted() -> None:
    session = make(symbols=("MSFT",))
    assert only(say(session, TRADE, {**TRADE, "sym": "AAPL"}).batch)["symbol"] == "MSFT"
    assert session.quarantine.counts == {"unknown_symbol": 1}


def test_unknown_field_is_noted_and_its_row_kept() -> None:
    session = make()
    received = say(session, TRADE, {**TRADE, "new": 1})
    assert len(rows(received.batch)) == 2
    assert received.notes["unknown_field"] == 1
    assert session.quarantine.counts == {"unknown_field": 0}
    assert session.quarantine.samples["unknown_field"] == ["T: new"]


def test_documented_fields_are_no_news() -> None:
    received = say(
        make(), {**TRADE, "trfi": 1, "trft": 2, "ds": "100"}, QUOTE, {**MINUTE, "otc": True, "dv": "4110"}, BAND
    )
    assert received.notes == {}


def test_flood_of_condition_lists_is_bounded() -> None:
    session = make()
    for start in range(0, 3_000, 300):
        batch = say(session, *({**TRADE, "c": [number, 41]} for number in range(start, start + 300))).batch
    assert session.quarantine.counts["condition"] == 3_000 - 1_024
    assert len(rows(say(session, TRADE | {"c": [1, 41]}).batch)) == 1
    assert batch is None or len(batch.conditions) < 100


def test_secrets_are_nowhere() -> None:
    session = make()
    told = say(session, {**TRADE, "sym": KEY}, {**TRADE, "ev": KEY}, {**TRADE, "p": KEY}, status(KEY, KEY))
    session.receive([(NOW_NS, f'[{{"ev":"status","status":"auth_failed","message":"{KEY}'.encode())])
    session.receive([(NOW_NS, f'[{{"ev":"status","status":5,"message":"{KEY}"}}]'.encode())])
    session.receive([(NOW_NS, f'[{{"ev":"status","message":"{KEY[:-1]}'.encode())])
    everything = repr((session._settings, told.notes, session.quarantine.counts, session.quarantine.samples))
    assert KEY[:-1] not in everything
    assert "***" in everything


# -- any bytes ---------------------------------------------------------------------------------------------------------

VALID: Sequence[bytes] = tuple(
    json.dumps(frame, separators=(",", ":")).encode()
    for frame in ([TRADE] * 3, [TRADE, QUOTE, MINUTE, BAND], [{**BAND, "i": [17]}, {**TRADE, "ds": "1.5", "c": []}])
)


def promises_hold(batch: Batch) -> bool:
    """What every reader of a live batch relies on."""
    trades = np.isin(batch.kind, [Kind.TRADE, Kind.CANCEL, Kind.CORRECTION, Kind.BAND_LOW, Kind.BAND_HIGH])
    quotes = np.isin(batch.kind, [Kind.BID, Kind.ASK])
    priced = (batch.price > 0) & (batch.price <= 1e7)
    return bool(
        np.all((batch.symbol >= 0) & (batch.symbol < len(batch.symbols)))
        and np.all(batch.condition < len(batch.conditions))
        and np.all(priced[trades])
        and np.all(priced[quotes] | (np.isnan(batch.price[quotes]) & (batch.size[quotes] == 0)))
        and np.all((batch.size >= 0) & np.isfinite(batch.size))
        and np.all((batch.ts_ns > 0) & (batch.ts_ns <= NOW_NS + 5 * SECOND_NS))
        and np.all(np.isin(batch.tape, [0, *b"ABC"]))
        and len({len(getattr(batch, name)) for name in ("symbol", "price", "trade_id", "exchange", "kind")}) == 1
    )


@given(
    frame=st.sampled_from(VALID),
    cut=st.integers(0, 400),
    edits=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=4), st.integers(0, 4)), max_size=6),
)
def test_mutated_frames_never_raise_and_never_break_a_batch(
    frame: bytes, cut: int, edits: list[tuple[int, bytes, int]]
) -> None:
    for at, new, length in edits:
        frame = frame[:at] + new + frame[at + length :]
    session = make()
    received = session.receive([(NOW_NS, frame[: len(frame) - cut] if cut < len(frame) else frame)])
    assert received.batch is None or promises_hold(received.batch)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data(), message=st.sampled_from([TRADE, QUOTE, MINUTE, BAND]))
def test_any_value_in_any_field_costs_at_most_its_own_message(data: st.DataObject, message: dict[str, Any]) -> None:
    name = data.draw(st.sampled_from(sorted(message.keys() - {"ev"})))
    session = make()
    received = say(session, TRADE, {**message, name: data.draw(json_values)}, TRADE)
    assert received.batch is not None
    assert promises_hold(received.batch)
    assert np.count_nonzero(received.batch.kind == Kind.TRADE) >= 2
    assert session.quarantine.counts.total() <= 1
