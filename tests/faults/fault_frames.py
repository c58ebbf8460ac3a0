"""Where requests and replies end in a stream of bytes: as much of Redis' and PostgreSQL's protocols as a proxy needs to
lose the reply of one command and no other.
"""

from collections import deque
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple, Protocol

_SSL_REQUEST, _CANCEL_REQUEST, _GSS_REQUEST = 80_877_103, 80_877_102, 80_877_104
_LENGTH = Struct("!i")
_LISTENING = {b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE", b"MONITOR"}


class Request(NamedTuple):
    """What a client asked, or is about to be told."""

    name: str
    """Of Redis the command, of PostgreSQL the first word of the statement or of a reply's tag. In capitals."""
    words: tuple[bytes, ...]
    """Redis: the command and its arguments. PostgreSQL: the statement or tag."""


class Frames(Protocol):
    """One connection, seen from the middle. Each call takes the next bytes and gives back the same bytes, cut behind
    each frame, with the request that this frame is (towards the server) or answers (towards the client), if any. What
    is not a whole frame yet is kept.
    """

    def to_server(self, data: bytes) -> Iterator[tuple[bytes, Request | None]]: ...

    def to_client(self, data: bytes) -> Iterator[tuple[bytes, Request | None]]: ...


class RedisFrames:
    """RESP2. Replies come in the order of commands, except on a connection that subscribed: there only requests are
    told.
    """

    def __init__(self) -> None:
        self._asking, self._answering = _Values(), _Values()
        self._waiting: deque[Request] = deque()
        self._listening = False

    def to_server(self, data: bytes) -> Iterator[tuple[bytes, Request | None]]:
        for frame in self._asking.cut(data):
            words = _resp_words(frame)
            request = Request(words[0].upper().decode(errors="replace"), words) if words else None
            if request is not None:
                self._listening |= words[0].upper() in _LISTENING
                self._waiting.append(request)
            yield frame, request

    def to_client(self, data: bytes) -> Iterator[tuple[bytes, Request | None]]:
        for frame in self._answering.cut(data):
            answered = self._waiting.popleft() if self._waiting else None
            yield frame, None if self._listening else answered


class PostgresFrames:
    """Protocol 3.0 without TLS. A statement is told when it is sent as a simple query or prepared; a reply is told by
    its tag when a statement has been carried out: ``COMMIT``, ``INSERT``, ``SELECT``.
    """

    def __init__(self) -> None:
        self._asking, self._answering = b"", b""
        self._started = False
        self._yes_or_no = 0
        """Answers of a single byte that are still to come."""

    def to_server(self, data: bytes) -> Iterator[tuple[bytes, Request | None]]:
        self._asking += data
        while True:
            typed = 1 if self._started else 0
            if len(self._asking) < typed + 4:
                return
            (length,) = _LENGTH.unpack_from(self._asking, typed)
            end = typed + length
            if len(self._asking) < end:
                return
            frame, self._asking = self._asking[:end], self._asking[end:]
            if not self._started:
                (code,) = _LENGTH.unpack_from(frame, 4)
                if code in {_SSL_REQUEST, _GSS_REQUEST}:
                    self._yes_or_no += 1
                elif code != _CANCEL_REQUEST:
                    self._started = True
                yield frame, None
            elif frame[:1] == b"Q":
                yield frame, _said(frame[5:-1])
            elif frame[:1] == b"P":  # the name of the prepared statement, its text, its types
                yield frame, _said(frame[5:].split(b"\0", 2)[1])
            else:
                yield frame, None

    def to_client(self, data: bytes) -> Iterator[tuple[bytes, Request | None]]:
        self._answering += data
        while self._answering:
            if self._yes_or_no:
                self._yes_or_no -= 1
                end = 1
            elif len(self._answering) < 5:
                return
            else:
                end = 1 + _LENGTH.unpack_from(self._answering, 1)[0]
            if len(self._answering) < end:
                return
            frame, self._answering = self._answering[:end], self._answering[end:]
            yield frame, _said(frame[5:-1]) if frame[:1] == b"C" and end > 5 else None


def _said(text: bytes) -> Request:
    word = text.split(None, 1)[0] if text.split() else b""
    return Request(word.rstrip(b";").upper().decode(errors="replace"), (text,))


class _Values:
    """Values of RESP out of bytes that come in any pieces; where it has looked, it does not look again."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0
        self._open = 1
        """Values that are still to come until the outermost is whole."""

    def cut(self, data: bytes) -> Iterator[bytes]:
        self._data += data
        while (line_end := self._data.find(b"\r\n", self._at)) >= 0:
            kind, after = self._data[self._at], line_end + 2
            n = int(self._data[self._at + 1 : line_end]) if kind in b"$=!*~>%" else 0
            if kind in b"$=!" and n >= 0:
                after += n + 2
            if after > len(self._data):
                return
            self._at = after
            self._open += (max(0, n) * (2 if kind in b"%" else 1) if kind in b"*~>%" else 0) - 1
            if not self._open:
                yield bytes(self._data[:after])
                del self._data[:after]
                self._at, self._open = 0, 1


def _resp_words(frame: bytes) -> tuple[bytes, ...]:
    """The words of a command: an array of texts, or a line as people type it."""
    if frame[:1] != b"*":
        return tuple(frame.split())
    words: list[bytes] = []
    at = frame.find(b"\r\n") + 2
    while at < len(frame):
        line_end = frame.find(b"\r\n", at)
        length = int(frame[at + 1 : line_end])
        words.append(frame[line_end + 2 : line_end + 2 + length])
        at = line_end + 2 + length + 2
    return tuple(words)
