"""Deliveries to channels of any kind, and what a failed one says about another try."""

from typing import Protocol

from tapewatch.delivery_documents import Channel, Delivery


class SendFailed(Exception):
    """The receiver did not take it. The text has no secrets, and no words of the receiver."""

    def __init__(self, why: str, *, permanent: bool = False, retry_after_s: float | None = None) -> None:
        """`permanent`: the same would be refused again. `retry_after_s`: what the receiver asks for."""
        super().__init__(why)
        self.permanent, self.retry_after_s = permanent, retry_after_s


class Sender(Protocol):
    async def send(self, channel: Channel, delivery: Delivery) -> None:
        """One attempt, in bounded time; `SendFailed`."""
        ...


class Senders:
    """By the channel's kind."""

    def __init__(self, *, webhook: Sender, others: Sender) -> None:
        self._webhook, self._others = webhook, others

    async def send(self, channel: Channel, delivery: Delivery) -> None:
        await (self._webhook if channel.kind == "webhook" else self._others).send(channel, delivery)
