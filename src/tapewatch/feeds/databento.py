"""Databento Live as a session over TCP bytes: the line protocol of the gateway, then a stream of DBN records.

What its trades are on the tape:

- The time is `ts_recv`, when Databento's capture server had the trade, as in Databento's own bars; it ascends within a
  dataset. Where a trade's flags call that clock wrong, it is `ts_event`, the exchange's own time.
- There are no sale conditions: every print is judged as a regular one (``@``), in all sessions. The tape (A, B, C) is
  unknown, 0.
- The trade id is the publisher's number and the venue's sequence number, `publisher << 32 | sequence`; 0 without one.
- The exchange is the publisher's SIP letter, 0 for a consolidated publisher.
- Databento sends neither cancels nor corrections of trades.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

import numpy as np

from tapewatch.engine.columns import I64, OPEN_END_NS, ROW_COLUMNS, U8, Bool, Gap, Kind, make_batch
from tapewatch.errors import ConfigError, FeedLost, FeedRefused
from tapewatch.feeds import dbn
from tapewatch.feeds.dictionary import Dictionary
from tapewatch.feeds.quarantine import Quarantine
from tapewatch.feeds.rows import MOST_SYMBOLS, is_time
from tapewatch.feeds.session import Received
from tapewatch.feeds.tape_file import exchange_test_symbols

PORT = 13_000
ALL_SYMBOLS = "ALL_SYMBOLS"
SYMBOLS_A_LINE = 500
REGULAR = "@"
"""The sale condition of every print."""

_HIGHEST_PRICE = 10_000_000 * dbn.PRICES_A_DOLLAR
_UNDEFINED_SIZE = 2**32 - 1
_LONGEST_LINE, _LARGEST_METADATA = 1 << 13, 1 << 20
_MOST_INSTRUMENTS = 200_000
_UNMAPPED, _UNUSABLE, _TEST = -1, -2, -3
_SYMBOL = re.compile(r"[A-Z][A-Za-z0-9 .+\-=^*#$!%@~]{0,23}")
_DATASET = re.compile(r"[A-Z0-9]{2,8}\.[A-Z0-9]{2,8}")
_KEY = re.compile(r"[\x21-\x7b\x7d\x7e]{6,128}")
_SECRETS = re.compile(r"db-\w{6,}|[0-9a-fA-F]{32,}(-\w+)?")
_LATER = re.compile(r"internal|unavailable|time.?out|timed out|try again|maintenance|overload", re.IGNORECASE)

_SYSTEM_NOTES = {int(code): code.name.lower() for code in dbn.SystemCode if code is not dbn.SystemCode.UNSET}
_KINDS = {7: Kind.RESUME, 8: Kind.HALT, 9: Kind.HALT, 10: Kind.HALT}
"""Of a status's action: trading; halt, pause and suspension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabentoSettings:
    """Where to connect and what to ask for. `ConfigError` for what the line protocol cannot carry."""

    key: str = field(repr=False)
    dataset: str = "EQUS.MINI"
    symbols: tuple[str, ...] = ("*",)
    """Raw symbols as the dataset writes them; ``*`` asks for all."""
    host: str = ""
    """Another gateway than the dataset's own."""
    port: int = PORT
    heartbeat_interval_s: int = 10
    """The gateway says something at least this often."""
    start_ns: int | None = None
    """Also send what came since then, of the last 24 hours at most."""
    statuses: bool = False
    """Also ask for halts; not every dataset has them, and one without refuses the session."""
    most_symbols: int = MOST_SYMBOLS

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            raise ConfigError("databento: the key is not 6 to 128 printable characters without blanks and '|'")
        if not _DATASET.fullmatch(self.dataset):
            raise ConfigError(f"databento: {self.dataset!r} is not a dataset such as XNAS.ITCH")
        wrong = next((name for name in self.symbols if name != "*" and not _SYMBOL.fullmatch(name)), None)
        if wrong is not None:
            raise ConfigError(f"databento: {wrong!r} is not a symbol")
        if not self.symbols:
            raise ConfigError("databento: no symbols are asked for; * asks for all")
        if not 5 <= self.heartbeat_interval_s <= 1800:
            raise ConfigError(f"databento: a heartbeat every {self.heartbeat_interval_s} s; it must be 5 to 1800")
        if not 1 <= self.port <= 65_535:
            raise ConfigError(f"databento: {self.port} is not a port (1 to 65535)")

    @property
    def address(self) -> tuple[str, int]:
        """Host and TCP port. The gateway speaks without TLS; the key itself is never sent."""
        return self.host or f"{self.dataset.lower().replace('.', '-')}.lsg.databento.com", self.port


def publishers() -> dict[str, dict[str, int]]:
    """Dataset -> venue -> publisher id."""
    table: dict[str, dict[str, int]] = _table()["publishers"]
    return table


def venue_letters() -> dict[str, str]:
    """Venue -> SIP participant letter, of venues that have one."""
    letters: dict[str, str] = _table()["letters"]
    return letters


@cache
def _table() -> dict[str, Any]:
    path = files("tapewatch") / "reference" / "databento_publishers.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


@cache
def _letters_by_publisher() -> U8:
    letters = np.zeros(1 << 16, np.uint8)
    for venues in publishers().values():
        for venue, publisher in venues.items():
            letters[publisher] = ord(venue_letters().get(venue, "\0"))
    return letters


class DatabentoSession:
    """See `session.Session`. Frames are pieces of the TCP stream, cut anywhere.

    `ready` comes with the first subscription acknowledgement, symbol mapping or trade.
    """

    def __init__(
        self,
        settings: DatabentoSettings,
        *,
        symbols: Dictionary,
        conditions: Dictionary,
        quarantine: Quarantine,
        start_ns: int | None = None,
    ) -> None:
        """`start_ns` takes the place of the settings' own: a connection that follows another one asks for what was
        missed in between.
        """
        self.ready = False
        self.quarantine = quarantine
        quarantine.hide(settings.key)
        self._settings = settings
        self._start_ns = settings.start_ns if start_ns is None else start_ns
        self._symbols, self._conditions = symbols, conditions
        self._regular = int(conditions.encode([REGULAR])[0])
        self._instruments = _Instruments()
        self._known_symbols = set(symbols.names)
        self._universe = None if "*" in settings.symbols else frozenset(settings.symbols)
        self._test_symbols = exchange_test_symbols()
        self._rest = b""
        self._challenged = self._streaming = False
        self._version = 0
        self._last_ns = 0
        self._skipped_from_ns: int | None = None
        self._arrived_ns = 0
        self._clear()

    def opening(self) -> Sequence[str | bytes]:
        return ()

    def receive(self, frames: Sequence[tuple[int, bytes]]) -> Received:
        if self._ended is not None:
            return Received(ended=self._ended)
        self._clear()
        self._arrived_ns = max((arrived_ns for arrived_ns, _ in frames), default=self._arrived_ns)
        data = b"".join([self._rest, *(frame for _, frame in frames)])
        at = 0 if self._streaming else self._read_lines(data)
        if self._streaming and self._ended is None:
            at = self._read_records(data, at)
        self._rest = data[at:]
        batch = None
        if self._rows:
            columns: dict[str, Any] = {
                name: np.concatenate([rows[name] for rows in self._rows]) for name in ROW_COLUMNS
            }
            batch = make_batch(symbols=self._symbols.names, conditions=self._conditions.names, **columns)
        return Received(batch=batch, gaps=self._gaps, replies=self._replies, ended=self._ended, notes=dict(self._notes))

    def _clear(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._gaps: list[Gap] = []
        self._replies: list[bytes] = []
        self._notes: Counter[str] = Counter()
        self._ended: FeedLost | FeedRefused | None = None

    def _broken(self, problem: str) -> None:
        self._ended = FeedLost(f"Databento: {problem}", reason="protocol")

    # -- lines --------------------------------------------------------------------------------------------------------

    def _read_lines(self, data: bytes) -> int:
        """Where the lines end that were read."""
        at = 0
        while not self._streaming and self._ended is None and (end := data.find(b"\n", at)) >= 0:
            self._read_line(data[at:end].decode("utf-8", "replace").strip())
            at = end + 1
        if not self._streaming and len(data) - at > _LONGEST_LINE:
            self._broken("a line of the handshake that does not end")
        return at

    def _read_line(self, line: str) -> None:
        fields = {name: value for name, _, value in (part.partition("=") for part in line.split("|"))}
        if "cram" in fields and not self._challenged:
            self._challenged = True
            self._replies.append(self._answer(fields["cram"]))
        elif "success" in fields and self._challenged:
            if fields["success"] == "1":
                self._streaming = True
                self._replies += self._requests()
            else:
                self._ended = self._refusal(line.partition("error=")[2])
        elif "lsg_version" not in fields:
            self._broken("an unknown line in the handshake")

    def _answer(self, challenge: str) -> bytes:
        settings = self._settings
        digest = sha256(f"{challenge}|{settings.key}".encode()).hexdigest()
        return (
            f"auth={digest}-{settings.key[-5:]}|dataset={settings.dataset}|encoding=dbn|ts_out=0|compression=none"
            f"|heartbeat_interval_s={settings.heartbeat_interval_s}|client=tapewatch\n"
        ).encode()

    def _requests(self) -> list[bytes]:
        symbols = (ALL_SYMBOLS,) if self._universe is None else self._settings.symbols
        start = "" if self._start_ns is None else f"|start={self._start_ns}"
        lines = []
        for schema in ("trades", "status") if self._settings.statuses else ("trades",):
            for i in range(0, len(symbols), SYMBOLS_A_LINE):
                names = ",".join(symbols[i : i + SYMBOLS_A_LINE])
                last = int(i + SYMBOLS_A_LINE >= len(symbols))
                lines.append(
                    f"schema={schema}|stype_in=raw_symbol|symbols={names}{start}|snapshot=0|is_last={last}\n".encode()
                )
        return [*lines, b"start_session=0\n"]

    def _refusal(self, text: str) -> FeedLost | FeedRefused:
        said = f"Databento refused the session: {self._told(text)}"
        if "connection limit" in text.lower():
            return FeedLost(said, reason="connection_limit")
        return FeedLost(said, reason="closed") if _LATER.search(text) else FeedRefused(said)

    def _told(self, text: str) -> str:
        """What the gateway said, for people: one line, without anything that may be a secret."""
        plain = "".join(letter if letter.isprintable() else " " for letter in text)
        return _SECRETS.sub("***", plain.replace(self._settings.key, "***"))[:200].strip() or "no reason given"

    # -- records ------------------------------------------------------------------------------------------------------

    def _read_records(self, data: bytes, at: int) -> int:
        """Where the whole records end that were read."""
        try:
            if not self._version:
                at = self._read_metadata(data, at)
            if self._version:
                for run in dbn.runs(data, at):
                    self._read_run(data, run)
                    at = run.stop
                    if self._ended is not None:
                        break
        except dbn.NotDbn as error:
            self._broken(str(error))
        return at

    def _read_metadata(self, data: bytes, at: int) -> int:
        head = dbn.metadata_size(data, at)
        if head is None:
            return at
        version, size = head
        if version not in dbn.VERSIONS:
            self._ended = FeedRefused(f"Databento: version {version} of its encoding; {dbn.VERSIONS} are known")
        elif size > _LARGEST_METADATA:
            self._broken(f"metadata of {size} bytes")
        elif len(data) - at >= size:
            self._version = version
            return at + size
        return at

    def _read_run(self, data: bytes, run: dbn.Run) -> None:
        match run.rtype:
            case dbn.RType.TRADE:
                records = dbn.trades(data, run)
                if records is None:
                    self._quarantine_short(data, run)
                else:
                    self._read_trades(records)
            case dbn.RType.SYMBOL_MAPPING:
                self._read_mappings(data, run)
            case dbn.RType.SYSTEM:
                self._each(data, run, self._read_system)
            case dbn.RType.ERROR:
                self._each(data, run, self._read_error)
            case dbn.RType.STATUS:
                self._each(data, run, self._read_status)
            case _:
                self.quarantine.add("unknown_type", f"record of type {run.rtype}", count=run.count)

    def _each(self, data: bytes, run: dbn.Run, read: Callable[[bytes], bool]) -> None:
        for at in range(run.start, run.stop, run.size):
            if self._ended is None and not read(data[at : at + run.size]):
                self._quarantine_short(data, run, count=1)

    def _quarantine_short(self, data: bytes, run: dbn.Run, *, count: int | None = None) -> None:
        sample = data[run.start : run.start + run.size].hex()
        self.quarantine.add("short_record", sample, count=run.count if count is None else count)

    def _read_trades(self, records: dbn.Trades) -> None:
        self.ready = True
        symbol = self._instruments.codes_of(records["instrument_id"])
        price, size, ts_recv = records["price"], records["size"], records["ts_recv"]
        reliable = (ts_recv != dbn.UNDEFINED_TIME) & (records["flags"] & dbn.UNRELIABLE_TS_RECV == 0)
        times = np.where(reliable, ts_recv, records["ts_event"]).astype(np.int64)  # what is too large is negative now
        wrong = {
            "unmapped": symbol == _UNMAPPED,
            "symbol": symbol == _UNUSABLE,
            "test_symbol": symbol == _TEST,
            "action": records["action"] != ord("T"),
            "ts_ns": ~is_time(times, np.array([self._arrived_ns])),
            "price": (price <= 0) | (price > _HIGHEST_PRICE),
            "size": size == _UNDEFINED_SIZE,
        }
        keep = ~np.logical_or.reduce(list(wrong.values()))
        if not keep.all():
            self._leave_out(records, wrong)
            if not keep.any():
                return
            records, symbol, times = records[keep], symbol[keep], times[keep]
        if self._skipped_from_ns is not None:
            self._gaps.append(Gap(self._skipped_from_ns, max(int(times[0]), self._skipped_from_ns) + 1, "slow reading"))
            self._skipped_from_ns = None
        self._last_ns = max(self._last_ns, int(times.max()))
        publisher, sequence = records["publisher_id"], records["sequence"].astype(np.int64)
        self._add_rows(
            symbol=symbol,
            condition=np.full(len(records), self._regular),
            ts_ns=times,
            price=records["price"] / dbn.PRICES_A_DOLLAR,
            size=records["size"].astype(np.float64),
            exchange=_letters_by_publisher()[publisher],
            trade_id=np.where(sequence != 0, publisher.astype(np.int64) << 32 | sequence, 0),
        )

    def _add_rows(self, **columns: Any) -> None:
        n = len(columns["ts_ns"])
        self._rows.append({name: columns.get(name, np.zeros(n, np.int64)) for name in ROW_COLUMNS})

    def _leave_out(self, records: dbn.Trades, wrong: Mapping[str, Bool]) -> None:
        """Count each record that is wrong once, by the first reason."""
        left = np.ones(len(records), np.bool_)
        for reason, bad in wrong.items():
            rows = np.flatnonzero(bad & left)
            left[rows] = False
            if not len(rows):
                continue
            if reason == "test_symbol":
                self._notes[reason] += len(rows)
            else:
                sample = dict(zip(dbn.TRADE.names or (), records[rows[0]].tolist(), strict=True))
                self.quarantine.add(reason, sample, count=len(rows))

    def _read_mappings(self, data: bytes, run: dbn.Run) -> None:
        pieces = (data[at : at + run.size] for at in range(run.start, run.stop, run.size))
        mappings = [mapping for piece in pieces if (mapping := dbn.read_mapping(piece, self._version)) is not None]
        if len(mappings) < run.count:
            self._quarantine_short(data, run)
            return
        self.ready = True
        state = np.array([self._judged(mapping) for mapping in mappings], np.int64)
        usable = np.flatnonzero(state == 0)
        state[usable] = self._symbols.encode([mappings[i].symbol for i in usable.tolist()])
        ids = np.array([mapping.instrument_id for mapping in mappings], np.uint32)
        if not self._instruments.put(ids, state):
            self.quarantine.add("too_many_instruments", mappings[-1], count=len(mappings))

    def _judged(self, mapping: dbn.Mapping) -> int:
        """0 for a symbol that can be one, else why its trades are left out."""
        name = mapping.symbol
        if self._universe is not None and name not in self._universe:
            self.quarantine.add("unknown_symbol", repr(name))
            return _UNUSABLE
        if name in self._known_symbols:
            return 0
        if name in self._test_symbols:
            return _TEST
        if not _SYMBOL.fullmatch(name):
            self.quarantine.add("symbol", repr(name))
            return _UNUSABLE
        if len(self._known_symbols) >= self._settings.most_symbols:
            self.quarantine.add("too_many_symbols", name)
            return _UNUSABLE
        self._known_symbols.add(name)
        return 0

    def _read_system(self, record: bytes) -> bool:
        message = dbn.read_message(record, self._version, dbn.RType.SYSTEM)
        if message is None:
            return False
        name = _SYSTEM_NOTES.get(message.code, "system_message")
        if message.text.lower().startswith("heartbeat"):  # version 1 has no codes
            name = "heartbeat"
        self._notes[name] += 1
        self.ready |= message.code == dbn.SystemCode.SUBSCRIPTION_ACK
        return True

    def _read_error(self, record: bytes) -> bool:
        message = dbn.read_message(record, self._version, dbn.RType.ERROR)
        if message is None:
            return False
        said = self._told(message.text)
        match message.code:
            case dbn.ErrorCode.SKIPPED_RECORDS_AFTER_SLOW_READING:
                if self._skipped_from_ns is None:
                    self._skipped_from_ns = self._last_ns or min(message.ts_ns, self._arrived_ns)
                self._gaps.append(Gap(self._skipped_from_ns, OPEN_END_NS, "slow reading"))
                self._notes["skipped_after_slow_reading"] += 1
            case dbn.ErrorCode.SYMBOL_RESOLUTION_FAILED:
                self.quarantine.add("unresolved_symbol", said)
            case dbn.ErrorCode.CONNECTION_LIMIT_EXCEEDED:
                self._ended = FeedLost(f"Databento: {said}", reason="connection_limit")
            case dbn.ErrorCode.INTERNAL_ERROR:
                self._ended = FeedLost(f"Databento: {said}", reason="closed")
            case (
                dbn.ErrorCode.AUTH_FAILED
                | dbn.ErrorCode.API_KEY_DEACTIVATED
                | dbn.ErrorCode.INVALID_SUBSCRIPTION
                | dbn.ErrorCode.REPLAY_DATA_AGED_OUT
            ):
                self._ended = FeedRefused(f"Databento: {said}")
            case _:
                self.quarantine.add("error_message", said)
        return True

    def _read_status(self, record: bytes) -> bool:
        status = dbn.read_status(record)
        if status is None:
            return False
        kind = _KINDS.get(status.action)
        symbol = self._instruments.codes_of(np.array([status.instrument_id], np.uint32))
        ts_ns = status.ts_event if status.ts_recv == dbn.UNDEFINED_TIME else status.ts_recv
        if kind is None or symbol[0] == _TEST:
            self._notes["status"] += 1
        elif symbol[0] < 0:
            self.quarantine.add("unmapped" if symbol[0] == _UNMAPPED else "symbol", status)
        elif not is_time(np.array([ts_ns]).astype(np.int64), np.array([self._arrived_ns])).all():
            self.quarantine.add("ts_ns", status)
        else:
            reason = dbn.STATUS_REASONS.get(status.reason, str(status.reason))
            self._add_rows(
                symbol=symbol,
                condition=self._conditions.encode([reason]),
                kind=np.array([kind]),
                ts_ns=np.array([ts_ns], np.int64),
                price=np.zeros(1),
                size=np.zeros(1),
                exchange=_letters_by_publisher()[[status.publisher_id]],
            )
        return True


class _Instruments:
    """Instrument ids to codes of symbols, or to a negative reason; kept sorted."""

    def __init__(self) -> None:
        self._ids = np.zeros(0, np.uint32)
        self._codes: I64 = np.zeros(0, np.int64)

    def codes_of(self, ids: Any) -> I64:
        """Shape (len(ids),); `_UNMAPPED` for those that are not known."""
        if not len(self._ids):
            return np.full(len(ids), _UNMAPPED, np.int64)
        at = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        return np.where(self._ids[at] == ids, self._codes[at], _UNMAPPED)

    def put(self, ids: Any, codes: I64) -> bool:
        """What these ids mean from now on; of equal ids the last counts. False, and nothing changed, if that would be
        too many.
        """
        ids, last = np.unique(ids[::-1], return_index=True)
        codes = codes[::-1][last]
        at = np.searchsorted(self._ids, ids)
        known = np.zeros(len(ids), np.bool_)
        inside = at < len(self._ids)
        known[inside] = self._ids[at[inside]] == ids[inside]
        if len(self._ids) + np.count_nonzero(~known) > _MOST_INSTRUMENTS:
            return False
        self._codes[at[known]] = codes[known]
        self._ids = np.insert(self._ids, at[~known], ids[~known])
        self._codes = np.insert(self._codes, at[~known], codes[~known])
        return True
