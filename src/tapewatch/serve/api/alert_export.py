"""Alert history as a file, CSV or Parquet, sent while it is read: memory does not grow with it.

Its bounds: rows, two at a time, a minute each, and the store's own bound on a statement. A file that cannot be finished
is cut off, which a client sees because the last chunk is missing.
"""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Request
from fastapi import Query as FromQuery
from fastapi.responses import Response, StreamingResponse
from pydantic import BeforeValidator, Field
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from tapewatch.documents import Alert, known, rfc3339
from tapewatch.ports import AlertMark, AlertQuery
from tapewatch.serve.access import who
from tapewatch.serve.api import API
from tapewatch.serve.api.alerts import AlertFilter, asked_for
from tapewatch.serve.api.query import plain_number
from tapewatch.serve.problems import PROBLEMS
from tapewatch.serve.services import Services

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ROWS = 100_000
MOST_AT_ONCE = 2
_EXPORT_S = 60.0
_PAGE = 1_000
_AGAIN_S = 5
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_COLUMNS = (
    "alert_id",
    "fired_at",
    "symbol",
    "rule_id",
    "rule_version",
    "rule_name",
    "price",
    "session",
    "severity",
    "tags",
    "values",
    "note",
    "acknowledged_at",
    "my_note",
)
Row = tuple[Alert, AlertMark | None]


class ExportQuery(AlertFilter):
    format: Literal["csv", "parquet"]
    limit: Annotated[int, Field(ge=1, le=MOST_ROWS), BeforeValidator(plain_number)] = 10_000


class _Writer(Protocol):
    """Rows to bytes, piece by piece."""

    def write(self, rows: Sequence[Row]) -> bytes: ...

    def end(self) -> bytes: ...


class _Export(StreamingResponse):
    """It ends in time, although the client may read slowly or not at all."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with asyncio.timeout(_EXPORT_S):
            await super().__call__(scope, receive, send)


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix=f"{API}/alerts", tags=["alerts"], responses=PROBLEMS)
    under_way = _Places(MOST_AT_ONCE)

    async def pages(query: AlertQuery, user_id: str, most: int) -> AsyncIterator[list[Row]]:
        left = most
        while left:
            alerts = await services.store.alerts(query._replace(limit=min(_PAGE, left)))
            marks = await services.store.alert_marks(user_id, [alert.alert_id for alert in alerts])
            yield [(alert, marks.get(alert.alert_id)) for alert in alerts]
            left -= len(alerts)
            if len(alerts) < _PAGE:
                return
            last = alerts[-1].fired_at_ns, alerts[-1].alert_id
            query = query._replace(after=last) if query.oldest_first else query._replace(before=last)

    @routes.get(
        "/export",
        response_class=Response,
        responses={
            200: {
                "description": "The alerts as a file",
                "content": {
                    "text/csv": {"schema": {"type": "string"}},
                    "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
                },
            }
        },
        description=f"The alerts that the list would show, up to {MOST_ROWS:,}. In CSV a text that a spreadsheet would "
        "take for a formula has a quote before it.",
    )
    async def export_alerts(request: Request, query: Annotated[ExportQuery, FromQuery()]) -> Response:
        if under_way.full:
            headers = {"Retry-After": str(_AGAIN_S)}
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "other exports are under way", headers=headers)
        asking = who(request)
        found = pages(asked_for(query, asking), asking.user_id, query.limit)
        first = await anext(found)  # what is wrong with the question shows before the answer begins
        make, media_type = (_Csv, "text/csv; charset=utf-8") if query.format == "csv" else (_Parquet, _PARQUET)
        disposition = f'attachment; filename="alerts.{query.format}"'
        return _Export(
            under_way.taken(_written(make, first, found)),
            media_type=media_type,
            headers={"Content-Disposition": disposition},
        )

    return routes


_PARQUET = "application/vnd.apache.parquet"


class _Places:
    """So many at once."""

    def __init__(self, most: int) -> None:
        self._free = most

    @property
    def full(self) -> bool:
        return self._free <= 0

    @contextmanager
    def _one(self) -> Iterator[None]:
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def taken(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        with self._one():
            async for piece in pieces:
                yield piece


async def _written(
    make: Callable[[], _Writer], first: list[Row], rest: AsyncIterator[list[Row]]
) -> AsyncIterator[bytes]:
    """In a thread, for a page takes some milliseconds and the first Parquet file half a second."""
    writer = await asyncio.to_thread(make)
    yield await asyncio.to_thread(writer.write, first)
    async for page in rest:
        yield await asyncio.to_thread(writer.write, page)
    yield await asyncio.to_thread(writer.end)


class _Csv:
    def __init__(self) -> None:
        self._begun = False

    def write(self, rows: Sequence[Row]) -> bytes:
        text = io.StringIO()
        lines = csv.writer(text)
        if not self._begun:
            lines.writerow(_COLUMNS)
            self._begun = True
        for alert, mark in rows:
            lines.writerow([_cell(value) for value in _cells(alert, mark)])
        return text.getvalue().encode()

    def end(self) -> bytes:
        return b""


def _cells(alert: Alert, mark: AlertMark | None) -> tuple[Any, ...]:
    values = {name: known(value) for name, value in alert.values.items()}
    return (
        alert.alert_id,
        rfc3339(alert.fired_at_ns),
        alert.symbol,
        alert.rule_id,
        alert.rule_version,
        alert.rule_name,
        known(alert.price),
        alert.session,
        alert.severity,
        " ".join(alert.tags),
        json.dumps(values, ensure_ascii=False),
        alert.note,
        None if mark is None or mark.acknowledged_at_ns is None else rfc3339(mark.acknowledged_at_ns),
        "" if mark is None else mark.note,
    )


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


class _Sink(io.RawIOBase):
    """A file that is only appended to, taken away piece by piece."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, piece: Any) -> int:
        self._pieces.append(bytes(piece))
        self._size += len(self._pieces[-1])
        return len(self._pieces[-1])

    def taken(self) -> bytes:
        """What came since the last time."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


class _Parquet:
    def __init__(self) -> None:
        import pyarrow as pa  # 70 MB that a process without exports does without
        from pyarrow import parquet

        instant = pa.timestamp("ns", tz="UTC")
        kinds = {
            "fired_at": instant,
            "acknowledged_at": instant,
            "rule_version": pa.int64(),
            "price": pa.float64(),
            "tags": pa.list_(pa.string()),
            "values": pa.map_(pa.string(), pa.float64()),
        }
        self._schema = pa.schema([(name, kinds.get(name, pa.string())) for name in _COLUMNS])
        self._sink = _Sink()
        self._file = parquet.ParquetWriter(pa.PythonFile(self._sink, "w"), self._schema, compression="zstd")

    def write(self, rows: Sequence[Row]) -> bytes:
        if rows:
            self._file.write_table(self._table(rows))
        return self._sink.taken()

    def end(self) -> bytes:
        self._file.close()
        return self._sink.taken()

    def _table(self, rows: Sequence[Row]) -> "pa.Table":
        import pyarrow as pa

        columns: list[list[Any]] = [list(column) for column in zip(*(_values(*row) for row in rows), strict=True)]
        return pa.table(
            [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)],
            schema=self._schema,
        )


def _values(alert: Alert, mark: AlertMark | None) -> tuple[Any, ...]:
    cells = list(_cells(alert, mark))
    cells[1] = alert.fired_at_ns
    cells[9] = list(alert.tags)
    cells[10] = [(name, known(value)) for name, value in alert.values.items()]
    cells[12] = None if mark is None else mark.acknowledged_at_ns
    return tuple(cells)
