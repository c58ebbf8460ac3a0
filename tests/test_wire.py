"""Entries as bytes: what goes in comes out to the last bit, and whatever else comes in is `BadBatch`."""

import struct
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tapewatch
from tapewatch import wire
from tapewatch.contracts.samples import (
    HOSTILE_TEXTS,
    INT64_MAX,
    INT64_MIN,
    every_kind_of_entry,
    make_alert,
    make_bars,
    make_rule,
    make_rule_of_every_node,
    same,
)
from tapewatch.documents import load_rule_file, ruleset
from tapewatch.engine.board import BoardRows
from tapewatch.engine.columns import BAR_COLUMNS, ROW_COLUMNS, Bars, Batch, Facts, Gap, make_batch, pulse
from tapewatch.engine.rules import Ruleset
from tapewatch.engine.rules.tree import Fire
from tapewatch.engine.scanner import Withdrawn
from tapewatch.errors import BadBatch
from tapewatch.ports import Alerts, Entry
from tapewatch.wire import decode, encode

FRAME = struct.Struct("<2sBBIIIII")
ENTRIES = [*every_kind_of_entry(), Gap(INT64_MIN, INT64_MAX, HOSTILE_TEXTS[8])]
MESSAGES = [encode(entry) for entry in ENTRIES]
SHORT = [message for message in MESSAGES if len(message) < 2_000]
IDS = [f"{type(entry).__name__}-{number}" for number, entry in enumerate(ENTRIES)]

int64s = st.integers(INT64_MIN, INT64_MAX)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
text_tuples = st.lists(texts, max_size=5).map(tuple)


def reseal(message: bytes) -> bytes:
    """The message with the checksums that its bytes have now."""
    magic, version, kind, note, head, body, _, _ = FRAME.unpack_from(message)
    head_at = FRAME.size + note + -note % 8
    body_at = head_at + head
    frame = FRAME.pack(magic, version, kind, note, head, body, crc32(message[head_at:body_at]), 0)[:-4]
    crc = crc32(message[body_at:], crc32(message[FRAME.size : head_at], crc32(frame)))
    return frame + struct.pack("<I", crc) + message[FRAME.size :]


def reframe(message: bytes, **changes: int) -> bytes:
    """The message with other figures in its frame, and right checksums where its lengths still hold."""
    names = ("magic", "version", "kind", "note", "head", "body", "head_crc", "crc")
    values: dict[str, Any] = dict(zip(names, FRAME.unpack_from(message), strict=True)) | changes
    return reseal(FRAME.pack(*values.values()) + message[FRAME.size :])


def flipped(message: bytes, bit: int) -> bytes:
    changed = bytearray(message)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def swapped_body(message: bytes, start: bytes) -> bytes:
    """The message with another start of its body."""
    at = len(message) - FRAME.unpack_from(message)[5]
    return message[:at] + start + message[at + len(start) :]


def arrays_of(entry: Entry) -> Iterator[np.ndarray[Any, Any]]:
    for field in fields(entry):
        value = getattr(entry, field.name)
        if isinstance(value, np.ndarray):
            yield value


# -- there and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_every_kind_of_entry_comes_back_to_the_last_bit(entry: Entry) -> None:
    message = encode(entry)
    assert same(decode(message), entry)
    assert same(decode(memoryview(message)), entry)


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_equal_entries_are_equal_bytes(entry: Entry) -> None:
    assert encode(decode(encode(entry))) == encode(entry)


def test_every_kind_of_entry_has_a_number_of_its_own() -> None:
    kinds = {type(entry): message[3] for entry, message in zip(ENTRIES, MESSAGES, strict=True)}
    assert kinds == {Batch: 1, Gap: 2, Facts: 3, Ruleset: 4, Bars: 5, BoardRows: 6, Alerts: 7, Withdrawn: 8}


def float64s(n: int) -> st.SearchStrategy[Any]:
    """Of any bits, so with each sort of NaN."""
    return hnp.arrays(np.uint64, n).map(lambda bits: bits.view(np.float64))


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    symbols = draw(text_tuples)
    conditions = draw(text_tuples)
    n = draw(st.integers(0, 12)) if symbols and conditions else 0
    marks = draw(st.lists(st.integers(0, n), max_size=4))
    return make_batch(
        symbols=symbols,
        conditions=conditions,
        symbol=draw(hnp.arrays(np.int32, n, elements=st.integers(0, max(len(symbols) - 1, 0)))),
        condition=draw(hnp.arrays(np.uint16, n, elements=st.integers(0, max(len(conditions) - 1, 0)))),
        kind=draw(hnp.arrays(np.uint8, n)),
        ts_ns=draw(hnp.arrays(np.int64, n)),
        price=draw(float64s(n)),
        size=draw(float64s(n)),
        tape=draw(hnp.arrays(np.uint8, n)),
        exchange=draw(hnp.arrays(np.uint8, n)),
        trade_id=draw(hnp.arrays(np.int64, n)),
        marks_row=sorted(marks),
        marks_ns=draw(hnp.arrays(np.int64, len(marks))),
        received_ns=draw(int64s),
    )


@st.composite
def matrices(draw: st.DrawFn) -> BoardRows | Facts:
    symbols, names = draw(text_tuples), draw(text_tuples)
    values = draw(float64s(len(symbols) * len(names))).reshape(len(names), len(symbols))
    if draw(st.booleans()):
        session, covered = draw(texts), draw(st.booleans())
        return BoardRows(
            ts_ns=draw(int64s), session=session, symbols=symbols, metrics=names, values=values, covered=covered
        )
    labels = draw(st.dictionaries(texts, st.lists(texts, min_size=len(symbols), max_size=len(symbols)).map(tuple)))
    return Facts(day_start_ns=draw(int64s), symbols=symbols, names=names, values=values, labels=labels)


@settings(max_examples=60, deadline=None)
@given(batches() | matrices())
def test_any_columns_come_back_to_the_last_bit(entry: Entry) -> None:
    assert same(decode(encode(entry)), entry)


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 1_000])
def test_slices_and_steps_of_columns_come_back(rows: int) -> None:
    long = make_bars([("A", ts_ns) for ts_ns in range(2 * rows + 5)])
    for cut in (slice(3, 3 + rows), slice(0, 2 * rows, 2), slice(None, None, -1)):
        part = Bars(symbols=long.symbols, **{name: getattr(long, name)[cut] for name in BAR_COLUMNS})
        assert same(decode(encode(part)), part)
    values = np.arange(6.0 * (rows + 2)).reshape(6, rows + 2)
    board = BoardRows(
        ts_ns=1, session="pre", symbols=("A",) * rows, metrics=tuple("abcdef"), values=values[:, 1 : rows + 1]
    )
    assert same(decode(encode(board)), board)


def test_rules_come_back_as_the_same_trees() -> None:
    rules, lists = [], []
    for path in sorted((Path(tapewatch.__file__).parent / "templates").glob("*.rules")):
        of_file, lists_of_file = load_rule_file(path.read_bytes(), where=path.name)
        rules += of_file
        lists += lists_of_file
    assert len(rules) > 5
    fires = [Fire(), Fire("level"), Fire("session"), *(Fire("bar", minutes) for minutes in (1, 240, 1_440))]
    spec = make_rule_of_every_node("every").spec()
    for entry in (
        ruleset(1, rules, lists),
        Ruleset(number=2, rules=tuple(replace(spec, rearm=None, fire=fire) for fire in fires)),
    ):
        assert decode(encode(entry)) == entry


def test_a_condition_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (make_rule(name, when="price > 123.456").spec() for name in ("one", "other"))
    first = decode(encode(Ruleset(number=1, rules=(one,))))
    second = decode(encode(Ruleset(number=2, rules=(other,))))
    assert isinstance(first, Ruleset)
    assert isinstance(second, Ruleset)
    assert second.rules[0].when is first.rules[0].when


def test_figures_of_numpy_are_sent_as_plain_ones() -> None:
    at_ns: Any = np.int64(5)
    withdrawn = Withdrawn("A", at_ns, np.float64(1.5), np.float64("nan"), (np.float64(2.0), np.float64(3.0)))
    assert same(decode(encode(withdrawn)), Withdrawn("A", 5, 1.5, float("nan"), (2.0, 3.0)))


# -- views and caches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if isinstance(entry, (Batch, Bars, BoardRows, Facts))])
@pytest.mark.parametrize("lead", [0, 1, 3, 8])
def test_columns_are_aligned_and_cannot_be_written(entry: Entry, lead: int) -> None:
    memory = bytearray(bytes(lead) + encode(entry))
    came = decode(memoryview(memory)[lead:])
    assert same(came, entry)
    for array in arrays_of(came):
        assert array.flags.aligned
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.setflags(write=True)


def test_columns_are_views_of_the_message() -> None:
    message = encode(make_bars([("A", ts_ns) for ts_ns in range(100)]))
    bars = decode(message)
    assert isinstance(bars, Bars)
    assert np.shares_memory(bars.close, np.frombuffer(message, np.uint8))


def symbols_of(entry: Entry) -> tuple[str, ...]:
    assert isinstance(entry, (Batch, Bars, BoardRows, Facts))
    return entry.symbols


def test_equal_texts_are_the_same_tuple_whatever_brings_them() -> None:
    names = [f"SAME{number}" for number in range(50)]
    board = BoardRows(ts_ns=1, session="pre", symbols=tuple(names), metrics=("price",), values=np.zeros((1, 50)))
    came = [
        decode(encode(entry))
        for entry in (
            make_batch(symbols=tuple(names)),
            make_batch(symbols=tuple(names), conditions=("", "new"), marks_row=[0], marks_ns=[1]),
            board,
            replace(board, ts_ns=2, values=np.ones((1, 50))),
        )
    ]
    assert len({id(symbols_of(entry)) for entry in came}) == 1


def test_a_head_is_made_and_read_once_for_the_same_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(f"ONCE{number}" for number in range(50))
    board = BoardRows(ts_ns=1, session="pre", symbols=names, metrics=("price",), values=np.zeros((1, 50)))
    came = decode(encode(board))

    def never(*_: Any) -> None:
        raise AssertionError("it was made or read again")

    monkeypatch.setattr(wire, "_encode_texts", never)
    monkeypatch.setattr(wire, "_decode_texts", never)
    monkeypatch.setattr(pa.ipc, "read_schema", never)
    again = decode(encode(replace(board, ts_ns=2)))
    assert symbols_of(again) is symbols_of(came)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "KEPT_BYTES", 20_000)
    for name in ("_written", "_read", "_texts", "_layouts"):  # without what other tests left there
        monkeypatch.setattr(wire, name, wire._Newest())
    for number in range(200):
        entry = make_batch(symbols=tuple(f"{number}-{place}" for place in range(100)))
        assert same(decode(encode(entry)), entry)
    for kept in (wire._written, wire._read, wire._texts, wire._layouts):
        assert 1 <= len(kept._values) < 200
        assert kept._cost <= 20_000
        assert kept._cost == sum(cost for _, cost in kept._values.values())


def test_a_head_with_the_checksum_of_another_is_read_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all heads had one checksum: what is kept is compared byte by byte."""
    monkeypatch.setattr(wire, "_read", wire._Newest())
    for name in ("A", "B", "A"):
        entry = pulse(1)
        message = encode(replace(entry, symbols=(name,)))
        key = wire._BATCH.kind, FRAME.unpack_from(message)[6]
        for known in list(wire._read._values.values()):
            wire._read._values[key] = known
        assert symbols_of(decode(message)) == (name,)


# -- the bytes of other programs ---------------------------------------------------------------------------------------


def test_another_reader_of_arrow_finds_the_columns_and_their_texts() -> None:
    batch = make_batch(
        symbols=("AAPL", "日本"), conditions=("@",), symbol=[1, 0], ts_ns=[5, 6], price=[1.5, np.nan], condition=[0, 0]
    )
    message = encode(batch)
    note = FRAME.unpack_from(message)[3]
    with pa.ipc.open_stream(message[FRAME.size + note + -note % 8 :]) as stream:
        table = stream.read_all()
    assert table.column_names == [
        "symbol", "condition", "kind", "ts_ns", "price", "size", "tape", "exchange", "trade_id",
    ]  # fmt: skip
    assert table["ts_ns"].to_pylist() == [5, 6]
    assert table.schema.metadata == {
        b"kind": b"batch",
        b"version": b"1",
        b"symbols": '["AAPL","日本"]'.encode(),
        b"conditions": b'["@"]',
    }


def test_the_frame_is_as_documented() -> None:
    message = encode(Gap(1, 2, "silent"))
    assert message[:4] == b"TW\x01\x02"
    assert message[FRAME.size :] == b"\x93\x01\x02\xa6silent" + bytes(6)
    assert reseal(message) == message


# -- what cannot be sent -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [
        replace(make_bars([("A", 1)]), close=np.zeros(2)),
        replace(make_bars([("A", 1)]), close=np.zeros(1, np.float32)),
        replace(make_bars([("A", 1)]), close=np.zeros(1, ">f8")),
        replace(pulse(1), marks_row=np.zeros(1, np.int32)),
        BoardRows(ts_ns=1, session="pre", symbols=("A",), metrics=("price",), values=np.zeros((1, 2))),
    ],
)
def test_arrays_of_other_types_or_lengths_are_refused(entry: Entry) -> None:
    with pytest.raises(ValueError, match="of shape"):
        encode(entry)


# -- what cannot be read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", MESSAGES, ids=IDS)
def test_any_cut_is_told(message: bytes) -> None:
    step = max(1, len(message) // 200)
    for end in range(0, len(message), step):
        with pytest.raises(BadBatch, match="a message of"):
            decode(message[:end])
    with pytest.raises(BadBatch, match="a message of"):
        decode(message + b"\0")


@pytest.mark.parametrize("message", SHORT)
def test_any_flipped_bit_is_told(message: bytes) -> None:
    for bit in range(0, 8 * len(message), max(1, len(message) // 150)):
        with pytest.raises(BadBatch, match="a message"):
            decode(flipped(message, bit))


BATCH = encode(make_batch(symbols=("A",), ts_ns=[1, 2]))


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"", "a message of 0 bytes, which is shorter than its frame"),
        (b"AR" + BATCH[2:], "begins with b'AR', not with b'TW'"),
        (reframe(BATCH, version=2), "of version 2; this release reads version 1"),
        (reframe(BATCH, kind=0), "of the unknown kind 0"),
        (reframe(BATCH, kind=9), "of the unknown kind 9"),
        (reframe(BATCH, kind=2), "a note that cannot be read"),
        (reframe(BATCH, kind=5), "a note that cannot be read"),
        (flipped(BATCH, 8 * len(BATCH) - 200), "whose checksum is wrong"),
        (reseal(BATCH.replace(b"batch", b"bitch")), "does not say it is version 1 of kind batch"),
        (reseal(BATCH.replace(b'["A"]', b'["A",')), "symbols that cannot be read"),
        (reseal(BATCH.replace(b'["A"]', b'["\xff"]')), "symbols that cannot be read"),
        (reseal(swapped_body(BATCH, b"\xff\xff\xff\xff\0\0\0\0")), "columns that cannot be read"),
        (reseal(swapped_body(BATCH, b"\xff\xff\xff\xff\xff\xff\xff\x7f")), "columns that cannot be read"),
        (reseal(BATCH.replace(b"trade_id", b"trade_ix")), "whose columns are not those of kind batch"),
        (encode(make_batch(symbols=("A",), symbol=[1], ts_ns=[1])), "a symbol that is none of the 1 named"),
        (encode(make_batch(symbols=("A",), symbol=[-1], ts_ns=[1])), "a symbol that is none of the 1 named"),
        (encode(make_batch(symbols=("A",), condition=[1], ts_ns=[1])), "a condition that is none of the 1 named"),
        (encode(replace(make_bars([("A", 1)]), symbols=())), "a symbol that is none of the 0 named"),
        (encode(replace(pulse(1), marks_row=np.array([1]))), "marks that stand outside the rows"),
        (encode(replace(pulse(1), marks_row=np.array([-1]))), "marks that stand outside the rows"),
        (encode(make_batch(ts_ns=[1], symbols=("A",), marks_row=[1, 0], marks_ns=[1, 2])), "not in their order"),
        (encode(replace(pulse(1), marks_ns=np.zeros(2, np.int64))), "1 marks with 2 instants"),
        (
            wire._stream(
                wire._BATCH, wire._BatchNote(0, b"1", b""), [getattr(pulse(1), c) for c in ROW_COLUMNS], (), ()
            ),
            "marks_row of 1 bytes",
        ),
        (wire._message(2, wire._GapNote(2**63, 0, "")), "a note that cannot be read: .* <= 9223372036854775807"),
        (wire._message(7, wire._GapNote(1, 2, "")), "a note that cannot be read"),
        (wire._message(6, wire._BoardNote(1, "pre", covered=True)), "a head that cannot be read"),
        (
            encode(Ruleset(number=1, rules=(make_rule("r", when="price > 5").spec(),))).replace(b"price", b"prise"),
            "checksum",
        ),
        (
            reseal(
                encode(Ruleset(number=1, rules=(make_rule("r", when="price > 5").spec(),))).replace(b"price", b"prise")
            ),
            "a rule 'r' that cannot be read: .*prise",
        ),
    ],
)
def test_what_is_wrong_is_named(message: bytes, why: str) -> None:
    with pytest.raises(BadBatch, match=why):
        decode(message)


def test_values_that_do_not_fill_the_board_are_told() -> None:
    board = BoardRows(ts_ns=1, session="pre", symbols=("A", "B"), metrics=("p", "q"), values=np.zeros((2, 2)))
    with pytest.raises(BadBatch, match="4 values for 2 rows of 1 symbols"):
        decode(reseal(encode(board).replace(b'["A","B"]', b'["A,,,B"]')))


@pytest.mark.parametrize(
    ("values", "compression"), [([1.0] * 10_000, "lz4"), ([1.0] * 10_000, "zstd"), ([1.0, None], None)]
)
def test_columns_that_are_packed_or_have_holes_are_told(values: list[float | None], compression: str | None) -> None:
    form = wire._BOARD
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, form.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as stream:
        stream.write_batch(pa.RecordBatch.from_arrays([pa.array(values)], schema=form.schema))
    rows = sink.getvalue()[form.schema.serialize().size : -8]
    head = wire._head(form, (("A",) * len(values), ("price",)))
    with pytest.raises(BadBatch, match="a column values that is not plain numbers"):
        decode(wire._message(form.kind, wire._BoardNote(1, "pre", covered=True), head, rows))


def test_labels_that_do_not_fit_the_symbols_are_told() -> None:
    facts = Facts(day_start_ns=1, symbols=("A", "B"), names=(), values=np.zeros((0, 2)), labels={"type": ("CS", "CS")})
    with pytest.raises(BadBatch, match="2 labels 'type' for 1 symbols"):
        decode(reseal(encode(facts).replace(b'["A","B"]', b'["A,,,B"]')))


def test_a_note_nested_deep_is_told() -> None:
    alert = encode(Alerts((make_alert(1, note="@" * 200_000),)))
    at = alert.index(b"@")
    deep = alert[: at - 5] + b"\x91" * (len(alert) - at + 5)
    with pytest.raises(BadBatch, match="a note that cannot be read"):
        decode(reseal(deep))
    assert sys.getrecursionlimit() < 200_000


def read_or_told(message: bytes) -> None:
    try:
        entry = decode(message)
    except BadBatch:
        return
    assert isinstance(entry, Entry)
    assert same(decode(encode(entry)), entry)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(range(10)), st.booleans())
def test_random_bytes_are_told(junk: bytes, kind: int, columns: bool) -> None:  # noqa: FBT001 hypothesis names it
    with pytest.raises(BadBatch):
        decode(junk)
    half = len(junk) // 16 * 8
    head = junk[:half] if columns else b""
    body = junk[half:] if columns else b""
    frame = FRAME.pack(b"TW", 1, kind, len(junk), len(head), len(body), 0, 0)
    read_or_told(reseal(frame + junk + bytes(-len(junk) % 8) + head + body))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_bytes_that_were_changed_and_sealed_again_are_read_or_told(data: st.DataObject) -> None:
    message = bytearray(data.draw(st.sampled_from(SHORT)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(FRAME.size, len(message) - 1))
        message[place] = data.draw(st.integers(0, 255) | st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    read_or_told(reseal(bytes(message)))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(MESSAGES), st.binary(min_size=1, max_size=12), st.integers(0, 2**31))
def test_bytes_that_were_overwritten_are_told(message: bytes, junk: bytes, place: int) -> None:
    at = place % len(message)
    changed = (message[:at] + junk + message[at + len(junk) :])[: len(message)]
    if changed == message:
        assert same(decode(changed), decode(message))
    else:
        with pytest.raises(BadBatch):
            decode(changed)
