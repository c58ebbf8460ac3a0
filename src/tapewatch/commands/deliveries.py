"""`tapewatch deliveries`: what became of alerts on their way to channels, and one more try, of a running server."""

import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any, get_args
from urllib.parse import quote

import typer

from tapewatch.commands.terminal import JsonFlag, progress, run
from tapewatch.errors import ConfigError, NotFound, VersionConflict

if TYPE_CHECKING:  # the client waits until a command runs
    from tapewatch.running_server import RunningServer

app = typer.Typer(help="What became of alerts on their way to channels.", no_args_is_help=True)

Url = Annotated[str, typer.Option("--url", help="A running server.")]
ChannelId = Annotated[str | None, typer.Option("--channel", help="Only those of this channel.", metavar="ID")]
_HERE = "http://127.0.0.1:8000"
_PAGE = 500
_MOST = 100_000


@app.command("list")
def list_deliveries(
    state: Annotated[str | None, typer.Option(help="pending, held, digested, sent or dead.")] = None,
    channel: ChannelId = None,
    limit: Annotated[int, typer.Option(help="At most so many, the newest.")] = 100,
    url: Url = _HERE,
    as_json: JsonFlag = False,
) -> None:
    """Show deliveries, newest first."""
    from tapewatch.delivery_documents import DeliveryState

    states = get_args(DeliveryState)
    if state is not None and state not in states:
        raise ConfigError(f"--state: {state!r} is none of: {', '.join(states)}")
    if not 1 <= limit <= _MOST:
        raise ConfigError(f"--limit: {limit} is not between 1 and {_MOST}")
    items: list[Any] = []

    async def work(server: "RunningServer") -> None:
        query = _query(state=state, channel_id=channel, limit=min(limit, _PAGE))
        async for page in server.pages("deliveries", **query):
            items.extend(page[: limit - len(items)])
            if len(items) >= limit:
                return

    _ask(url, work)
    if as_json:
        print(json.dumps({"deliveries": items}))
        return
    for line in _readable(url, lambda: _lines(items)):
        print(line)


@app.command("replay")
def replay_deliveries(
    delivery_id: Annotated[str | None, typer.Argument(help="As `deliveries list` shows it.", metavar="[ID]")] = None,
    dead: Annotated[bool, typer.Option("--dead", help="All dead letters.")] = False,
    channel: ChannelId = None,
    url: Url = _HERE,
    as_json: JsonFlag = False,
) -> None:
    """Send again what is dead or was sent, with the same Idempotency-Key."""
    if dead == (delivery_id is not None):
        raise ConfigError("name one delivery, or give --dead for all dead letters")
    if channel is not None and not dead:
        raise ConfigError("--channel goes with --dead")
    again: list[str] = []

    async def work(server: "RunningServer") -> None:
        if delivery_id is not None:
            await server.send("POST", _replay_of(delivery_id))
            again.append(delivery_id)
            return
        wanted = _query(state="dead", channel_id=channel, limit=_PAGE)
        found = [page async for page in server.pages("deliveries", **wanted)]
        ids = _readable(url, lambda: [str(item["delivery_id"]) for page in found for item in page])
        with progress("dead letters") as advance:
            for place, each in enumerate(ids, start=1):
                try:
                    await server.send("POST", _replay_of(each))
                    again.append(each)
                except (NotFound, VersionConflict):  # somebody else was first, or it has expired
                    pass
                advance(place, len(ids))

    _ask(url, work)
    if as_json:
        print(json.dumps({"replayed": again}))
    elif dead:
        print(f"{len(again):,} dead letter{'s' * (len(again) != 1)} will be sent again")
    else:
        print(f"{delivery_id} will be sent again")


def _replay_of(delivery_id: str) -> str:
    return f"deliveries/{quote(delivery_id, safe='', errors='replace')}/replay"


def _query(**wanted: str | int | None) -> dict[str, str | int]:
    return {name: value for name, value in wanted.items() if value is not None}


def _ask(url: str, work: Callable[["RunningServer"], Coroutine[Any, Any, None]]) -> None:
    from tapewatch.running_server import RunningServer

    done: list[bool] = []

    async def whole() -> None:
        server = RunningServer(url)
        try:
            await work(server)
            done.append(True)
        finally:
            await server.close()

    run(whole())
    if not done:  # interrupted
        raise typer.Exit(130)


def _readable(url: str, read: Callable[[], list[str]]) -> list[str]:
    from tapewatch.running_server import UNREADABLE, stranger

    try:
        return read()
    except UNREADABLE:
        raise stranger(url) from None


def _lines(items: list[Any]) -> list[str]:
    """Who owns them stands there where there are several."""
    several = len({item["owner"] for item in items}) > 1
    lines = []
    for item in items:
        what = f"{item['symbol']} {item['rule_id']}" if item["kind"] == "alert" else item["kind"]
        at = item["at"][:19].replace("T", " ")
        owner = f"{item['owner']:24} " if several else ""
        why = f"  {item['error']}" if item["error"] else ""
        lines.append(f"{item['delivery_id']}  {at}  {item['state']:8} {owner}{item['channel_id']:24} {what}{why}")
    counts = Counter(item["state"] for item in items)
    told = ", ".join(f"{count:,} {state}" for state, count in sorted(counts.items()))
    return [*lines, told or "no deliveries"]
