"""The witness against the product: what it wrote through its own death is what the server stored."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fault_processes import Program, private_port, python, until
from fault_proxy import Flow, Proxy
from fault_witness import Book, Lines, Witness

START_S = 30.0
RULES = """\
rule steady when price > 0 fire level cooldown 20s
rule up when change_pct_1m > 0 fire level cooldown 30s
"""


class Up:
    """`tapewatch up` over a made-up market."""

    def __init__(self, folder: Path) -> None:
        (folder / "some.rules").write_text(RULES)
        self.port = private_port()
        options = ["--port", str(self.port), "--data-dir", str(folder / "data"), "--rules", str(folder / "some.rules")]
        market = ["--symbols", "200", "--ticks-per-second", "400", "--speed", "5"]
        self.program = Program("up", python("-m", "tapewatch", "up", *options, *market), log=folder / "up.log")

    def ready(self) -> bool:
        if not self.program.running:
            raise RuntimeError(f"tapewatch up ended\n{self.program.tail()}")
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def stored(self) -> list[tuple[str, str]]:
        """When each alert fired, and its id, oldest first."""
        items: list[tuple[str, str]] = []
        query: dict[str, Any] = {"limit": 500}
        while True:
            answer = httpx.get(f"http://127.0.0.1:{self.port}/api/v1/alerts", params=query, trust_env=False)
            page = answer.raise_for_status().json()
            items += [(item["fired_at"], item["alert_id"]) for item in page["items"]]
            if page["next_cursor"] is None:
                return items[::-1]
            query["cursor"] = page["next_cursor"]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path)
    up.program.start()
    try:
        until(up.ready, "tapewatch up is ready", within_s=START_S)
        yield up
    finally:
        up.program.kill()


def test_killed_witness_goes_on_behind_its_last_line_and_misses_nothing(up: Up, tmp_path: Path) -> None:
    with Proxy(("127.0.0.1", up.port)) as proxy:
        witness = Witness(f"ws://127.0.0.1:{proxy.port}/ws", tmp_path / "witness")
        witness.start()
        try:
            witness.wait_connected()
            witness.wait_for(20)
            witness.kill()
            seen, stored = len(witness.ids()), len(up.stored())
            until(lambda: len(up.stored()) > stored + 10, "alerts while the witness is away")
            witness.start()
            witness.wait_for(seen + 20)
            proxy.reset()
            witness.wait_for(len(witness.ids()) + 10)
        finally:
            witness.kill()
    ids = witness.ids()
    assert len(set(ids)) == len(ids)
    # The first scan and the last one may have been seen in part.
    first, last = (witness.alerts()[n]["fired_at"] for n in (0, -1))
    between = {alert_id for fired_at, alert_id in up.stored() if first < fired_at < last}
    assert len(between) > 10  # a scan has up to twenty
    assert between <= set(ids)
    assert witness.losses() == []
    assert sum('"resumed"' in line["frame"] for line in witness.frames()) >= 2
    assert [event["kind"] for event in witness.events()].count("place") == 2


def test_slow_witness_falls_behind_and_one_behind_a_slow_line_too(up: Up, tmp_path: Path) -> None:
    with Proxy(("127.0.0.1", up.port)) as proxy:
        slow = Witness(f"ws://127.0.0.1:{up.port}/ws", tmp_path / "slow", name="slow")
        far = Witness(f"ws://127.0.0.1:{proxy.port}/ws", tmp_path / "far", name="far")
        quick = Witness(f"ws://127.0.0.1:{up.port}/ws", tmp_path / "quick", name="quick")
        slow.pace(30.0)
        try:
            for witness in (slow, far, quick):
                witness.start()
                witness.wait_connected()
            proxy.shape(to_client=Flow(passing=False))
            held = len(far.ids())
            quick.wait_for(20)
            assert len(slow.ids()) <= 1
            assert len(far.ids()) <= held + 1
            proxy.mend()
            far.wait_for(held + 20)
        finally:
            for witness in (slow, far, quick):
                witness.kill()


def test_line_that_was_cut_off_is_none(tmp_path: Path) -> None:
    whole = {"at_ns": 1, "kind": "alert", "data": {"alert_id": "a"}, "places": {"0": "1-1.0"}, "last_id": "a"}
    events = tmp_path / "events.ndjson"
    events.write_text(json.dumps(whole) + "\n" + json.dumps(whole)[:40])
    lines = Lines(events)
    assert lines.read() == [whole]
    book = Book(tmp_path)
    book.close()
    assert (book.places, book.last_id, book.known) == ({"0": "1-1.0"}, "a", ["a"])
    with events.open("a") as file:
        file.write(json.dumps(whole) + "\n")
    assert lines.read() == [whole, whole]
