"""Entries of a stream as bytes, and back: what a bus that leaves the process carries.

A message is a frame of 24 bytes, a note, and for what has columns one Arrow IPC stream. All numbers are little-endian.

    magic "TW", version (1 byte), kind (1 byte), lengths of note, head and body, CRC-32 of the head, CRC-32 of the rest
    note    MessagePack, an array by place, filled up with zeros to a multiple of eight bytes
    head    the stream's schema message; its metadata hold kind, version and the texts (symbols, ...) as JSON arrays
    body    one record batch and the end of the stream

A batch and bars have a column for each of theirs; a board and facts have one, ``values``, metric by metric. Marks and
other things that change with every entry stand in the note, so that the head stays the same for as long as the texts
do: it is made once for the same tuples, and read once for the same bytes. The columns of a decoded entry are read-only
views of the message.

Rules travel as their canonical text. What cannot be read is `BadBatch`. Nothing here has state but caches, all of them
bounded: equal texts come back as the same tuple while it is among the newest `KEPT_BYTES`, so that readers can tell by
identity that no symbol is new; `KEPT_CONDITIONS` conditions are parsed once.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from struct import Struct
from threading import Lock
from typing import Annotated, Any, Generic, NamedTuple, TypeVar
from zlib import crc32

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tapewatch.documents import Alert
from tapewatch.engine.board import BoardRows
from tapewatch.engine.columns import BAR_COLUMNS, ROW_COLUMNS, Bars, Batch, Facts, Gap
from tapewatch.engine.metrics import is_row
from tapewatch.engine.rules import Ruleset, RuleSpec
from tapewatch.engine.rules.text import format_condition, format_fire, parse_condition, parse_fire
from tapewatch.engine.rules.tree import Severity
from tapewatch.engine.scanner import Withdrawn
from tapewatch.errors import BadBatch, Invalid
from tapewatch.ports import Alerts, Entry

MAGIC = b"TW"
VERSION = 1
KEPT_BYTES = 4_000_000
"""Of each cache, in bytes as sent: heads written, heads read, the texts in them (as Python's about ten times that), and
where columns lie.
"""
KEPT_CONDITIONS = 32_768
MAX_BYTES = 2**32 - 1
"""Of a note, a head or a body."""

_FRAME = Struct("<2sBBIIIII")
_CRC_AT = _FRAME.size - 4
_PADS = tuple(b"\0" * n for n in range(8))
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""How an Arrow stream ends."""

_UNREADABLE = (pa.ArrowException, OSError, EOFError, ValueError)
"""What pyarrow raises of bytes that make no sense to it."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Texts = tuple[str, ...]


class _Newest(Generic[K, V]):
    """The values used last, up to `KEPT_BYTES` of what they cost; the newest is kept whatever it costs."""

    def __init__(self) -> None:
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._cost = 0
        self._lock = Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: K, value: V, cost: int) -> None:
        with self._lock:
            if key in self._values:
                self._cost -= self._values.pop(key)[1]
            self._values[key] = value, cost
            self._cost += cost
            while self._cost > KEPT_BYTES and len(self._values) > 1:
                self._cost -= self._values.popitem(last=False)[1][1]


# -- notes: what is small, or new with every entry ---------------------------------------------------------------------

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Note(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Fields by place; a list where the entry has a tuple, because a list grows only as its items are read."""


class _BatchNote(_Note):
    received_ns: Int64
    marks_row: bytes
    marks_ns: bytes


class _FactsNote(_Note):
    day_start_ns: Int64
    labels: dict[str, list[str]]


class _BoardNote(_Note):
    ts_ns: Int64
    session: str
    covered: bool


class _BarsNote(_Note):
    pass


class _GapNote(_Note):
    start_ns: Int64
    end_ns: Int64
    reason: str


class _WithdrawnNote(_Note):
    symbol: str
    ts_ns: Int64
    price: float
    size: float
    corrected: tuple[float, float] | None


class _AlertsNote(_Note):
    alerts: list[Alert]


class _RuleNote(_Note):
    id: str
    version: Int64
    name: str
    when: str
    gate: str | None
    rearm: str | None
    fire: str
    cooldown_ns: Int64
    severity: Severity
    tags: list[str]
    owner: str = "local"
    shared: bool = False


class _RulesetNote(_Note):
    number: Int64
    rules: list[_RuleNote]
    watchlists: dict[str, list[str]]
    shown: list[str] = []


N = TypeVar("N", bound=_Note)


def _plain(value: Any) -> Any:
    """A figure that came out of an array is numpy's own."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a note of {type(value)}")


_encode_note = msgspec.msgpack.Encoder(enc_hook=_plain).encode


# -- forms: what has columns -------------------------------------------------------------------------------------------


class _Form:
    """Columns of fixed types, and the texts beside them."""

    def __init__(self, kind: int, name: str, columns: Mapping[str, type[np.generic]], *texts: str) -> None:
        self.kind = kind
        self.name = name
        self.columns = tuple((column, np.dtype(dtype)) for column, dtype in columns.items())
        self.types = tuple(pa.from_numpy_dtype(dtype) for _, dtype in self.columns)
        self.texts = texts
        self.schema = pa.schema(
            [pa.field(column, of, nullable=False) for column, of in zip(columns, self.types, strict=True)]
        )


_ROW_TYPES: dict[str, type[np.generic]] = {
    "symbol": np.int32,
    "condition": np.uint16,
    "kind": np.uint8,
    "ts_ns": np.int64,
    "price": np.float64,
    "size": np.float64,
    "tape": np.uint8,
    "exchange": np.uint8,
    "trade_id": np.int64,
}
_BAR_TYPES: dict[str, type[np.generic]] = {
    "symbol": np.int32,
    "ts_ns": np.int64,
    "trade_count": np.int64,
    "revision": np.int64,
}
_BATCH = _Form(1, "batch", {name: _ROW_TYPES[name] for name in ROW_COLUMNS}, "symbols", "conditions")
_GAP = 2
_FACTS = _Form(3, "facts", {"values": np.float64}, "symbols", "names")
_RULESET = 4
_BARS = _Form(5, "bars", {name: _BAR_TYPES.get(name, np.float64) for name in BAR_COLUMNS}, "symbols")
_BOARD = _Form(6, "board", {"values": np.float64}, "symbols", "metrics")
_ALERTS = 7
_WITHDRAWN = 8


# -- encoding ----------------------------------------------------------------------------------------------------------


def encode(entry: Entry) -> bytes:
    """The entry as a message. Its arrays have the types and lengths that their class names, else ValueError; so has
    its text, which is Unicode without halves of surrogate pairs.
    """
    match entry:
        case Batch():
            note: _Note = _BatchNote(
                entry.received_ns, _bytes_of("marks_row", entry.marks_row), _bytes_of("marks_ns", entry.marks_ns)
            )
            return _stream(
                _BATCH, note, [getattr(entry, name) for name in ROW_COLUMNS], entry.symbols, entry.conditions
            )
        case Bars():
            return _stream(_BARS, _BarsNote(), [getattr(entry, name) for name in BAR_COLUMNS], entry.symbols)
        case BoardRows():
            if entry.values.shape != (len(entry.metrics), len(entry.symbols)):
                raise ValueError(f"values of shape {entry.values.shape} for {len(entry.metrics)} metrics")
            note = _BoardNote(entry.ts_ns, entry.session, entry.covered)
            return _stream(_BOARD, note, [entry.values.reshape(-1)], entry.symbols, entry.metrics)
        case Facts():
            note = _FactsNote(entry.day_start_ns, {name: list(texts) for name, texts in entry.labels.items()})
            return _stream(_FACTS, note, [entry.values.reshape(-1)], entry.symbols, entry.names)
        case Gap():
            return _message(_GAP, _GapNote(entry.start_ns, entry.end_ns, entry.reason))
        case Alerts():
            return _message(_ALERTS, _AlertsNote(list(entry.alerts)))
        case Withdrawn():
            note = _WithdrawnNote(entry.symbol, entry.ts_ns, entry.price, entry.size, entry.corrected)
            return _message(_WITHDRAWN, note)
        case Ruleset():
            rules = [_rule_note(rule) for rule in entry.rules]
            lists = {name: sorted(symbols) for name, symbols in entry.watchlists.items()}
            return _message(_RULESET, _RulesetNote(entry.number, rules, lists, list(entry.shown)))


def _bytes_of(name: str, marks: NDArray[np.int64]) -> bytes:
    if marks.dtype != np.int64 or marks.ndim != 1:
        raise ValueError(f"{name} is {marks.dtype} of shape {marks.shape}")
    return marks.tobytes()


def _rule_note(rule: RuleSpec) -> _RuleNote:
    return _RuleNote(
        id=rule.id,
        version=rule.version,
        name=rule.name,
        when=format_condition(rule.when),
        gate=format_condition(rule.gate) if rule.gate is not None else None,
        rearm=format_condition(rule.rearm) if rule.rearm is not None else None,
        fire=format_fire(rule.fire),
        cooldown_ns=rule.cooldown_ns,
        severity=rule.severity,
        tags=list(rule.tags),
        owner=rule.owner,
        shared=rule.shared,
    )


class _Head(NamedTuple):
    texts: tuple[Texts, ...]
    """Held, so that nothing else can have their identity."""
    message: bytes
    crc: int


_written: _Newest[tuple[int, ...], _Head] = _Newest()
_encode_texts = msgspec.json.Encoder().encode


def _head(form: _Form, texts: tuple[Texts, ...]) -> _Head:
    key = (form.kind, *map(id, texts))
    head = _written.get(key)
    if head is None:
        metadata: dict[str, str | bytes] = {"kind": form.name, "version": str(VERSION)}
        metadata |= {name: _encode_texts(value) for name, value in zip(form.texts, texts, strict=True)}
        message = form.schema.with_metadata(metadata).serialize().to_pybytes()
        head = _Head(texts, message, crc32(message))
        _written.put(key, head, len(message))
    return head


def _stream(form: _Form, note: _Note, columns: list[NDArray[Any]], *texts: Texts) -> bytes:
    n = len(columns[0])
    arrays = []
    for (name, dtype), of, column in zip(form.columns, form.types, columns, strict=True):
        if column.dtype != dtype or column.shape != (n,):
            raise ValueError(f"{name} is {column.dtype} of shape {column.shape}, not {dtype} of {n} rows")
        whole = column if column.flags.c_contiguous else np.ascontiguousarray(column)
        arrays.append(pa.Array.from_buffers(of, n, [None, pa.py_buffer(whole)], 0))
    rows = pa.RecordBatch.from_arrays(arrays, schema=form.schema).serialize()
    return _message(form.kind, note, _head(form, texts), rows)


_NO_HEAD = _Head((), b"", 0)


def _message(kind: int, note: _Note, head: _Head = _NO_HEAD, rows: Any = None) -> bytes:
    told = _encode_note(note)
    body = rows.size + len(_END) if rows is not None else 0
    if max(len(told), len(head.message), body) > MAX_BYTES:
        raise ValueError(f"an entry of {body:,} bytes is too large to send")
    frame = _FRAME.pack(MAGIC, VERSION, kind, len(told), len(head.message), body, head.crc, 0)[:_CRC_AT]
    told += _PADS[-len(told) % 8]
    crc = crc32(told, crc32(frame))
    if rows is None:
        return b"".join((frame, crc.to_bytes(4, "little"), told))
    crc = crc32(_END, crc32(rows, crc))
    return b"".join((frame, crc.to_bytes(4, "little"), told, head.message, rows, _END))


# -- decoding ----------------------------------------------------------------------------------------------------------


class _Message(NamedTuple):
    """A message whose frame and checksum are right."""

    kind: int
    note: memoryview
    head: memoryview
    """Empty where the kind has no columns, and so is the body."""
    head_crc: int
    body: memoryview


def decode(data: bytes | memoryview) -> Entry:
    """The entry of a message; `BadBatch` says what is wrong with one that is not whole, or that another release wrote.

    The entry's columns are views of `data`, which must not change as long as the entry is in use.
    """
    message = _open(data)
    read = _READERS.get(message.kind)
    if read is None:
        raise BadBatch(f"a message of the unknown kind {message.kind}")
    return read(message)


def _open(data: bytes | memoryview) -> _Message:
    view = memoryview(data).toreadonly()
    if not view.c_contiguous or view.format != "B":
        view = memoryview(view.tobytes())
    size = view.nbytes
    if size < _FRAME.size:
        raise BadBatch(f"a message of {size} bytes, which is shorter than its frame")
    magic, version, kind, note_size, head_size, body_size, head_crc, crc = _FRAME.unpack_from(view)
    if magic != MAGIC:
        raise BadBatch(f"a message that begins with {magic!r}, not with {MAGIC!r}")
    if version != VERSION:
        raise BadBatch(f"a message of version {version}; this release reads version {VERSION}")
    head_at = _FRAME.size + note_size + -note_size % 8
    body_at = head_at + head_size
    if body_at + body_size != size:
        raise BadBatch(f"a message of {size:,} bytes, where its frame says {body_at + body_size:,}")
    found = crc32(view[_FRAME.size : head_at], crc32(view[:_CRC_AT]))
    if crc32(view[body_at:], found) != crc:
        raise BadBatch("a message whose checksum is wrong")
    if pa.py_buffer(view).address % 8:  # numpy is slow on numbers that lie astride
        view = memoryview(view.tobytes())
    note = view[_FRAME.size : _FRAME.size + note_size]
    return _Message(kind, note, view[head_at:body_at], head_crc, view[body_at:])


def _note_of(message: _Message, decoder: msgspec.msgpack.Decoder[N]) -> N:
    try:
        return decoder.decode(message.note)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadBatch(f"a note that cannot be read: {error}") from None


_read: _Newest[tuple[int, int], tuple[Any, tuple[Texts, ...]]] = _Newest()
"""By kind and checksum the head, and the texts in it."""
_texts: _Newest[bytes, Texts] = _Newest()
_decode_texts = msgspec.json.Decoder(tuple[str, ...]).decode


def _texts_of(message: _Message, form: _Form) -> tuple[Texts, ...]:
    key = form.kind, message.head_crc
    head = pa.py_buffer(message.head)
    known = _read.get(key)
    if known is not None and known[0].equals(head):
        return known[1]
    if crc32(head) != message.head_crc:
        raise BadBatch("a message whose head has a wrong checksum")
    try:
        schema = pa.ipc.read_schema(head)
        metadata: dict[bytes, bytes] = schema.metadata or {}
    except _UNREADABLE as error:
        raise BadBatch(f"a head that cannot be read: {error}") from None
    if (metadata.get(b"kind"), metadata.get(b"version")) != (form.name.encode(), str(VERSION).encode()):
        raise BadBatch(f"a head that does not say it is version {VERSION} of kind {form.name}")
    if not schema.equals(form.schema):
        raise BadBatch(f"a head whose columns are not those of kind {form.name}")
    texts = tuple(_text_of(name, metadata.get(name.encode(), b"")) for name in form.texts)
    _read.put(key, (pa.py_buffer(head.to_pybytes()), texts), head.size)
    return texts


def _text_of(name: str, told: bytes) -> Texts:
    texts = _texts.get(told)
    if texts is None:
        try:
            texts = _decode_texts(told)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BadBatch(f"{name} that cannot be read: {error}") from None
        _texts.put(told, texts, len(told))
    return texts


class _Layout(NamedTuple):
    rows: int
    offsets: tuple[int, ...]
    """Of each column in the body."""


_layouts: _Newest[tuple[int, int, bytes], _Layout] = _Newest()
"""By kind, length of the body, and the bytes before its columns: they say where the columns are, and are the same for
the same number of rows.
"""


def _layout_of(body: memoryview, form: _Form) -> _Layout:
    said = bytes(body[: 8 + int.from_bytes(body[4:8], "little")])
    key = form.kind, len(body), said
    layout = _layouts.get(key)
    if layout is not None:
        return layout
    try:
        whole = pa.py_buffer(body)
        batch = pa.ipc.read_record_batch(whole, form.schema)
        batch.validate(full=True)
    except _UNREADABLE as error:
        raise BadBatch(f"columns that cannot be read: {error}") from None
    rows: int = batch.num_rows
    offsets: list[int] = []
    for column, (name, dtype) in zip(batch.columns, form.columns, strict=True):
        values = column.buffers()[1]
        offset = values.address - whole.address if values is not None and rows else 0
        if column.null_count or not 0 <= offset <= len(body) - rows * dtype.itemsize:
            raise BadBatch(f"a column {name} that is not plain numbers")
        offsets.append(offset)
    layout = _Layout(rows, tuple(offsets))
    _layouts.put(key, layout, len(said))
    return layout


def _columns_of(message: _Message, form: _Form) -> list[NDArray[Any]]:
    body = message.body
    rows, offsets = _layout_of(body, form)
    return [np.frombuffer(body, dtype, rows, offset) for offset, (_, dtype) in zip(offsets, form.columns, strict=True)]


def _marks_of(name: str, told: bytes) -> NDArray[np.int64]:
    if len(told) % 8:
        raise BadBatch(f"{name} of {len(told)} bytes, which are not whole numbers")
    return np.frombuffer(told, np.int64)


def _check_places(name: str, places: NDArray[Any], texts: Texts) -> None:
    """Seen as unsigned, a negative place is a great one."""
    if len(places) and int(places.view(f"u{places.itemsize}").max()) >= len(texts):
        raise BadBatch(f"a {name} that is none of the {len(texts):,} named")


def _read_batch(message: _Message) -> Batch:
    note = _note_of(message, _BATCH_NOTE)
    symbols, conditions = _texts_of(message, _BATCH)
    columns = _columns_of(message, _BATCH)
    _check_places("symbol", columns[0], symbols)
    _check_places("condition", columns[1], conditions)
    marks_row, marks_ns = _marks_of("marks_row", note.marks_row), _marks_of("marks_ns", note.marks_ns)
    if len(marks_row) != len(marks_ns):
        raise BadBatch(f"{len(marks_row)} marks with {len(marks_ns)} instants")
    if len(marks_row) and (
        marks_row[0] < 0 or marks_row[-1] > len(columns[0]) or np.any(marks_row[1:] < marks_row[:-1])
    ):
        raise BadBatch("marks that stand outside the rows, or not in their order")
    return Batch(
        symbols=symbols,
        conditions=conditions,
        marks_row=marks_row,
        marks_ns=marks_ns,
        received_ns=note.received_ns,
        **dict(zip(ROW_COLUMNS, columns, strict=True)),
    )


def _read_bars(message: _Message) -> Bars:
    _note_of(message, _BARS_NOTE)
    (symbols,) = _texts_of(message, _BARS)
    columns = _columns_of(message, _BARS)
    _check_places("symbol", columns[0], symbols)
    return Bars(symbols=symbols, **dict(zip(BAR_COLUMNS, columns, strict=True)))


def _read_board(message: _Message) -> BoardRows:
    note = _note_of(message, _BOARD_NOTE)
    symbols, metrics = _texts_of(message, _BOARD)
    values = _values_of(message, _BOARD, rows=metrics, columns=symbols)
    return BoardRows(
        ts_ns=note.ts_ns, session=note.session, symbols=symbols, metrics=metrics, values=values, covered=note.covered
    )


def _read_facts(message: _Message) -> Facts:
    note = _note_of(message, _FACTS_NOTE)
    symbols, names = _texts_of(message, _FACTS)
    values = _values_of(message, _FACTS, rows=names, columns=symbols)
    labels = {name: tuple(texts) for name, texts in note.labels.items()}
    try:
        return Facts(day_start_ns=note.day_start_ns, symbols=symbols, names=names, values=values, labels=labels)
    except ValueError as error:
        raise BadBatch(f"facts that do not fit together: {error}") from None


def _values_of(message: _Message, form: _Form, *, rows: Texts, columns: Texts) -> NDArray[np.float64]:
    (values,) = _columns_of(message, form)
    if len(values) != len(rows) * len(columns):
        raise BadBatch(f"{len(values):,} values for {len(rows):,} rows of {len(columns):,} symbols")
    return values.reshape(len(rows), len(columns))


def _read_gap(message: _Message) -> Gap:
    note = _note_of(message, _GAP_NOTE)
    return Gap(note.start_ns, note.end_ns, note.reason)


def _read_alerts(message: _Message) -> Alerts:
    return Alerts(tuple(_note_of(message, _ALERTS_NOTE).alerts))


def _read_withdrawn(message: _Message) -> Withdrawn:
    note = _note_of(message, _WITHDRAWN_NOTE)
    return Withdrawn(note.symbol, note.ts_ns, note.price, note.size, note.corrected)


_condition = lru_cache(maxsize=KEPT_CONDITIONS)(parse_condition)
_fire = lru_cache(maxsize=64)(parse_fire)


def _read_ruleset(message: _Message) -> Ruleset:
    note = _note_of(message, _RULESET_NOTE)
    return Ruleset(
        number=note.number,
        rules=tuple(_rule_of(rule) for rule in note.rules),
        watchlists={name: frozenset(symbols) for name, symbols in note.watchlists.items()},
        shown=_shown(note.shown),
    )


def _shown(names: list[str]) -> tuple[str, ...]:
    """A metric that this release lacks is left out: a list that asks for it finds nothing known."""
    return tuple(name for name in names if is_row(name))


def _rule_of(note: _RuleNote) -> RuleSpec:
    try:
        return RuleSpec(
            id=note.id,
            version=note.version,
            name=note.name,
            when=_condition(note.when),
            gate=_condition(note.gate) if note.gate is not None else None,
            rearm=_condition(note.rearm) if note.rearm is not None else None,
            fire=_fire(note.fire),
            cooldown_ns=note.cooldown_ns,
            severity=note.severity,
            tags=tuple(note.tags),
            owner=note.owner,
            shared=note.shared,
        )
    except Invalid as error:
        raise BadBatch(f"a rule {note.id[:64]!r} that cannot be read: {error}") from None


_BATCH_NOTE = msgspec.msgpack.Decoder(_BatchNote)
_BARS_NOTE = msgspec.msgpack.Decoder(_BarsNote)
_BOARD_NOTE = msgspec.msgpack.Decoder(_BoardNote)
_FACTS_NOTE = msgspec.msgpack.Decoder(_FactsNote)
_GAP_NOTE = msgspec.msgpack.Decoder(_GapNote)
_ALERTS_NOTE = msgspec.msgpack.Decoder(_AlertsNote)
_WITHDRAWN_NOTE = msgspec.msgpack.Decoder(_WithdrawnNote)
_RULESET_NOTE = msgspec.msgpack.Decoder(_RulesetNote)

_READERS: dict[int, Callable[[_Message], Entry]] = {
    _BATCH.kind: _read_batch,
    _GAP: _read_gap,
    _FACTS.kind: _read_facts,
    _RULESET: _read_ruleset,
    _BARS.kind: _read_bars,
    _BOARD.kind: _read_board,
    _ALERTS: _read_alerts,
    _WITHDRAWN: _read_withdrawn,
}
