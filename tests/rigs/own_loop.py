"""A web server in the test's own loop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn


def loopback() -> tuple[socket.socket, int]:
    """A listener on a free port, and the port."""
    listening = socket.create_server(("127.0.0.1", 0))
    return listening, listening.getsockname()[1]


@asynccontextmanager
async def served(config: uvicorn.Config, listening: socket.socket) -> AsyncIterator[None]:
    config.load()
    server = uvicorn.Server(config)
    # Not `server.serve`: it looks for its end ten times a second, and takes the process' signals.
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listening])
    try:
        yield
    finally:
        for listener in server.servers:
            listener.close()
        for connection in list(server.server_state.connections):
            connection.shutdown()
        while server.server_state.connections or server.server_state.tasks:  # noqa: ASYNC110  # uvicorn tells nobody
            await asyncio.sleep(0.001)
