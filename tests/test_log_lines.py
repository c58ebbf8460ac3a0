"""What somebody else says into our logs: an entry stays one entry, and a terminal is not steered."""

import json
import re
import subprocess
import sys

import pytest

HOSTILE = {
    "line end": "x\n2026-01-01T00:00:00Z [info     ] admin signed in",
    "carriage return": "x\r2026-01-01T00:00:00Z [info     ] admin signed in",
    "colours and a cleared screen": "\x1b[2J\x1b[31mred",
    "title of the terminal": "\x1b]0;mine\x07",
    "turned writing direction": "abc\u202edef",
    "line separator": "x\u2028y",
    "NUL": "a\x00b",
    "half a character": "\udcff",
}
PROGRAM = """
import logging, sys
from tapewatch.telemetry import configure_logging
import structlog

configure_logging(json=sys.argv[1] == "json")
said = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
logging.getLogger("plain").warning("the feed says: %s", said)
structlog.get_logger("bound").warning("the feed says something", why=said)
try:
    raise ValueError(said)
except ValueError:
    logging.getLogger("failed").exception("it failed")
"""
ENTRY = re.compile(r"[0-9-]{10}T[0-9:.]+Z \[")


def logged(how: str, said: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        input=said.encode("utf-8", "surrogatepass"),
        capture_output=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    return done.stderr.decode()


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE)
def test_text_for_a_person_has_three_entries_and_nothing_that_steers(said: str) -> None:
    lines = logged("text", said).split("\n")
    entries = [line for line in lines if not line.startswith("    ") and line]
    assert len(entries) == 3
    assert all(ENTRY.match(line) for line in entries)
    assert all(line.isprintable() for line in lines)
    assert "Traceback (most recent call last):" in "".join(lines)


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE)
def test_json_has_three_lines_that_say_it_whole(said: str) -> None:
    lines = logged("json", said).splitlines()
    first, second, third = map(json.loads, lines)
    assert first["event"] == f"the feed says: {said}"
    assert second["why"] == said
    assert said in third["exception"]
