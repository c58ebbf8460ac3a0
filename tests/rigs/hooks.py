"""A receiver of webhooks that speaks TLS on this machine, and names that lead where a test says."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network

import trustme

from tapewatch.channels.addresses import Addresses

NAME = "hooks.example.com"
OK = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"


def answer(status: int, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status} Of a test", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@dataclass
class Names:
    """A resolver; each question takes the next of the answers, and the last one stays."""

    answers: dict[str, list[Sequence[str]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def resolve(self, host: str, _port: int) -> Sequence[str]:
        self.asked.append(host)
        answers = self.answers.get(host, [()])
        return answers.pop(0) if len(answers) > 1 else answers[0]


@dataclass
class Receiver:
    """What came, each as (headers with small letters, body); what is answered, the last for ever."""

    port: int = 0
    answers: list[bytes] = field(default_factory=lambda: [OK])
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    server_names: list[str | None] = field(default_factory=list)
    connections: int = 0
    hangs: bool = False
    pours: bool = False
    """Answers without an end."""
    poured: int = 0
    drips: bool = False
    """Answers, and again, and again."""
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {"request": head[0]}
            for line in filter(None, head[1:]):
                name, _, value = line.partition(": ")
                headers[name.lower()] = value
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.requests.append((headers, body))
            self.came.set()
            if self.hangs:
                await asyncio.sleep(60)
            writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
            while self.drips:
                await writer.drain()
                await asyncio.sleep(0.02)
                writer.write(self.answers[0])
            while self.pours:
                writer.write(b"x" * 65_536)
                self.poured += 65_536
                await writer.drain()
            await writer.drain()
        except (OSError, EOFError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def server_tls(authority: trustme.CA, name: str) -> ssl.SSLContext:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(server)
    return server


def make_tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's for `NAME`, and a client's that trusts it."""
    authority = trustme.CA()
    server = server_tls(authority, NAME)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@asynccontextmanager
async def receiving(tls: ssl.SSLContext) -> AsyncIterator[Receiver]:
    receiver = Receiver()

    def named(_socket: object, name: str | None, _context: ssl.SSLContext) -> None:
        receiver.server_names.append(name)

    tls.sni_callback = named
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        await receiver.serve(reader, writer)
        running.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def here(names: Names, *networks: str) -> Addresses:
    """As an operator who allows this machine."""
    return Addresses(tuple(ip_network(network) for network in networks or ("127.0.0.0/8",)), resolve=names.resolve)
