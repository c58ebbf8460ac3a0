"""What the API is served from. The composition root fills it; routers read it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapewatch.ports import Bus, Clock, HotState, Store
from tapewatch.serve.board_view import BoardView
from tapewatch.serve.gateway import Gateway


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    store: Store
    hot: HotState
    bus: Bus
    clock: Clock
    board: BoardView
    gateway: Gateway
    status: Callable[[], dict[str, Any]]
    """The system status as JSON; NaN becomes null."""
    ready: Callable[[], tuple[bool, str]]
    """Whether requests are answered truthfully now, and the phase of the start ("rehydrating", "running", ...)."""
    origins: frozenset[str] = frozenset()
    """Origins besides the server's own that may change state and open sockets, such as ``http://localhost:5173``."""
    hosts: frozenset[str] = frozenset()
    """Host names (without port) that requests may name; empty means any. Set it when bound to a loopback address: a
    foreign page whose name was made to resolve to 127.0.0.1 sends its own name here."""
    ui: Path = Path(__file__).parent / "ui"
    """The built page."""
