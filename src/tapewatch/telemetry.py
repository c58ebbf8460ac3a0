"""What the product says about itself: every Prometheus metric it exports, and how its logs look.

This module declares; it measures nothing. The code that does a thing counts it. Names are a public interface:
dashboards and alarms rely on them.
"""

import io
import logging
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, TextIO

import structlog
from prometheus_client import Counter, Gauge, Histogram
from structlog.dev import plain_traceback
from structlog.typing import EventDict, ExcInfo, Processor

_FINE = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_COARSE = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that is being answered; what is logged meanwhile carries it."""

SCAN_CYCLE_SECONDS = Histogram("scan_cycle_seconds", "One scan of all rules over one partition", buckets=_FINE)
TICK_PROCESSING_LATENCY_SECONDS = Histogram(
    "tick_processing_latency_seconds", "From a batch's arrival at ingest to its end in the scanner", buckets=_COARSE
)
ALERT_DELIVERY_LATENCY_SECONDS = Histogram(
    "alert_delivery_latency_seconds",
    "From the arrival of the trades that led to an alert to its frame being handed to a socket",
    buckets=_COARSE,
)
CONSUMER_LAG = Gauge("consumer_lag", "Entries of the stream that the reader has not handled yet", ("role", "partition"))
STREAM_ENTRIES_LOST_TOTAL = Counter(
    "stream_entries_lost_total",
    "Entries that a reader could not read, or that went before a reader reached them",
    ("why",),
)
WORKER_QUEUE_DEPTH = Gauge("worker_queue_depth", "Items waiting in a bounded queue", ("queue",))
CIRCUIT_OPEN = Gauge("circuit_open", "1 while a server that is away is not even asked", ("of",))
TICKS_TOTAL = Counter("ticks_total", "Rows written to the tape", ("feed",))
FEED_RUNNING = Gauge("feed_running", "1 while the provider's data flow", ("feed", "role"))
DUPLICATE_TRADES_TOTAL = Counter("duplicate_trades_total", "Trades left out because they had come before", ("feed",))
CONFLICTING_TRADES_TOTAL = Counter(
    "conflicting_trades_total", "Those of them with another price, size or time than the first", ("feed",)
)
ALERTS_EMITTED_TOTAL = Counter("alerts_emitted_total", "Alerts that the scanner published")
ALERTS_DELIVERED_TOTAL = Counter("alerts_delivered_total", "Alert frames handed to a socket, one a client")
DELIVERIES_TOTAL = Counter("deliveries_total", "Deliveries to channels, by what became of them", ("state",))
ERRORS_TOTAL = Counter("errors_total", "Failures that were survived, by the place that survived them", ("where",))
FEED_CONNECTS_TOTAL = Counter("feed_connects_total", "Connections on which the provider served us", ("feed",))
FEED_LOSSES_TOTAL = Counter("feed_losses_total", "Connections to a provider that ended or failed", ("feed", "reason"))
FEED_OVERFLOW_FRAMES_TOTAL = Counter(
    "feed_overflow_frames_total", "Frames dropped because they came faster than they could be decoded", ("feed",)
)
HTTP_REQUESTS_TOTAL = Counter("http_requests_total", "Answered requests", ("method", "path", "status"))
WEBSOCKET_CONNECTIONS = Gauge("websocket_connections", "Open WebSocket connections")
WEBSOCKET_ENDINGS_TOTAL = Counter("websocket_endings_total", "Connections that the gateway ended, by code", ("code",))
WEBSOCKET_RESUMES_TOTAL = Counter(
    "websocket_resumes_total", "Clients that came back, by where what they missed came from", ("recovered",)
)


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _escaped(_logger: Any, _method: str, entry: EventDict) -> EventDict:
    return {name: _printable(value) if isinstance(value, str) else value for name, value in entry.items()}


def _moved_in(stream: TextIO, exc_info: ExcInfo) -> None:
    """The text of an exception may have any lines in it."""
    told = io.StringIO()
    plain_traceback(told, exc_info)
    stream.writelines(f"\n    {_printable(line)}" for line in told.getvalue().splitlines())


def _named(_logger: object, _method: str, entry: EventDict) -> EventDict:
    if name := REQUEST_ID.get():
        entry["request_id"] = name
    return entry


def configure_logging(*, json: bool, level: int = logging.INFO) -> None:
    """Logs to stderr, structlog's and the standard library's alike: JSON lines, or text for a person. An entry begins a
    line and nothing within it can begin another, whatever somebody sent who would like to write a log of their own.
    """
    shared: Sequence[Processor] = (
        _named,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    )
    # Plain, because structlog's own choice prints local variables: slow, and some of them are nobody's business.
    rendering: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if json
        else [_escaped, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_moved_in)]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
