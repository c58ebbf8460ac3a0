"""A client of the gateway as a process of its own, which writes down what it is told: the user's side of the ledger.

``frames.ndjson`` has each frame as it came; ``events.ndjson`` has, in order, each alert and note that the application
was given and each loss that it was told of, with the places to resume from. Event and places are one line, so a witness
that is killed goes on behind the last event that it wrote; a line that was cut off is none. A line is with the kernel
before the next frame is read.

It reads as slowly as the file ``pace`` says, in seconds for each event. One that must not read at all is paused; one
whose connection must be slow gets a `Proxy` in between.
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fault_processes import PATIENCE_S, Program, python, until

from tapewatch.client import SAVED, AlertFired, AlertNoted, Client, Lost, connect


class Witness:
    """The process, and what it has written so far."""

    def __init__(self, url: str, folder: Path, *, name: str = "witness", longest_wait_s: float = 1.0) -> None:
        """`url` of the socket, such as ``ws://127.0.0.1:8000/ws``. It connects again within `longest_wait_s`, so that
        the time to recover is the server's.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        options = ["--url", url, "--folder", str(folder), "--longest-wait", str(longest_wait_s)]
        self.program = Program(name, python(__file__, *options), log=folder / "log")
        self._frames = Lines(folder / "frames.ndjson")
        self._events = Lines(folder / "events.ndjson")

    def start(self) -> None:
        self.program.start()

    def kill(self) -> None:
        self.program.kill()

    def pace(self, seconds: float) -> None:
        """Wait so long after each alert."""
        waiting = self.folder / "pace.new"
        waiting.write_text(str(seconds))
        waiting.rename(self.folder / "pace")

    def frames(self) -> list[dict[str, Any]]:
        """``at_ns`` of the wall clock, and ``frame`` as text; all lives of the witness."""
        return self._frames.read()

    def events(self) -> list[dict[str, Any]]:
        """``kind`` (alert, note, lost or place), ``at_ns``, ``data``, ``places`` and ``last_id``, as the application
        got them. A place has no data: it is where a life of the witness began.
        """
        return self._events.read()

    def alerts(self) -> list[dict[str, Any]]:
        return [event["data"] for event in self.events() if event["kind"] == "alert"]

    def ids(self) -> list[str]:
        return [str(alert["alert_id"]) for alert in self.alerts()]

    def losses(self) -> list[str]:
        """Why alerts may be missing, as it was told."""
        return [str(event["data"]["why"]) for event in self.events() if event["kind"] == "lost"]

    def connected(self) -> bool:
        """Whether this life of it was greeted."""
        return self.program.running and (self.folder / f"connected-{self.program.pid}").exists()

    def first_alert_after(self, at_ns: int) -> int | None:
        """When the first alert came that came after that instant, by the wall clock."""
        alerts = (event["at_ns"] for event in self.events() if event["kind"] == "alert")
        return next((came_ns for came_ns in alerts if came_ns > at_ns), None)

    def wait_connected(self, *, within_s: float = PATIENCE_S) -> None:
        until(self.connected, f"{self.program.name} connected", within_s=within_s)

    def wait_for(self, n: int, *, within_s: float = PATIENCE_S) -> None:
        """Until the application has had so many alerts in all."""
        until(lambda: len(self.alerts()) >= n, f"{self.program.name} has {n} alerts", within_s=within_s)


class Lines:
    """A growing file of JSON lines, of which each is parsed once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[dict[str, Any]] = []
        self._at = 0

    def read(self) -> list[dict[str, Any]]:
        """All whole lines."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._at)
                whole, newline, _ = file.read().rpartition(b"\n")
            self._at += len(whole) + len(newline)
            self._lines += [json.loads(line) for line in whole.splitlines()]
        return self._lines


class Book:
    """What the process itself writes, and reads when it is started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("frames.ndjson", "events.ndjson"):
            _cut_torn_line(folder / name)
        known = Lines(folder / "events.ndjson").read()
        self.places: dict[str, str] | None = known[-1]["places"] if known else None
        self.last_id: str | None = known[-1]["last_id"] if known else None
        self.known = [event["data"]["alert_id"] for event in known if event["kind"] == "alert"][-SAVED:]
        self._frames = (folder / "frames.ndjson").open("a", encoding="utf-8")
        self._events = (folder / "events.ndjson").open("a", encoding="utf-8")

    def frame(self, text: str) -> None:
        self._frames.write(json.dumps({"at_ns": time.time_ns(), "frame": text}) + "\n")
        self._frames.flush()

    def event(self, kind: str, data: Mapping[str, Any] | None, client: Client) -> None:
        line = {"at_ns": time.time_ns(), "kind": kind, "data": data, "places": client.places()}
        self._events.write(json.dumps(line | {"last_id": client.last_id}) + "\n")
        self._events.flush()

    def close(self) -> None:
        self._frames.close()
        self._events.close()

    def connected(self) -> None:
        (self._folder / f"connected-{os.getpid()}").touch()

    def pace_s(self) -> float:
        path = self._folder / "pace"
        return float(path.read_text()) if path.exists() else 0.0


async def bear_witness(url: str, folder: Path, *, longest_wait_s: float) -> None:
    """Until it is killed; the library connects again by itself."""
    book = Book(folder)
    async with connect(
        url,
        places=book.places,
        last_id=book.last_id,
        known=book.known,
        on_frame=book.frame,
        longest_wait_s=longest_wait_s,
        proxy=None,
    ) as client:
        book.event("place", None, client)
        book.connected()
        async for event in client.events():
            if isinstance(event, AlertFired):
                book.event("alert", event.alert, client)
            elif isinstance(event, AlertNoted):
                book.event("note", event.alert, client)
            elif isinstance(event, Lost):
                book.event("lost", {"why": event.why, "see": event.see}, client)
            if (pause_s := book.pace_s()) > 0:
                await asyncio.sleep(pause_s)


def _cut_torn_line(path: Path) -> None:
    if path.exists():
        data = path.read_bytes()
        path.write_bytes(data[: data.rfind(b"\n") + 1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--longest-wait", type=float, required=True)
    chosen = parser.parse_args()
    asyncio.run(bear_witness(chosen.url, chosen.folder, longest_wait_s=chosen.longest_wait))


if __name__ == "__main__":
    main()
