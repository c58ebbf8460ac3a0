"""Entries that arrive twice. A proxy cannot make duplicates of a request; a writer that comes back can: it takes a
stream over, as the product's writers do after a crash, and publishes again what is on it already.
"""

from collections.abc import Callable, Sequence

from fault_frames import Request

from tapewatch.errors import LeaseLost
from tapewatch.ports import Bus, Entry, Position
from tapewatch.wire import MAGIC


async def redeliver(bus: Bus, stream: str, *, newest: int) -> list[Position]:
    """Take the stream over and publish its newest entries once more, in their order; says where they stand now.

    Whoever wrote the stream is fenced by it, and must take it over again.
    """
    await bus.take_over(stream)
    entries = [entry for _, entry in await bus.newest(stream, newest)]
    return await publish_again(bus, stream, entries)


async def publish_again(bus: Bus, stream: str, entries: Sequence[Entry]) -> list[Position]:
    """Entries that a writer remembers from an earlier life."""
    return [await bus.publish(stream, entry) for entry in entries]


async def is_fenced(writer: Bus, stream: str, entry: Entry) -> bool:
    """Whether a writer that was overtaken is refused; False means that it wrote beside the one that lives."""
    try:
        await writer.publish(stream, entry)
    except LeaseLost:
        return True
    return False


def publishes(topic: str = "") -> Callable[[Request], bool]:
    """For `Proxy.lose_reply`: whether a request to Redis appends an entry to a stream of that topic, or of any."""

    def matching(request: Request) -> bool:
        to = topic.encode() + (b":" if topic else b"")
        keyed = any(word.startswith(to) and b":{" in word[:64] for word in request.words)
        return keyed and request.name != "XREAD" and any(word.startswith(MAGIC) for word in request.words)

    return matching
