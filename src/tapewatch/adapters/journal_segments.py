"""The segments of a journal: how entries lie in a file, and what of a folder is whole.

    segment   "TWJ", version of frames, version of messages, three zeros; then frames
    frame     length (4 bytes), CRC-32 of the rest (4), kind (1), number of the head (4), rows of this entry (4),
              rows of the feed (8), the bytes

Numbers are little-endian. A head, which says the same of many batches, stands once in each segment, before the first
entry that has it.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import NamedTuple
from zlib import crc32

from tapewatch.errors import BadBatch
from tapewatch.wire import VERSION

SUFFIX = ".journal"
BEGINNING = b"TWJ" + bytes((1, VERSION, 0, 0, 0))
_FRAME = Struct("<IIBIIq")
_CHECKED_AT = 8
"""Of a frame: where what the checksum covers begins."""
ENTRY, HEAD = 1, 2
_MESSAGE = Struct("<4xIII8x")
"""The frame of a message: the lengths of its note, its head and its body."""

log = logging.getLogger(__name__)


class Frame(NamedTuple):
    kind: int
    head: int
    """Of an entry: which head of the segment is its own, from 1; 0 for none. Of a head: its number."""
    own_rows: int
    rows: int
    content: memoryview
    end: int


@dataclass(slots=True)
class Segment:
    number: int
    path: Path
    size: int = len(BEGINNING)
    rows: int = 0
    """Of batches in it."""
    heads: dict[bytes, int] = field(default_factory=dict)
    """Only of the one that is written."""


def framed(
    kind: int, head: int, own_rows: int, rows: int, content: list[bytes | memoryview]
) -> list[bytes | memoryview]:
    """The frame in parts, ready to be written."""
    length = sum(map(len, content))
    frame = _FRAME.pack(length, 0, kind, head, own_rows, rows)
    crc = crc32(frame[:4])
    for part in (frame[_CHECKED_AT:], *content):
        crc = crc32(part, crc)
    return [frame[:4], crc.to_bytes(4, "little"), frame[_CHECKED_AT:], *content]


def frames(content: memoryview) -> Iterator[Frame]:
    """The frames up to the first that is not whole."""
    if bytes(content[: len(BEGINNING)]) != BEGINNING:
        return
    at = len(BEGINNING)
    while at + _FRAME.size <= len(content):
        length, crc, kind, head, own_rows, rows = _FRAME.unpack_from(content, at)
        end = at + _FRAME.size + length
        if end > len(content) or crc32(content[at + _CHECKED_AT : end], crc32(content[at : at + 4])) != crc:
            return
        yield Frame(kind, head, own_rows, rows, content[at + _FRAME.size : end], end)
        at = end


def parted(message: bytes) -> tuple[memoryview, bytes, memoryview]:
    """What stands before the head of a message, the head, and what follows it."""
    note_size, head_size, _ = _MESSAGE.unpack_from(message)
    head_at = _MESSAGE.size + note_size + -note_size % 8
    view = memoryview(message)
    return view[:head_at], message[head_at : head_at + head_size], view[head_at + head_size :]


def joined(frame: Frame, heads: dict[int, memoryview]) -> bytes:
    """The message, with its head in its place again."""
    if not frame.head:
        return bytes(frame.content)
    if frame.head not in heads:
        raise BadBatch("an entry of the journal whose head is not there")
    note_size, _, _ = _MESSAGE.unpack_from(frame.content)
    head_at = _MESSAGE.size + note_size + -note_size % 8
    return b"".join((frame.content[:head_at], heads[frame.head], frame.content[head_at:]))


# -- opening -----------------------------------------------------------------------------------------------------------


def open_folder(folder: Path) -> list[Segment]:
    """What is whole, oldest first; the rest is removed from the disk."""
    found = sorted((int(path.stem), path) for path in folder.glob(f"*{SUFFIX}") if path.stem.isdecimal())
    segments: list[Segment] = []
    for place, (number, path) in enumerate(found):
        if segments and number != segments[-1].number + 1:
            _drop(folder, [path for _, path in found[place:]], f"segment {number - 1} is missing")
            break
        content = path.read_bytes()
        segment = _checked(number, path, memoryview(content))
        if segment.size:
            segments.append(segment)
        if segment.size == len(content) > 0:
            continue
        newer = [path for _, path in found[place + 1 :]]
        if newer or not _cut_off(content, segment.size):
            _drop(folder, newer, f"{path.name} is damaged at byte {segment.size:,} of {len(content):,}")
        else:
            log.info("the journal %s ended in an entry that was cut off; it is left out", folder)
        if segment.size:
            os.truncate(path, segment.size)
        else:
            path.unlink()
        break
    return segments


def _checked(number: int, path: Path, content: memoryview) -> Segment:
    """The segment up to its last frame that is whole; of no bytes when it does not begin as one."""
    segment = Segment(number, path, 0)
    if bytes(content[: len(BEGINNING)]) == BEGINNING:
        segment.size = len(BEGINNING)
    for frame in frames(content):
        segment.size = frame.end
        segment.rows += frame.own_rows
    return segment


def _cut_off(content: bytes, whole: int) -> bool:
    """Whether what follows the whole frames is the beginning of one."""
    rest = content[whole:]
    if not whole or len(rest) < _FRAME.size:
        return len(rest) < _FRAME.size
    return _FRAME.size + int.from_bytes(rest[:4], "little") > len(rest)


def _drop(folder: Path, paths: list[Path], why: str) -> None:
    dropped = 0
    for path in paths:
        dropped += path.stat().st_size
        path.unlink()
    log.warning("the journal %s: %s; what follows is dropped (%s bytes of newer segments)", folder, why, f"{dropped:,}")
