"""What the API is served from. The composition root fills it; routers read it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tapewatch.channels.addresses import Addresses
from tapewatch.documents import Alert, Rule
from tapewatch.ports import Bus, Clock, HotState, Store
from tapewatch.serve.access import Accounts
from tapewatch.serve.board_view import BoardView
from tapewatch.serve.explanations import Explanations
from tapewatch.serve.gateway import Gateway
from tapewatch.serve.openid_sign_in import OpenIdProvider
from tapewatch.serve.rate_limits import RateLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRunReport:
    """What a rule would have done on the stored tape."""

    fires: Mapping[str, int]
    """Date of each trading day of the tape -> alerts."""
    symbols: int
    """That it fired for."""
    symbols_share: float
    """Of the tape's symbols, those that it fired for; NaN when there are none."""
    examples: Sequence[Alert]
    too_broad: str
    """Why, such as "fires 900 times a day"; empty when it is not."""
    measured_s: float
    """Processor time that the rule, alone, took for the whole tape; NaN when nobody measured it."""
    seconds: float
    """That the dry run took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    store: Store
    accounts: Accounts
    """Who is let in."""
    hot: HotState
    bus: Bus
    clock: Clock
    board: BoardView
    gateway: Gateway
    status: Callable[[], dict[str, Any]]
    """The system status as JSON; NaN becomes null."""
    ready: Callable[[], tuple[bool, str]]
    """Whether requests are answered truthfully now, and the phase of the start ("rehydrating", "running", ...)."""
    explanations: Explanations
    dry_run: Callable[[list[Rule]], Awaitable[DryRunReport]] | None = None
    """What one rule would have done; None where there is no tape. It leaves the event loop alone while it works, and
    when it is cancelled its work ends with it."""
    origins: frozenset[str] = frozenset()
    """Origins besides the server's own that may change state and open sockets, such as ``http://localhost:5173``."""
    hosts: frozenset[str] = frozenset()
    """Host names (without port) that requests may name; empty means any. Set it when bound to a loopback address: a
    foreign page whose name was made to resolve to 127.0.0.1 sends its own name here."""
    foreign_origins: frozenset[str] = frozenset()
    """Origins whose pages may read and write over REST with a token in `Authorization`, never with a cookie (CORS)."""
    limits: RateLimits | None = None
    """How often one user and one address may ask; None: as often as they like."""
    addresses: Addresses = field(default_factory=Addresses)
    """Which hosts channels may be sent to."""
    exports_metrics: bool = True
    """Whether ``/metrics`` is here. Not where it has a port of its own, which need not be as open as this one."""
    openid: OpenIdProvider | None = None
    """Through whom people may sign in, besides their passwords."""
    ui: Path = Path(__file__).parent / "ui"
    """The built page."""
