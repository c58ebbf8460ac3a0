"""A replay server that speaks Databento's live protocol: lines over TCP, then DBN records, version 3.

What it makes of a tape:

- Trades only, as the schema ``trades`` has them; ``status`` may be subscribed to and stays silent. Cancels and
  corrections are not sent: Databento has none.
- `sequence` is the row's place in the tape, counted from 1. Fractions of a share are cut off; times are the tape's.
- The publisher is that of the trade's exchange in the dataset, else the dataset's consolidated one, else that of
  EQUS.ALL.
- A symbol is mapped to its instrument id before its first trade.
- `start` is understood and rewinds nothing; the tape goes on from where it is.
- A malformed frame is a whole record, so that those behind it can be found.
"""

import asyncio
import hmac
import math
import secrets
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tapewatch.clock import SystemClock
from tapewatch.engine.columns import I64, U16, Batch, Bool, Kind
from tapewatch.feeds import dbn
from tapewatch.feeds.databento import ALL_SYMBOLS, SYMBOLS_A_LINE, publishers, venue_letters
from tapewatch.feeds.servers.access import Credentials, address, listen, reset
from tapewatch.feeds.servers.faults import Act, Drop, Faults, Frame, Garble, Send, Stall
from tapewatch.feeds.servers.play import Piece, Player, Sent, Start, WhileAway
from tapewatch.ports import Clock

SCHEMAS = ("trades", "status")
VERSION = "0.7.2"
"""Of the gateway, as the greeting has it."""
_HELLO_S = 30.0
_PATIENCE_S = 30.0
_GOODBYE_S, _LOOKS = 1.0, 200
_BEHIND_S = 1.0
"""A client that takes longer than this for a frame is warned."""
_HEARTBEAT_S = 30
_LONGEST_LINE = 1 << 16
_CONSOLIDATED = ("EQUS", "DBEQ")
_LAST = 0x80
_TRADE_OUT = np.dtype([*dbn.TRADE.descr, ("ts_out", "<u8")])
_REFUSALS: Mapping[int, str] = {
    401: "Authentication failed.",
    403: "Authentication failed.",
    429: "User has reached their open connection limit.",
}


class _EndedError(Exception):
    """The server ended the connection."""


@dataclass(slots=True)
class _Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    sent: Sent
    dataset: str = ""
    ts_out: bool = False
    heartbeat_s: float = _HEARTBEAT_S
    symbols: set[str] = field(default_factory=set)
    """Of the schema ``trades``."""
    everything: bool = False
    asked: list[str] = field(default_factory=list)
    """Schemas whose subscription is not acknowledged yet."""
    replays: bool = False
    started: bool = False
    mapped: Bool = field(default_factory=lambda: np.zeros(0, np.bool_))
    said_s: float = 0.0
    muted: bool = False


class DatabentoServer:
    """``async with`` it: then it listens at `host` and `port`, and `player` and `sent` tell how far it is.

    A client that does not take a frame within 30 s is cut, or sooner if the fault ``slow-consumer`` says so. The fault
    ``refuse`` answers the authentication; its status 401 or 403 refuses the key, 429 the number of connections, any
    other is an internal error.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        speed: float = math.inf,
        start: Start = "on-subscribe",
        while_away: WhileAway = "go-on",
        faults: Sequence[str] = (),
        seed: int = 1,
        credentials: Credentials | None = None,
        keep_rows: bool = True,
        clock: Clock | None = None,
    ) -> None:
        """`keep_rows`: remember in `sent` which rows went out. `Invalid` for a file that is no tape, `ConfigError` for
        a fault that is none.
        """
        self.faults = Faults(faults, seed=seed)
        self.credentials = credentials or Credentials()
        self._clock = clock or SystemClock()
        self.player = Player(paths, speed=speed, start=start, while_away=while_away, clock=self._clock)
        self.sent: list[Sent] = []
        """One for each connection that was accepted, in the order of time."""
        self.refused = 0
        self.host, self.port = host, port
        self.url = ""
        self._keep_rows = keep_rows
        self._clients: list[_Client] = []
        self._accepted = 0
        self._server: asyncio.Server | None = None
        self._conversations: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> Self:
        listener = listen(self.host, self.port)
        self.port = listener.getsockname()[1]
        self.url = f"tcp://{address(listener)}"
        self._server = await asyncio.start_server(self._handle, sock=listener, limit=_LONGEST_LINE)
        await self.player.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._conversations.values():
            writer.transport.abort()
        await asyncio.gather(*self._conversations, return_exceptions=True)
        await self.player.__aexit__(*error)

    # -- a connection -------------------------------------------------------------------------------------------------

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._accepted += 1
        status = self.faults.refuses(self._accepted)
        client = _Client(reader, writer, Sent(len(self.sent) + 1))
        if status is None:
            self.sent.append(client.sent)
        else:
            self.refused += 1
        conversation: Any = asyncio.current_task()
        self._conversations[conversation] = writer
        try:
            await self._authenticate(client, status)
            async with asyncio.TaskGroup() as group:
                await self._converse(client, group)
        except* (_EndedError, OSError):
            pass
        finally:
            del self._conversations[conversation]
            if client in self._clients:
                self._clients.remove(client)
            writer.close()

    async def _authenticate(self, client: _Client, status: int | None) -> None:
        challenge = secrets.token_hex(16)
        await self._send(client, f"lsg_version={VERSION}\ncram={challenge}\n".encode())
        said = await self._line(client, within_s=_HELLO_S)
        problem = self._problem(client, challenge, said)
        if status is not None:
            problem = _REFUSALS.get(status, "Internal error.")
        if problem:
            client.sent.ended = "refused"
            await self._send(client, f"success=0|error={problem}\n".encode())
            raise _EndedError
        limit = self.faults.max_connections
        if limit is not None and len(self._clients) >= limit:
            client.sent.ended = "connection_limit"
            await self._send(client, f"success=0|error={_REFUSALS[429]}\n".encode())
            raise _EndedError
        self._clients.append(client)
        await self._send(client, f"success=1|session_id={client.sent.client}\n".encode())

    def _problem(self, client: _Client, challenge: str, said: Mapping[str, str]) -> str:
        """Why this authentication is refused; empty if it is not. Sets what the client asked for."""
        client.dataset = said.get("dataset", "")
        client.ts_out = said.get("ts_out") == "1"
        heartbeat = said.get("heartbeat_interval_s", str(_HEARTBEAT_S))
        answer, _, _ = said.get("auth", "").partition("-")
        if not answer:
            return "Authentication failed."
        key = self.credentials.key
        if key is not None:
            expected = sha256(f"{challenge}|{key}".encode()).hexdigest()
            if not hmac.compare_digest(expected.encode(), answer.encode()):
                return "Authentication failed."
        if client.dataset not in publishers():
            return "Unknown dataset."
        if self.faults.no_plan:
            return f"Not entitled to live data of {client.dataset}."
        if said.get("encoding", "dbn") != "dbn" or said.get("compression", "none") != "none":
            return "Only encoding=dbn and compression=none are served here."
        if not heartbeat.isdecimal() or not 1 <= int(heartbeat) <= 1800:
            return "Invalid heartbeat interval."
        client.heartbeat_s = int(heartbeat)
        return ""

    async def _line(self, client: _Client, *, within_s: float | None = None) -> Mapping[str, str]:
        try:
            async with asyncio.timeout(within_s):
                line = await client.reader.readline()
        except (TimeoutError, ValueError):
            client.sent.ended = "protocol"
            raise _EndedError from None
        if not line.endswith(b"\n"):
            raise _EndedError
        parts = (part.partition("=") for part in line.decode("utf-8", "replace").strip().split("|"))
        return {name: value for name, _, value in parts}

    async def _converse(self, client: _Client, group: asyncio.TaskGroup) -> None:
        while True:
            said = await self._line(client)
            if "schema" in said:
                problem = self._subscribe(client, said)
            elif "start_session" in said and not client.started:
                client.started, problem = True, ""
                now_ns = self._clock.now_ns()
                await self._send(client, dbn.metadata(client.dataset, start_ns=now_ns, ts_out=client.ts_out))
                group.create_task(self._pump(client))
                group.create_task(self._beat(client))
            else:
                problem = "Unknown request."
            if problem:
                client.sent.ended = "invalid_subscription"
                if not client.started:
                    now_ns = self._clock.now_ns()
                    await self._send(client, dbn.metadata(client.dataset, start_ns=now_ns, ts_out=client.ts_out))
                await self._tell_error(client, dbn.ErrorCode.INVALID_SUBSCRIPTION, problem)
                raise _EndedError
            if client.started:
                await self._acknowledge(client)

    def _subscribe(self, client: _Client, said: Mapping[str, str]) -> str:
        """Why this subscription is refused; empty if it is not."""
        names = [name for name in said.get("symbols", "").split(",") if name]
        if said["schema"] not in SCHEMAS:
            return f"Schema {said['schema']} is not served here; there are: {', '.join(SCHEMAS)}."
        if said.get("stype_in", "raw_symbol") != "raw_symbol":
            return "Only stype_in=raw_symbol is served here."
        if not names or len(names) > SYMBOLS_A_LINE:
            return f"A subscription names 1 to {SYMBOLS_A_LINE} symbols."
        client.replays |= "start" in said
        if said["schema"] == "trades":
            client.everything |= ALL_SYMBOLS in names
            client.symbols.update(names)
        limit = self.faults.max_symbols
        if limit is not None and (client.everything or len(client.symbols) > limit):
            return f"More than {limit} symbols."
        if said.get("is_last", "1") == "1":
            client.asked.append(said["schema"])
        return ""

    async def _acknowledge(self, client: _Client) -> None:
        asked, client.asked = client.asked, []
        for schema in asked:
            await self._tell(client, dbn.SystemCode.SUBSCRIPTION_ACK, f"Subscription request for {schema} succeeded")
        if client.replays:
            client.replays = False
            await self._tell(client, dbn.SystemCode.REPLAY_COMPLETED, "Replay completed")

    async def _tell(self, client: _Client, code: dbn.SystemCode, text: str) -> None:
        await self._say(client, dbn.system_record(code, text, ts_ns=self._clock.now_ns()))

    async def _tell_error(self, client: _Client, code: dbn.ErrorCode, text: str) -> None:
        await self._say(client, dbn.error_record(code, text, ts_ns=self._clock.now_ns()))

    async def _say(self, client: _Client, *records: bytes) -> None:
        """Single records, with the time of sending where the client asked for it."""
        now_ns = self._clock.now_ns()
        await self._send(client, b"".join(dbn.with_ts_out(r, now_ns) if client.ts_out else r for r in records))

    async def _send(self, client: _Client, payload: bytes) -> None:
        if client.muted:
            return
        begun = time.monotonic()
        client.writer.write(payload)
        try:
            async with asyncio.timeout(self.faults.slow_after_s or _PATIENCE_S):
                await client.writer.drain()
        except TimeoutError:
            client.sent.ended = "slow_consumer"
            client.muted = True
            reset(client.writer.transport)
            raise _EndedError from None
        client.said_s = time.monotonic()
        if client.started and client.said_s - begun > _BEHIND_S:
            client.sent.counts["slow-reader-warning"] += 1
            await self._tell(client, dbn.SystemCode.SLOW_READER_WARNING, "The client reads too slowly")

    async def _beat(self, client: _Client) -> None:
        while True:
            quiet_s = time.monotonic() - client.said_s
            if quiet_s >= client.heartbeat_s:
                client.sent.counts["heartbeats"] += 1
                await self._tell(client, dbn.SystemCode.HEARTBEAT, "Heartbeat")
                quiet_s = 0.0
            await asyncio.sleep(client.heartbeat_s - quiet_s)

    # -- the tape -----------------------------------------------------------------------------------------------------

    async def _pump(self, client: _Client) -> None:
        """From the start of the session on, until the tape or the connection ends."""
        disturbance = self.faults.disturb(list(_strange()))
        begun = time.monotonic()
        with self.player.listen() as listener:
            async for piece in listener:
                frame = await self._frame(client, piece)
                for act in [] if frame is None else disturbance.take(frame, elapsed_s=time.monotonic() - begun):
                    if isinstance(act, Drop | Stall):
                        listener.done()
                    await self._act(client, act)
                if client.muted:
                    return
            for act in disturbance.flush():
                await self._act(client, act)

    async def _frame(self, client: _Client, piece: Piece) -> Frame | None:
        """The piece's trades that this client wants, once their symbols are mapped."""
        batch = piece.rows.batch
        wanted = np.ones(len(batch.symbols), np.bool_)
        if not client.everything:
            wanted = np.array([name in client.symbols for name in batch.symbols], np.bool_)
        keep = (batch.kind == Kind.TRADE) & ~self.faults.withheld(batch.ts_ns)
        index = np.flatnonzero(keep & wanted[batch.symbol]) if len(batch) else np.zeros(0, np.int64)
        if not len(index):
            return None
        await self._map(client, batch, index)
        times = batch.ts_ns[index]
        places = piece.rows.places[index]
        records = _records(batch, index, places, dataset=client.dataset)
        if client.ts_out:
            timed = np.zeros(len(records), _TRADE_OUT)
            for name in dbn.TRADE.names or ():
                timed[name] = records[name]
            timed["length"], timed["ts_out"] = _TRADE_OUT.itemsize // 4, self._clock.now_ns()
            records = timed
        return Frame(places=places, first_ns=int(times.min()), last_ns=int(times.max()), payload=records.tobytes())

    async def _map(self, client: _Client, batch: Batch, index: I64) -> None:
        if len(client.mapped) < len(batch.symbols):
            client.mapped = np.append(client.mapped, np.zeros(len(batch.symbols) - len(client.mapped), np.bool_))
        fresh = [code for code in np.unique(batch.symbol[index]).tolist() if not client.mapped[code]]
        if fresh:
            client.mapped[fresh] = True
            now_ns = self._clock.now_ns()
            mappings = (dbn.Mapping(code + 1, batch.symbols[code]) for code in fresh)
            await self._say(client, *(dbn.mapping_record(mapping, ts_ns=now_ns) for mapping in mappings))

    async def _act(self, client: _Client, act: Act) -> None:
        counts = client.sent.counts
        match act:
            case Send(frame=frame, fault=fault):
                await self._send(client, _bytes(frame.payload))
                client.sent.note(frame.places, keep=self._keep_rows)
                if fault:
                    counts[fault] += 1
            case Garble(payload=payload):
                counts["malformed"] += 1
                garbled = _bytes(payload)
                await self._say(client, garbled if garbled in set(_strange()) else _wrapped(garbled))
            case Stall(for_s=None):
                counts["stall"] += 1
                client.muted = True
            case Stall(for_s=for_s):
                counts["stall"] += 1
                client.muted = True
                await asyncio.sleep(for_s or 0.0)
                client.muted = False
            case Drop():
                counts["drop"] += 1
                client.sent.ended = "drop"
                await _taken(client.writer)
                reset(client.writer.transport)
                raise _EndedError


def _records(batch: Batch, index: I64, places: I64, *, dataset: str) -> dbn.Trades:
    records = np.zeros(len(index), dbn.TRADE)
    records["length"] = dbn.TRADE.itemsize // 4
    records["publisher_id"] = _publishers_by_letter(dataset)[batch.exchange[index]]
    records["instrument_id"] = batch.symbol[index] + 1
    records["ts_event"] = records["ts_recv"] = batch.ts_ns[index]
    records["price"] = np.rint(batch.price[index] * dbn.PRICES_A_DOLLAR)
    records["size"] = np.minimum(batch.size[index], 2**32 - 2)
    records["action"], records["side"], records["flags"] = ord("T"), ord("N"), _LAST
    records["sequence"] = (places + 1) & 0xFFFFFFFF
    return records


@cache
def _publishers_by_letter(dataset: str) -> U16:
    """Shape (256,): the publisher id for an exchange's letter."""
    letters, own, others = venue_letters(), publishers()[dataset], publishers()["EQUS.ALL"]
    consolidated = next((own[venue] for venue in _CONSOLIDATED if venue in own), None)
    ids: NDArray[np.uint16] = np.full(256, others["EQUS"] if consolidated is None else consolidated, np.uint16)
    for venues in (own,) if consolidated is not None else (others, own):
        for venue, publisher in reversed(venues.items()):
            if venue in letters:
                ids[ord(letters[venue])] = publisher
    ids[ord("T")] = ids[ord("Q")]
    return ids


@cache
def _strange() -> Sequence[bytes]:
    """Whole records that make no sense."""

    def trade(**fields: int) -> bytes:
        record = np.zeros(1, dbn.TRADE)
        record["length"], record["action"] = dbn.TRADE.itemsize // 4, ord("T")
        for name, value in fields.items():
            record[name] = value
        return record.tobytes()

    noon_ns = 1_700_000_000_000_000_000
    return (
        trade(instrument_id=2**32 - 1, price=10**9, size=1, ts_recv=noon_ns),
        trade(instrument_id=1, price=dbn.UNDEFINED_PRICE, size=1, ts_recv=noon_ns),
        trade(instrument_id=1, price=-1, size=1, ts_recv=noon_ns),
        trade(instrument_id=1, price=10**9, size=1, ts_recv=4_102_444_800_000_000_000),
        dbn.mapping_record(dbn.Mapping(2**32 - 2, "A\nB"), ts_ns=noon_ns),
        _wrapped(b"nothing that anybody knows"),
    )


def _wrapped(noise: bytes) -> bytes:
    """As the body of a record of a type that nobody knows."""
    body = noise[: dbn.LARGEST_RECORD - dbn.SMALLEST_RECORD - 8]
    body += bytes(-len(body) % 4)
    return struct.pack("<BBHIQ", (dbn.SMALLEST_RECORD + len(body)) // 4, 0xEE, 0, 0, 0) + body


def _bytes(payload: str | bytes) -> bytes:
    return payload.encode() if isinstance(payload, str) else payload


async def _taken(writer: asyncio.StreamWriter) -> None:
    """Until the other side's system has everything that was sent: a reset destroys what is still on its way."""
    wire = writer.get_extra_info("socket")
    for _ in range(_LOOKS):
        if not writer.transport.get_write_buffer_size() and not _on_its_way(wire):
            return
        await asyncio.sleep(_GOODBYE_S / _LOOKS)


def _on_its_way(wire: Any) -> bool:
    """Whether the system holds bytes that the other side has not confirmed; False where it cannot tell."""
    try:
        import fcntl
        import termios

        return any(fcntl.ioctl(wire.fileno(), termios.TIOCOUTQ, bytes(4)))
    except (ImportError, OSError):
        return False
