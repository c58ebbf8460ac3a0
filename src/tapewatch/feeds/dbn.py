"""Databento Binary Encoding, as much of it as a stream of trades needs: layouts, not conversations.

A stream is a metadata header, then records of whole 32-bit words, little-endian, each led by its length in words and
its type. Layouts are those of the official decoder (databento-dbn 0.70) for versions 1 to 3 of the encoding; trades
and status changes are the same in all three.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSIONS = (1, 2, 3)
SMALLEST_RECORD = 16
"""Bytes: the header that all records have."""
LARGEST_RECORD = 255 * 4
METADATA_PREFIX = 8
"""Bytes: the magic letters, the version, and the length of what follows."""
UNDEFINED_PRICE = 2**63 - 1
UNDEFINED_TIME = 2**64 - 1
PRICES_A_DOLLAR = 1_000_000_000
UNRELIABLE_TS_RECV = 0x08
"""Flag of a trade: the capture server's clock was wrong."""

TRADE = np.dtype(
    [
        ("length", "u1"),
        ("rtype", "u1"),
        ("publisher_id", "<u2"),
        ("instrument_id", "<u4"),
        ("ts_event", "<u8"),
        ("price", "<i8"),
        ("size", "<u4"),
        ("action", "u1"),
        ("side", "u1"),
        ("flags", "u1"),
        ("depth", "u1"),
        ("ts_recv", "<u8"),
        ("ts_in_delta", "<i4"),
        ("sequence", "<u4"),
    ]
)
Trades = NDArray[Any]
"""Records of `TRADE`."""

_HEADER = struct.Struct("<BBHIQ")
_METADATA = struct.Struct("<16sHQQQBBBH53xIIIII")
_STATUS = struct.Struct("<QHHHccc7x")
_CSTR = {1: 22, 2: 71, 3: 71}
_TEXT = {1: 64, 2: 303, 3: 303}


class RType(IntEnum):
    """Types of record that a stream of trades may hold."""

    TRADE = 0
    STATUS = 18
    ERROR = 21
    SYMBOL_MAPPING = 22
    SYSTEM = 23


class SystemCode(IntEnum):
    """What a system message says."""

    HEARTBEAT = 0
    SUBSCRIPTION_ACK = 1
    SLOW_READER_WARNING = 2
    REPLAY_COMPLETED = 3
    END_OF_INTERVAL = 4
    UNSUBSCRIBE_ACK = 5
    UNSET = 255


class ErrorCode(IntEnum):
    """What an error message says. All but 4 and 7 end the session."""

    AUTH_FAILED = 1
    API_KEY_DEACTIVATED = 2
    CONNECTION_LIMIT_EXCEEDED = 3
    SYMBOL_RESOLUTION_FAILED = 4
    INVALID_SUBSCRIPTION = 5
    INTERNAL_ERROR = 6
    SKIPPED_RECORDS_AFTER_SLOW_READING = 7
    REPLAY_DATA_AGED_OUT = 8
    UNSET = 255


STATUS_REASONS = {
    1: "SCHEDULED",
    2: "SURVEILLANCE_INTERVENTION",
    3: "MARKET_EVENT",
    4: "INSTRUMENT_ACTIVATION",
    5: "INSTRUMENT_EXPIRATION",
    6: "RECOVERY_IN_PROCESS",
    10: "REGULATORY",
    11: "ADMINISTRATIVE",
    12: "NON_COMPLIANCE",
    13: "FILINGS_NOT_CURRENT",
    14: "SEC_TRADING_SUSPENSION",
    15: "NEW_ISSUE",
    16: "ISSUE_AVAILABLE",
    17: "ISSUES_REVIEWED",
    18: "FILING_REQS_SATISFIED",
    30: "NEWS_PENDING",
    31: "NEWS_RELEASED",
    32: "NEWS_AND_RESUMPTION_TIMES",
    33: "NEWS_NOT_FORTHCOMING",
    40: "ORDER_IMBALANCE",
    50: "LULD_PAUSE",
    60: "OPERATIONAL",
    70: "ADDITIONAL_INFORMATION_REQUESTED",
    80: "MERGER_EFFECTIVE",
    90: "ETF",
    100: "CORPORATE_ACTION",
    110: "NEW_SECURITY_OFFERING",
    120: "MARKET_WIDE_HALT_LEVEL1",
    121: "MARKET_WIDE_HALT_LEVEL2",
    122: "MARKET_WIDE_HALT_LEVEL3",
    123: "MARKET_WIDE_HALT_CARRYOVER",
    124: "MARKET_WIDE_HALT_RESUMPTION",
    130: "QUOTATION_NOT_AVAILABLE",
}
"""Why a status changed, as Databento numbers and names it."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring records of one type and length: `data[start:stop]`, `count` of them, each of `size` bytes."""

    rtype: int
    start: int
    size: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.size * self.count


class NotDbn(ValueError):
    """Bytes that cannot be a record; where the next one would begin is not known."""


def runs(data: bytes, start: int) -> Iterator[Run]:
    """Whole records from `start` on. `NotDbn` at a record that is shorter than its own header."""
    while len(data) - start >= SMALLEST_RECORD:
        size, rtype = data[start] * 4, data[start + 1]
        if size < SMALLEST_RECORD:
            raise NotDbn(f"a record of {size} bytes")
        whole = (len(data) - start) // size
        if not whole:
            return
        run = Run(rtype=rtype, start=start, size=size, count=_alike(data, start, size, whole))
        yield run
        start = run.stop


def _alike(data: bytes, start: int, size: int, whole: int) -> int:
    """How many of the `whole` places from `start` on hold a record of the first one's length and type, in a row. Looks
    ever further ahead, so that short runs in a long buffer stay cheap.
    """
    first = int.from_bytes(data[start : start + 2], "little")
    count, ahead = 1, 4
    while count < whole:
        looked = min(ahead, whole - count)
        heads: NDArray[np.uint16] = np.ndarray((looked,), "<u2", data, start + count * size, (size,))
        differ = heads != first
        if differ.any():
            return count + int(differ.argmax())
        count, ahead = count + looked, ahead * 8
    return count


def trades(data: bytes, run: Run) -> Trades | None:
    """The records of a run of trades, without copying; None if they are too short to be trades. What a later version
    or a send time appends is left out.
    """
    if run.size < TRADE.itemsize:
        return None
    records: Trades = np.ndarray((run.count,), TRADE, data, run.start, (run.size,))
    return records


# -- the header of a stream -------------------------------------------------------------------------------------------


def metadata_size(data: bytes, start: int) -> tuple[int, int] | None:
    """Version and whole size in bytes of the metadata at `start`; None while its first bytes are missing. `NotDbn` for
    other bytes.
    """
    if data[start : start + 3] != b"DBN"[: len(data) - start]:
        raise NotDbn("a stream without DBN metadata")
    if len(data) - start < METADATA_PREFIX:
        return None
    return data[start + 3], METADATA_PREFIX + int.from_bytes(data[start + 4 : start + 8], "little")


def metadata(dataset: str, *, start_ns: int, ts_out: bool) -> bytes:
    """The header of a live stream, version 3: no schema, no symbols."""
    body = _METADATA.pack(
        dataset.encode(), 0xFFFF, start_ns, UNDEFINED_TIME, 0, 0xFF, 0, ts_out, _CSTR[3], 0, 0, 0, 0, 0
    )
    return b"DBN\x03" + len(body).to_bytes(4, "little") + body


# -- single records ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mapping:
    """From here on `instrument_id` means `symbol`."""

    instrument_id: int
    symbol: str


@dataclass(frozen=True, slots=True)
class Message:
    """A system or error message."""

    ts_ns: int
    code: int
    """255 where the encoding's version has none."""
    text: str


@dataclass(frozen=True, slots=True)
class Status:
    """A change of an instrument's trading status; `action` and `reason` as numbered by Databento."""

    instrument_id: int
    publisher_id: int
    ts_event: int
    ts_recv: int
    action: int
    reason: int


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def read_mapping(record: bytes, version: int) -> Mapping | None:
    """None if the record is too short."""
    width = _CSTR[version]
    at = SMALLEST_RECORD + width if version == 1 else SMALLEST_RECORD + 1 + width + 1
    if len(record) < at + width:
        return None
    return Mapping(instrument_id=_HEADER.unpack_from(record)[3], symbol=_text(record[at : at + width]))


def read_message(record: bytes, version: int, rtype: int) -> Message | None:
    """None if the record is too short."""
    width = _TEXT[version] - (version > 1 and rtype == RType.ERROR)
    end = SMALLEST_RECORD + width
    if len(record) < end + (version > 1):
        return None
    code = record[end] if version > 1 else 255
    return Message(ts_ns=_HEADER.unpack_from(record)[4], code=code, text=_text(record[SMALLEST_RECORD:end]))


def read_status(record: bytes) -> Status | None:
    """None if the record is too short."""
    if len(record) < SMALLEST_RECORD + _STATUS.size:
        return None
    _, _, publisher, instrument, ts_event = _HEADER.unpack_from(record)
    ts_recv, action, reason = _STATUS.unpack_from(record, SMALLEST_RECORD)[:3]
    return Status(instrument, publisher, ts_event, ts_recv, action, reason)


def _record(rtype: int, body: bytes, *, publisher: int = 0, instrument: int = 0, ts_ns: int) -> bytes:
    return _HEADER.pack((SMALLEST_RECORD + len(body)) // 4, rtype, publisher, instrument, ts_ns) + body


def mapping_record(mapping: Mapping, *, ts_ns: int) -> bytes:
    """Version 3; asked for and meant by its raw symbol."""
    symbol = mapping.symbol.encode()
    body = struct.pack("<B71sB71sQQ", 0xFF, symbol, 0xFF, symbol, UNDEFINED_TIME, UNDEFINED_TIME)
    return _record(RType.SYMBOL_MAPPING, body, instrument=mapping.instrument_id, ts_ns=ts_ns)


def system_record(code: SystemCode, text: str, *, ts_ns: int) -> bytes:
    """Version 3."""
    return _record(RType.SYSTEM, struct.pack("<303sB", text.encode()[:302], code), ts_ns=ts_ns)


def error_record(code: ErrorCode, text: str, *, ts_ns: int) -> bytes:
    """Version 3, the last of its series."""
    return _record(RType.ERROR, struct.pack("<302sBB", text.encode()[:301], code, 1), ts_ns=ts_ns)


def status_record(status: Status) -> bytes:
    """Whether it trades follows from the action: 7 is trading."""
    trading = b"Y" if status.action == 7 else b"N"
    body = _STATUS.pack(status.ts_recv, status.action, status.reason, 0, trading, trading, b"~")
    return _record(
        RType.STATUS, body, publisher=status.publisher_id, instrument=status.instrument_id, ts_ns=status.ts_event
    )


def with_ts_out(record: bytes, ts_ns: int) -> bytes:
    """The record with the time of sending behind it."""
    return bytes((record[0] + 2,)) + record[1:] + ts_ns.to_bytes(8, "little")
