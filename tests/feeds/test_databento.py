"""The Databento session against records that the official encoder made, cut anywhere, sound and hostile."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import databento_dbn
import numpy as np
import pytest
import zstandard
from databento.common.cram import get_challenge_response
from databento.common.publishers import Publisher
from hypothesis import given, settings
from hypothesis import strategies as st

from tapewatch.engine.columns import OPEN_END_NS, ROW_COLUMNS, SECOND_NS, Batch, Gap, Kind
from tapewatch.errors import ConfigError, FeedLost, FeedRefused
from tapewatch.feeds import dbn
from tapewatch.feeds.databento import (
    DatabentoSession,
    DatabentoSettings,
    _Instruments,
    publishers,
    venue_letters,
)
from tapewatch.feeds.dictionary import Dictionary
from tapewatch.feeds.quarantine import Quarantine
from tapewatch.feeds.session import Received

KEY = "db-7hKq2VnPzR4tXcW9mB3sYdL6uA8e"
NOON_NS = 1_763_740_800_000_000_000
GREETING = b"lsg_version=0.7.2\ncram=t7kNhwj4xqR0QYjzFKtBEG2ec2pXJ4FK\n"
WELCOME = b"success=1|session_id=1763740800\n"
METADATA = dbn.metadata("XNAS.ITCH", start_ns=NOON_NS, ts_out=False)
NVDA, IBM = 6155, 4321

SType: Any = databento_dbn.SType
Error: Any = databento_dbn.ErrorCode
System: Any = databento_dbn.SystemCode


def new_session(**changes: Any) -> DatabentoSession:
    return DatabentoSession(
        DatabentoSettings(key=KEY, **changes), symbols=Dictionary(), conditions=Dictionary(), quarantine=Quarantine()
    )


def streaming(session: DatabentoSession | None = None, *, metadata: bytes = METADATA) -> DatabentoSession:
    """Past the handshake, with two symbols mapped."""
    session = session or new_session()
    session.receive([(NOON_NS, GREETING)])
    session.receive([(NOON_NS, WELCOME)])
    session.receive([(NOON_NS, metadata + mapping(NVDA, "NVDA") + mapping(IBM, "IBM"))])
    assert session.ready
    return session


def say(session: DatabentoSession, *records: bytes, at_ns: int = NOON_NS + 3600 * SECOND_NS) -> Received:
    return session.receive([(at_ns, b"".join(records))])


def mapping(instrument_id: int, symbol: str) -> bytes:
    record = databento_dbn.SymbolMappingMsg(
        0, instrument_id, NOON_NS, SType.RAW_SYMBOL, symbol, SType.INSTRUMENT_ID, symbol, 0, 0
    )
    return bytes(record)


def trade(sequence: int = 1, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "publisher_id": 2,
        "instrument_id": NVDA,
        "ts_event": NOON_NS + sequence - 200,
        "price": 187_250_000_000,
        "size": 100,
        "action": databento_dbn.Action.TRADE,
        "side": databento_dbn.Side.BID,
        "depth": 0,
        "ts_recv": NOON_NS + sequence,
        "sequence": sequence,
    }
    return bytes(databento_dbn.TradeMsg(**fields | changes))


def error(code: Any, text: str, *, ts_ns: int = NOON_NS) -> bytes:
    return bytes(databento_dbn.ErrorMsg(ts_ns, text, code=code))


def system(code: Any, text: str = "") -> bytes:
    return bytes(databento_dbn.SystemMsg(NOON_NS, text, code=code))


def status(action: Any, reason: Any) -> bytes:
    record = databento_dbn.StatusMsg(
        publisher_id=2, instrument_id=IBM, ts_event=NOON_NS, ts_recv=NOON_NS + 5, action=action, reason=reason
    )
    return bytes(record)


def rows_of(parts: Iterable[Received]) -> list[tuple[Any, ...]]:
    """Rows with their texts in place of codes."""

    def texts(batch: Batch) -> Iterable[tuple[Any, ...]]:
        for row in zip(*(getattr(batch, name).tolist() for name in ROW_COLUMNS), strict=True):
            symbol, condition, *rest = row
            yield (batch.symbols[symbol], batch.conditions[condition], *rest)

    return [row for part in parts if part.batch is not None for row in texts(part.batch)]


def told(received: Received) -> list[str]:
    return [reply.decode() if isinstance(reply, bytes) else reply for reply in received.replies]


def symbols_of(received: Received) -> list[str]:
    return [row[0] for row in rows_of([received])]


# -- the handshake ----------------------------------------------------------------------------------------------------


def test_the_challenge_is_answered_as_the_official_client_does() -> None:
    session = new_session(dataset="XNAS.ITCH", heartbeat_interval_s=15)
    assert session.opening() == ()
    (reply,) = session.receive([(NOON_NS, GREETING)]).replies
    assert isinstance(reply, bytes)
    fields = dict(part.split("=", 1) for part in reply.decode().rstrip("\n").split("|"))
    assert fields == {
        "auth": get_challenge_response("t7kNhwj4xqR0QYjzFKtBEG2ec2pXJ4FK", KEY),
        "dataset": "XNAS.ITCH",
        "encoding": "dbn",
        "ts_out": "0",
        "compression": "none",
        "heartbeat_interval_s": "15",
        "client": "tapewatch",
    }
    assert KEY.encode() not in reply


def test_all_symbols_are_asked_for_unless_some_are_named() -> None:
    session = new_session()
    session.receive([(NOON_NS, GREETING)])
    assert session.receive([(NOON_NS, WELCOME)]).replies == [
        b"schema=trades|stype_in=raw_symbol|symbols=ALL_SYMBOLS|snapshot=0|is_last=1\n",
        b"start_session=0\n",
    ]
    assert not session.ready


def test_many_symbols_are_asked_for_in_lines_of_five_hundred() -> None:
    names = tuple(f"S{i}" for i in range(1001))
    session = new_session(symbols=names, start_ns=NOON_NS, statuses=True)
    session.receive([(NOON_NS, GREETING)])
    *lines, start = told(session.receive([(NOON_NS, WELCOME)]))
    assert start == "start_session=0\n"
    asked = [dict(part.split("=", 1) for part in line.rstrip("\n").split("|")) for line in lines]
    assert [(a["schema"], len(a["symbols"].split(",")), a["is_last"]) for a in asked] == [
        (schema, count, last) for schema in ("trades", "status") for count, last in ((500, "0"), (500, "0"), (1, "1"))
    ]
    assert [name for a in asked[:3] for name in a["symbols"].split(",")] == list(names)
    assert {a["start"] for a in asked} == {str(NOON_NS)}


def test_a_connection_that_follows_another_asks_for_what_was_missed() -> None:
    session = DatabentoSession(
        DatabentoSettings(key=KEY, start_ns=5),
        symbols=Dictionary(),
        conditions=Dictionary(),
        quarantine=Quarantine(),
        start_ns=NOON_NS,
    )
    session.receive([(NOON_NS, GREETING)])
    assert f"|start={NOON_NS}|" in told(session.receive([(NOON_NS, WELCOME)]))[0]


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        ("success=0|error=Authentication failed: unknown API key", FeedRefused, None),
        ("success=0|error=Not entitled to dataset XNAS.ITCH", FeedRefused, None),
        ("success=0", FeedRefused, None),
        ("success=0|error=User has reached their open connection limit", FeedLost, "connection_limit"),
        ("success=0|error=Internal server error", FeedLost, "closed"),
    ],
)
def test_a_refused_handshake_says_whether_to_try_again(
    answer: str, kind: type[FeedLost | FeedRefused], reason: str | None
) -> None:
    session = new_session()
    session.receive([(NOON_NS, GREETING)])
    ended = session.receive([(NOON_NS, answer.encode() + b"\n")]).ended
    assert type(ended) is kind
    assert getattr(ended, "reason", None) == reason
    assert session.receive([(NOON_NS, trade())]).batch is None


def test_nothing_that_the_gateway_says_puts_the_key_into_an_error() -> None:
    session = new_session()
    (reply,) = session.receive([(NOON_NS, GREETING)]).replies
    assert isinstance(reply, bytes)
    digest = reply.decode().split("|")[0].removeprefix("auth=")
    line = f"success=0|error=key {KEY} and db-Another00Key and {digest} are \x1b[31mwrong\n"
    ended = session.receive([(NOON_NS, line.encode())]).ended
    assert str(ended) == "Databento refused the session: key *** and *** and *** are  [31mwrong"
    later = streaming()
    failed = say(later, error(Error.INTERNAL_ERROR, f"session of {KEY} failed")).ended
    assert str(failed) == "Databento: session of *** failed"
    say(other := streaming(), error(Error.SYMBOL_RESOLUTION_FAILED, f"{KEY} has no XYZ"))
    assert KEY not in repr(other.quarantine.samples)
    assert KEY not in repr(DatabentoSettings(key=KEY))


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"success=1|session_id=7\n",
        GREETING + GREETING,
        GREETING + b"\x00\xff\xfe\n",
        b"x" * 10_000,
        b"\n",
    ],
)
def test_a_handshake_of_something_else_is_lost(said: bytes) -> None:
    ended = new_session().receive([(NOON_NS, said)]).ended
    assert isinstance(ended, FeedLost)
    assert ended.reason == "protocol"


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "short"},
        {"key": "db-with|a-bar-inside"},
        {"key": "db-with\nnewline-inside"},
        {"dataset": "xnas"},
        {"dataset": "XNAS.ITCH|ts_out=1"},
        {"symbols": ("IBM", "A,B")},
        {"symbols": ("A|start=0",)},
        {"symbols": ("A\nB",)},
        {"symbols": ("",)},
        {"symbols": ()},
        {"heartbeat_interval_s": 1},
        {"port": 0},
    ],
)
def test_settings_that_the_line_protocol_cannot_carry_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as raised:
        DatabentoSettings(**{"key": KEY} | changes)
    assert changes.get("key", KEY) not in str(raised.value)


def test_the_gateway_follows_from_the_dataset() -> None:
    assert DatabentoSettings(key=KEY, dataset="XNAS.ITCH").address == ("xnas-itch.lsg.databento.com", 13_000)
    assert DatabentoSettings(key=KEY, host="127.0.0.1", port=8903).address == ("127.0.0.1", 8903)


# -- records ----------------------------------------------------------------------------------------------------------


def test_a_trade_becomes_a_row() -> None:
    received = say(streaming(), trade(77, price=187_254_321_000, size=35))
    publisher_and_sequence = 2 << 32 | 77
    assert rows_of([received]) == [
        ("NVDA", "@", Kind.TRADE, NOON_NS + 77, 187.254321, 35.0, 0, ord("Q"), publisher_and_sequence)
    ]
    assert received.ended is None


def test_a_sequence_of_zero_is_no_trade_id() -> None:
    assert rows_of([say(streaming(), trade(0))])[0][-1] == 0


def test_the_exchange_clock_counts_where_the_capture_clock_was_wrong() -> None:
    unreliable = trade(1, flags=dbn.UNRELIABLE_TS_RECV, ts_recv=NOON_NS + 50 * SECOND_NS, ts_event=NOON_NS + 7)
    missing = trade(2, ts_recv=databento_dbn.UNDEF_TIMESTAMP, ts_event=NOON_NS + 8)
    times = [row[3] for row in rows_of([say(streaming(), unreliable, missing, trade(9))])]
    assert times == [NOON_NS + 7, NOON_NS + 8, NOON_NS + 9]


def test_a_symbol_may_change_its_number_during_the_day() -> None:
    session = streaming()
    received = say(
        session, trade(1), mapping(NVDA, "AMD"), trade(2), mapping(9, "NVDA"), trade(3), trade(4, instrument_id=9)
    )
    assert symbols_of(received) == ["NVDA", "AMD", "AMD", "NVDA"]


def test_of_several_mappings_of_one_number_the_last_counts() -> None:
    received = say(streaming(), mapping(8, "AAA"), mapping(8, "BBB"), mapping(7, "CCC"), trade(1, instrument_id=8))
    assert symbols_of(received) == ["BBB"]


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 12), st.integers(-3, 9)), min_size=1, max_size=6), min_size=1, max_size=8
    ),
    st.lists(st.integers(0, 14), max_size=20),
)
def test_instruments_are_found_as_a_dictionary_finds_them(puts: list[list[tuple[int, int]]], asked: list[int]) -> None:
    instruments, expected = _Instruments(), dict[int, int]()
    for pairs in puts:
        ids, codes = np.array(pairs, np.int64).T
        assert instruments.put(ids.astype(np.uint32), codes)
        expected.update(pairs)
        found = instruments.codes_of(np.array(asked, np.uint32)).tolist()
        assert found == [expected.get(i, -1) for i in asked]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_of_the_encoding_is_understood(version: int) -> None:
    metadata = databento_dbn.Metadata(
        dataset="XNAS.ITCH",
        start=NOON_NS,
        schema=None,
        stype_in=None,
        stype_out=SType.INSTRUMENT_ID,
        symbols=["AAA", "BBB"],
        partial=[],
        not_found=["CCC"],
        mappings=[],
        version=version,
    ).encode()
    session = new_session()
    session.receive([(NOON_NS, GREETING)])
    session.receive([(NOON_NS, WELCOME)])
    if version == 1:
        known = bytes(databento_dbn.SymbolMappingMsgV1(0, NVDA, NOON_NS, "NVDA", "NVDA", 0, 0))
        heartbeat = bytes(databento_dbn.SystemMsgV1(NOON_NS, "Heartbeat"))
        said = bytes(databento_dbn.ErrorMsgV1(NOON_NS, "something odd"))
    else:
        known, heartbeat = mapping(NVDA, "NVDA"), system(System.HEARTBEAT)
        said = error(Error.UNSET, "something odd")
    received = say(session, metadata, known, heartbeat, said, trade(5))
    assert symbols_of(received) == ["NVDA"]
    assert received.notes["heartbeat"] == 1
    assert received.ended is None
    assert session.quarantine.samples == {"error_message": ["something odd"]}


def test_our_own_records_are_what_the_official_decoder_reads() -> None:
    decoder = databento_dbn.DBNDecoder()
    (header,) = decoder.write_and_decode(dbn.metadata("EQUS.MINI", start_ns=NOON_NS, ts_out=True))
    assert isinstance(header, databento_dbn.Metadata)
    assert (header.version, header.dataset, header.start, header.ts_out) == (3, "EQUS.MINI", NOON_NS, True)
    own = [
        dbn.mapping_record(dbn.Mapping(NVDA, "NVDA"), ts_ns=NOON_NS),
        dbn.system_record(dbn.SystemCode.SUBSCRIPTION_ACK, "done", ts_ns=NOON_NS),
        dbn.error_record(dbn.ErrorCode.INVALID_SUBSCRIPTION, "no such schema", ts_ns=NOON_NS),
        dbn.status_record(dbn.Status(IBM, 2, NOON_NS, NOON_NS + 5, 8, 50)),
    ]
    mapped, told, failed, halted = decoder.write_and_decode(b"".join(dbn.with_ts_out(r, NOON_NS + 9) for r in own))
    assert isinstance(mapped, databento_dbn.SymbolMappingMsg)
    assert (mapped.instrument_id, mapped.stype_in_symbol, mapped.stype_out_symbol) == (NVDA, "NVDA", "NVDA")
    assert isinstance(told, databento_dbn.SystemMsg)
    assert (told.code, told.msg, told.ts_event) == (System.SUBSCRIPTION_ACK, "done", NOON_NS)
    assert isinstance(failed, databento_dbn.ErrorMsg)
    assert (failed.code, failed.err, failed.is_last) == (Error.INVALID_SUBSCRIPTION, "no such schema", 1)
    assert isinstance(halted, databento_dbn.StatusMsg)
    assert (halted.action, halted.reason) == (
        databento_dbn.StatusAction.HALT,
        databento_dbn.StatusReason.LULD_PAUSE,
    )


def test_codes_and_reasons_are_those_of_the_official_package() -> None:
    def official(enumeration: Any) -> dict[str, int]:
        return {member.name: int(member.value) for member in enumeration.variants()}

    assert {code.name: int(code) for code in dbn.ErrorCode} == official(Error)
    assert {code.name: int(code) for code in dbn.SystemCode} == official(System)
    reasons = official(databento_dbn.StatusReason)
    assert {name: code for code, name in dbn.STATUS_REASONS.items()} == {k: v for k, v in reasons.items() if v}


def test_the_table_of_publishers_is_that_of_the_official_package() -> None:
    official = {publisher.value: publisher.to_int() for publisher in Publisher}
    ours = {f"{dataset}.{venue}": i for dataset, venues in publishers().items() for venue, i in venues.items()}
    assert ours.items() <= official.items()
    assert len(set(ours.values())) == len(ours)
    consolidated = {"EQUS", "DBEQ", "CTA", "UTP", "24EQ", "TXSE", "OCEA"}
    assert {venue for venues in publishers().values() for venue in venues} - consolidated <= set(venue_letters())


def test_statuses_halt_and_resume() -> None:
    action, reason = databento_dbn.StatusAction, databento_dbn.StatusReason
    received = say(
        streaming(),
        status(action.PAUSE, reason.LULD_PAUSE),
        status(action.QUOTING, reason.NONE),
        status(action.TRADING, reason.NEWS_RELEASED),
    )
    assert [row[:4] for row in rows_of([received])] == [
        ("IBM", "LULD_PAUSE", Kind.HALT, NOON_NS + 5),
        ("IBM", "NEWS_RELEASED", Kind.RESUME, NOON_NS + 5),
    ]
    assert received.notes == {"status": 1}


def test_a_send_time_behind_each_record_changes_nothing() -> None:
    plain = [trade(1), trade(2), status(databento_dbn.StatusAction.HALT, databento_dbn.StatusReason.NONE), trade(3)]
    timed = [dbn.with_ts_out(record, NOON_NS) for record in plain]
    assert rows_of([say(streaming(), *timed)]) == rows_of([say(streaming(), *plain)])


def test_records_of_other_types_are_skipped_and_counted() -> None:
    newer = bytes([10, 200]) + bytes(38)
    session = streaming()
    received = say(session, trade(1), newer, newer, trade(2), system(System.END_OF_INTERVAL), trade(3))
    assert len(rows_of([received])) == 3
    assert received.notes == {"end_of_interval": 1}
    assert session.quarantine.counts == {"unknown_type": 2}


def test_ready_comes_with_the_acknowledgement() -> None:
    session = new_session()
    session.receive([(NOON_NS, GREETING)])
    session.receive([(NOON_NS, WELCOME)])
    say(session, METADATA, system(System.HEARTBEAT))
    assert not session.ready
    say(session, system(System.SUBSCRIPTION_ACK, "trades"))
    assert session.ready


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        (Error.AUTH_FAILED, FeedRefused, None),
        (Error.API_KEY_DEACTIVATED, FeedRefused, None),
        (Error.INVALID_SUBSCRIPTION, FeedRefused, None),
        (Error.REPLAY_DATA_AGED_OUT, FeedRefused, None),
        (Error.CONNECTION_LIMIT_EXCEEDED, FeedLost, "connection_limit"),
        (Error.INTERNAL_ERROR, FeedLost, "closed"),
    ],
)
def test_a_fatal_error_ends_the_session_behind_its_rows(
    code: Any, kind: type[FeedLost | FeedRefused], reason: str | None
) -> None:
    session = streaming()
    received = say(session, trade(1), error(code, "that is all"), trade(2))
    assert len(rows_of([received])) == 1
    assert type(received.ended) is kind
    assert str(received.ended) == "Databento: that is all"
    assert getattr(received.ended, "reason", None) == reason


def test_a_symbol_that_does_not_exist_ends_nothing() -> None:
    session = streaming()
    received = say(session, error(Error.SYMBOL_RESOLUTION_FAILED, "XYZZ"), trade(1))
    assert received.ended is None
    assert len(rows_of([received])) == 1
    assert session.quarantine.counts == {"unresolved_symbol": 1}


def test_records_skipped_after_slow_reading_are_a_gap_until_the_next_trade() -> None:
    session = streaming()
    first = say(session, trade(10), error(Error.SKIPPED_RECORDS_AFTER_SLOW_READING, "too slow"))
    assert first.gaps == [Gap(NOON_NS + 10, OPEN_END_NS, "slow reading")]
    second = say(session, trade(500), trade(501))
    assert second.gaps == [Gap(NOON_NS + 10, NOON_NS + 501, "slow reading")]
    assert say(session, trade(502)).gaps == []
    assert first.ended is second.ended is None


def test_a_warning_for_slow_readers_is_a_note() -> None:
    assert say(streaming(), system(System.SLOW_READER_WARNING, "behind")).notes == {"slow_reader_warning": 1}


# -- cut anywhere -----------------------------------------------------------------------------------------------------


def the_whole_conversation() -> bytes:
    newer = bytes([10, 200]) + bytes(38)
    parts = [
        GREETING,
        WELCOME,
        METADATA,
        system(System.SUBSCRIPTION_ACK),
        mapping(NVDA, "NVDA"),
        mapping(IBM, "IBM"),
        *(trade(i, instrument_id=(NVDA, IBM, 5)[i % 3], price=i * 10_000_000) for i in range(40)),
        mapping(5, "AMD"),
        error(Error.SKIPPED_RECORDS_AFTER_SLOW_READING, "slow"),
        *(trade(i, instrument_id=(NVDA, IBM, 5)[i % 3], price=i * 10_000_000) for i in range(50, 90)),
        newer,
        system(System.HEARTBEAT),
        trade(99),
    ]
    return b"".join(parts)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 10_000), max_size=30))
def test_rows_are_equal_however_the_stream_was_cut(cuts: list[int]) -> None:
    stream = the_whole_conversation()

    def play(pieces: Sequence[bytes]) -> tuple[list[tuple[Any, ...]], list[Gap], list[Any], dict[str, int]]:
        session = new_session()
        parts = [session.receive([(NOON_NS + SECOND_NS, piece)]) for piece in pieces]
        replies = [reply for part in parts for reply in part.replies]
        gaps = [gap for part in parts for gap in part.gaps]
        return rows_of(parts), gaps, replies, dict(session.quarantine.counts)

    edges = [0, *sorted(cut % len(stream) for cut in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(edges)]
    whole = play([stream])
    assert play(pieces) == whole
    assert len(whole[0]) == 67
    assert whole[3] == {"unmapped": 13, "price": 1, "unknown_type": 1}


def test_one_byte_at_a_time() -> None:
    stream = the_whole_conversation()
    session, whole = new_session(), new_session()
    parts = [session.receive([(NOON_NS + SECOND_NS, stream[i : i + 1])]) for i in range(len(stream))]
    assert rows_of(parts) == rows_of([whole.receive([(NOON_NS + SECOND_NS, stream)])])
    assert len(rows_of(parts)) == 67


# -- hostile ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("price", {"price": 0}),
        ("price", {"price": -1}),
        ("price", {"price": databento_dbn.UNDEF_PRICE}),
        ("price", {"price": -(2**63)}),
        ("price", {"price": 10_000_001 * 10**9}),
        ("size", {"size": databento_dbn.UNDEF_ORDER_SIZE}),
        ("ts_ns", {"ts_recv": 0}),
        ("ts_ns", {"ts_recv": 2**63 + 5}),
        ("ts_ns", {"ts_recv": NOON_NS // 1000}),
        ("ts_ns", {"ts_recv": NOON_NS + 3600 * SECOND_NS + 6 * SECOND_NS}),
        ("ts_ns", {"ts_recv": databento_dbn.UNDEF_TIMESTAMP, "ts_event": databento_dbn.UNDEF_TIMESTAMP}),
        ("unmapped", {"instrument_id": 1}),
        ("unmapped", {"instrument_id": 2**32 - 1}),
        ("action", {"action": databento_dbn.Action.CANCEL}),
    ],
)
def test_a_trade_that_cannot_be_one_is_no_row(reason: str, changes: dict[str, Any]) -> None:
    session = streaming()
    received = say(session, trade(1), trade(2, **changes), trade(3))
    assert [row[-1] & 0xFFFF for row in rows_of([received])] == [1, 3]
    assert session.quarantine.counts == {reason: 1}
    assert len(session.quarantine.samples[reason]) == 1
    assert received.ended is None


@pytest.mark.parametrize("symbol", ["../../x", "A\nB", "X" * 70, "", "<b>", "A,B", "Ä"])
def test_a_symbol_that_cannot_be_one_is_no_row(symbol: str) -> None:
    session = streaming()
    received = say(session, mapping(7, symbol), trade(1, instrument_id=7), trade(2))
    assert symbols_of(received) == ["NVDA"]
    assert session.quarantine.counts["symbol"] == 2
    assert symbol not in rows_of([received])[0]


def test_a_symbol_that_was_not_asked_for_is_no_row() -> None:
    session = streaming(new_session(symbols=("NVDA", "IBM")))
    received = say(session, mapping(7, "AMD"), trade(1, instrument_id=7), trade(2))
    assert symbols_of(received) == ["NVDA"]
    assert session.quarantine.counts == {"unknown_symbol": 1, "symbol": 1}


def test_exchange_test_symbols_are_left_out() -> None:
    session = streaming()
    received = say(session, mapping(7, "ZVZZT"), trade(1, instrument_id=7), trade(2))
    assert symbols_of(received) == ["NVDA"]
    assert received.notes == {"test_symbol": 1}
    assert not session.quarantine.counts


def test_symbols_and_instruments_without_end_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapewatch.feeds.databento._MOST_INSTRUMENTS", 100)
    symbols = Dictionary()
    session = streaming(
        DatabentoSession(
            DatabentoSettings(key=KEY, most_symbols=10),
            symbols=symbols,
            conditions=Dictionary(),
            quarantine=(kept := Quarantine()),
        )
    )
    say(session, *(mapping(i, f"S{i}") for i in range(50)))
    assert len(symbols) == 10
    assert kept.counts == {"too_many_symbols": 42}
    say(session, *(mapping(i, "IBM") for i in range(1000, 1200)))
    assert kept.counts["too_many_instruments"] == 200
    received = say(session, trade(1), trade(2, instrument_id=3), trade(3, instrument_id=30))
    assert symbols_of(received) == ["NVDA", "S3"]


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_record_shorter_than_its_header_ends_the_connection(length: int) -> None:
    received = say(streaming(), trade(1), bytes([length, 0]) + bytes(200), trade(2))
    assert len(rows_of([received])) == 1
    assert isinstance(received.ended, FeedLost)
    assert received.ended.reason == "protocol"


@pytest.mark.parametrize("rtype", [0, 18, 21, 22, 23])
def test_a_record_too_short_for_its_type_is_skipped(rtype: int) -> None:
    session = streaming()
    received = say(session, trade(1), bytes([5, rtype]) + bytes(18), trade(2))
    assert len(rows_of([received])) == 2
    assert session.quarantine.counts == {"short_record": 1}


def test_the_longest_record_of_an_unknown_type_is_skipped_in_pieces() -> None:
    session = streaming()
    longest = bytes([255, 99]) + b"\xff" * (dbn.LARGEST_RECORD - 2)
    stream = trade(1) + longest + trade(2)
    parts = [say(session, stream[i : i + 7]) for i in range(0, len(stream), 7)]
    assert len(rows_of(parts)) == 2
    assert session.quarantine.counts == {"unknown_type": 1}


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (b"DBN\x04" + METADATA[4:], FeedRefused),
        (b"DBN\x00" + METADATA[4:], FeedRefused),
        (b"DBZ\x01" + METADATA[4:], FeedLost),
        (b"\x28\xb5\x2f\xfd" + bytes(100), FeedLost),
        (b"DBN\x03" + (2**31).to_bytes(4, "little"), FeedLost),
        (b"error=Internal\n", FeedLost),
    ],
)
def test_a_stream_that_begins_as_something_else_ends(header: bytes, kind: type[Exception]) -> None:
    session = new_session()
    session.receive([(NOON_NS, GREETING)])
    session.receive([(NOON_NS, WELCOME)])
    received = say(session, header, mapping(NVDA, "NVDA"), trade(1))
    assert type(received.ended) is kind
    assert received.batch is None
    assert not session.ready


@settings(max_examples=200)
@given(st.data())
def test_noise_never_makes_a_row_and_never_a_crash(data: st.DataObject) -> None:
    session = streaming()
    before = [trade(i) for i in range(1, 4)]
    noise = data.draw(st.binary(min_size=1, max_size=400))
    received = say(session, *before, noise, *(trade(i) for i in range(10, 40)))
    real = {(NOON_NS + i, 187.25, 100.0) for i in (*range(1, 4), *range(10, 40))}
    rows = rows_of([received])
    assert [row[3] for row in rows[:3]] == [NOON_NS + 1, NOON_NS + 2, NOON_NS + 3]
    assert {row[3:6] for row in rows} <= real


@settings(max_examples=200)
@given(st.data())
def test_changed_bytes_in_the_stream_are_never_a_crash(data: st.DataObject) -> None:
    stream = bytearray(the_whole_conversation())
    for place in data.draw(st.lists(st.integers(0, len(stream) - 1), min_size=1, max_size=8)):
        stream[place] = data.draw(st.integers(0, 255))
    session = new_session()
    rows = rows_of([session.receive([(NOON_NS + SECOND_NS, bytes(stream))])])
    assert all(0 < row[4] <= 10_000_000 and row[3] <= NOON_NS + 6 * SECOND_NS for row in rows)
    assert KEY not in repr(session.quarantine.samples)


@pytest.mark.parametrize("make", [lambda _: system(System.HEARTBEAT), lambda i: mapping(i % 50, f"S{i % 7}")])
def test_short_runs_in_a_large_buffer_do_not_take_long(make: Callable[[int], bytes]) -> None:
    """Each run is looked at with a small window first, so alternating records cost no more than their number."""
    session = streaming()
    stream = b"".join(make(i) + trade(i + 1) for i in range(3000))
    received = say(session, stream)
    assert len(rows_of([received])) == 3000


# -- the provider's own samples ---------------------------------------------------------------------------------------


def sample(folder: Path, name: str) -> bytes:
    with (folder / "dbn_samples" / f"test_data.{name}.dbn.zst").open("rb") as file:
        return zstandard.ZstdDecompressor().stream_reader(file).read()


@pytest.mark.market_data
def test_the_providers_sample_of_trades_is_read_field_by_field(market_data: Path) -> None:
    raw = sample(market_data, "trades")
    _, *official = databento_dbn.DBNDecoder().write_and_decode(raw)
    session = new_session(dataset="XNAS.ITCH")
    session.receive([(NOON_NS, GREETING)])
    session.receive([(NOON_NS, WELCOME)])
    head = dbn.metadata_size(raw, 0)
    assert head is not None
    received = say(session, raw[: head[1]], mapping(NVDA, "NVDA"), raw[head[1] :])
    assert rows_of([received]) == [
        ("NVDA", "@", 0, r.ts_recv, r.pretty_price, r.size, 0, ord("Q"), r.publisher_id << 32 | r.sequence)
        for r in official
        if isinstance(r, databento_dbn.TradeMsg)
    ]
    assert len(official) == 4


@pytest.mark.market_data
def test_the_providers_sample_of_a_live_session_is_walked_to_its_end(market_data: Path) -> None:
    raw = sample(market_data, "live")
    _, *official = databento_dbn.DBNDecoder().write_and_decode(raw)
    session = new_session()
    session.receive([(NOON_NS, GREETING)])
    session.receive([(NOON_NS, WELCOME)])
    received = say(session, raw)
    mappings = sum(isinstance(r, databento_dbn.SymbolMappingMsg) for r in official)
    trades = sum(isinstance(r, databento_dbn.TradeMsg) for r in official)
    assert received.ended is None
    assert mappings > 0
    assert session.quarantine.counts["unknown_type"] + mappings + trades == len(official)
    assert len(rows_of([received])) == trades
    assert set(session.quarantine.counts) == {"unknown_type"}
