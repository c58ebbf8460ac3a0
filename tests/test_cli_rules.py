"""`tapewatch rules` as people type it: check, explain, diff and apply, on files, on a store and on a running server."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from websockets.sync.client import connect

from tapewatch.adapters.sql import SqlStore
from tapewatch.cli import main
from tapewatch.documents import load_rule_file
from tapewatch.engine.rules.cost import cost
from tapewatch.errors import VersionConflict
from tapewatch.nyse import day_of
from tapewatch.rules_as_code import OnServer, apply, changes, read_rule_book

OPEN_NS = day_of("2025-03-03")[1]
"""14:30:00 UTC."""
TEN = """\
rule ten "Above ten"
  when price > 10
"""
MINE = """\
watchlist mine "Mine" = AAA, BBB

rule listed "On my list"
  when symbol in watchlist mine and price > 1
"""


@dataclass(frozen=True, slots=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        assert (self.code, self.err) == (0, ""), self
        return self.out.splitlines()

    @property
    def mistake(self) -> str:
        return self.refusal(2)

    def refusal(self, code: int) -> str:
        """The one line of a command that could not do its work."""
        assert self.code == code, self
        assert (self.out, self.err.count("\n")) == ("", 1), self
        assert self.err.startswith("tapewatch: ")
        return self.err.removeprefix("tapewatch: ").rstrip("\n")


Type = Callable[..., Said]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Type:
    def say(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["tapewatch", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, captured.out, captured.err)

    return say


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with two rules and a watchlist in text and in JSON."""
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "mine.rules").write_text(MINE)
    (folder / "ten.json").write_text(json.dumps([{"id": "ten", "name": "Above ten", "when": "price > 10"}]))
    return folder


def cost_us(text: str) -> float:
    (rule,), _ = load_rule_file(text, where="a.rules")
    return cost(rule.spec().when).scan_us


# -- check -----------------------------------------------------------------------------------------------------------


def test_check_reads_text_json_and_folders(say: Type, files: Path) -> None:
    told = say("rules", "check", files).lines
    assert told == [
        "listed: symbol in watchlist mine and price > 1",
        f"    reads price; {cost_us(MINE):,.0f} us a scan",
        "ten: price > 10",
        f"    reads price; {cost_us(TEN):,.0f} us a scan",
        f"{files}: 2 rules and 1 watchlist, all sound",
    ]
    both = (files / "mine.rules", files / "ten.json")
    assert say("rules", "check", *both).lines[:-1] == told[:-1]


def test_check_as_json_prints_documents_with_their_cost(say: Type, files: Path) -> None:
    printed = json.loads(say("rules", "check", files, "--json").out)
    assert [rule["id"] for rule in printed["rules"]] == ["listed", "ten"]
    assert printed["rules"][1]["conditions"] == [{"metric": "price", "operator": ">", "value": 10.0}]
    assert printed["rules"][0]["cost_us"] > printed["rules"][1]["cost_us"] > 0
    assert printed["watchlists"][0]["symbols"] == ["AAA", "BBB"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("rule a\n  when prise > 3\n", "line 2, column 8: unknown metric 'prise'; did you mean price?"),
        ("rule a\n  when price >\n", "line 3, column 1: "),
        ("rule a\n  when price > 3 and\n\n  cooldown 5s\n", "line 4, column 3: "),
        ("rule a\n", "line 1, column 1: the rule a has no when"),
        ("rules a\n", "line 1, column 1: "),
        ("rule a\n  when price > $3 and gap_pct > $4\n", "line 2, column 33: "),
        ("rule a\n  when price > 3\n  cooldown 10d\n", "line 3, column "),
        ("rule a\n  when price > 3\nrule a\n  when price > 4\n", "line 3, column "),
        ('rule a "name\n  when price > 3\n', "line 1, column 8: "),
        ("rule a\n  when price > 3 \x1b[2J\n", "line 2, column 18: "),
        ("rule a\n  when " + "(" * 5000 + "\n", "line 2, column "),
    ],
)
def test_mistake_in_text_is_told_with_file_line_and_column(say: Type, tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "a.rules").write_text(text)
    for paths in ([tmp_path / "a.rules"], [tmp_path]):
        line = say("rules", "check", *paths).mistake
        assert line.startswith(f"{tmp_path / 'a.rules'}: {named}"), line
        assert line.isprintable()


def test_check_names_what_cannot_be_read(say: Type, tmp_path: Path) -> None:
    missing = tmp_path / "none.rules"
    assert say("rules", "check", missing).mistake == f"{missing}: cannot be read: No such file or directory"
    assert say("rules", "check", tmp_path).mistake == f"{tmp_path}: holds no rule file (*.rules, *.json)"
    (tmp_path / "a.rules").write_bytes(b"rule a\n when \xff\n")
    assert say("rules", "check", tmp_path).mistake == f"{tmp_path / 'a.rules'}: not UTF-8 at byte 13"


def test_check_names_both_files_of_an_id(say: Type, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.rules").write_text(TEN)
    line = say("rules", "check", tmp_path).mistake
    assert line == f"{tmp_path / 'b.rules'}: rule ten is in {tmp_path / 'a.rules'} already"


# -- text where rules are taken from a file ----------------------------------------------------------------------------


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    """AAA is above ten from the fifth second on, with silence around it; BBB, which is on no list, stays at 9.90."""
    rows = [(0.5, "AAA", 9.9), (1.5, "BBB", 9.9), (4.5, "AAA", 10.1), (70.5, "AAA", 10.2)]
    path = tmp_path / "tape.parquet"
    pq.write_table(
        pa.table(
            {
                "symbol": [symbol for _, symbol, _ in rows],
                "ts_ns": [OPEN_NS + int(second * 1e9) for second, _, _ in rows],
                "price": [price for _, _, price in rows],
                "size": [100.0] * len(rows),
                "conditions": [" "] * len(rows),
                "exchange": ["N"] * len(rows),
                "tape": ["A"] * len(rows),
            }
        ),
        path,
    )
    return path


def test_replay_takes_rules_and_watchlists_as_text(say: Type, tape: Path, tmp_path: Path) -> None:
    (tmp_path / "a.rules").write_text(TEN + MINE.replace("AAA, BBB", "BBB"))
    assert say("replay", tape, "--rules", tmp_path / "a.rules", "--out", tmp_path / "out").lines
    alerts = [json.loads(line) for line in (tmp_path / "out" / "alerts.jsonl").read_text().splitlines()]
    assert [(alert["rule_id"], alert["symbol"], alert["fired_at"]) for alert in alerts] == [
        ("listed", "BBB", "2025-03-03T14:30:02.000000000Z"),
        ("ten", "AAA", "2025-03-03T14:30:05.000000000Z"),
    ]


def test_replay_and_up_tell_a_mistake_in_text_with_its_place(say: Type, tape: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.rules"
    path.write_text("rule a\n  when prise > 3\n")
    named = f"{path}: line 2, column 8: unknown metric 'prise'; did you mean price?"
    assert say("replay", tape, "--rules", path, "--out", tmp_path / "out").mistake == named
    assert say("up", "--port", 0, "--rules", path, "--data-dir", tmp_path / "data").mistake == named


# -- explain on a tape -------------------------------------------------------------------------------------------------


@pytest.fixture
def explain(say: Type, tape: Path, tmp_path: Path) -> Type:
    (tmp_path / "ten.rules").write_text(TEN)

    def explain(*words: object) -> Said:
        return say("rules", "explain", *words, "--rules", tmp_path / "ten.rules", "--tape", tape)

    return explain


def test_explain_at_the_second_of_an_alert_and_beside_it(explain: Type, say: Type, tape: Path, tmp_path: Path) -> None:
    explain("ten", "AAA")
    say("replay", tape, "--rules", tmp_path / "ten.rules", "--out", tmp_path / "out")
    (alert,) = map(json.loads, (tmp_path / "out" / "alerts.jsonl").read_text().splitlines())
    found = {}
    for at in (alert["fired_at"], "2025-03-03T14:30:04Z", "2025-03-03T14:30:06Z", "2025-03-03T09:30:05.9-05:00"):
        document = json.loads(explain("ten", "AAA", "--at", at, "--json").out)
        (operand,) = document["when"]["operands"]
        found[at] = (document["at"], document["verdict"], operand["value"])
    assert list(found.values()) == [
        (alert["fired_at"], "fired", alert["price"]),
        ("2025-03-03T14:30:04.000000000Z", "false", 9.9),
        ("2025-03-03T14:30:06.000000000Z", "held", 10.1),
        (alert["fired_at"], "fired", alert["price"]),
    ]


def test_explain_prints_the_verdict_the_condition_and_the_value_behind_it(explain: Type) -> None:
    assert explain("ten", "AAA", "--at", "2025-03-03T14:30:04Z").lines == [
        "ten (version 1), AAA, scan at 2025-03-03T14:30:04.000000000Z",
        "Not true: price > 10.",
        "when",
        "  no  price > 10   lacks +0.1",
        "        price = 9.9 $, 3.5 s old",
    ]


def test_explain_without_an_instant_speaks_of_the_end_of_the_tape(explain: Type) -> None:
    document = json.loads(explain("ten", "AAA", "--json").out)
    assert (document["verdict"], document["when"]["operands"][0]["value"]) == ("held", 10.2)
    assert document["at"] > "2025-03-03T14:31:10"


def test_explain_of_a_symbol_or_an_instant_without_trades_says_so(explain: Type) -> None:
    assert explain("ten", "ZZZ").lines[1] == "Not asked: no trade of the symbol has been seen."
    before = explain("ten", "AAA", "--at", "2025-03-03T14:29:00Z").lines
    assert before == ["ten (version 1), AAA, no scan", "Not asked: no scan has been made yet."]


def test_near_misses_on_a_tape_are_the_symbols_that_lack_one_condition(explain: Type) -> None:
    at = ("--at", "2025-03-03T14:30:04Z")
    first, second, count = explain("ten", *at).lines
    assert first.split() == ["AAA", "price", ">", "10", "lacks", "+0.1", "(1.00", "%)"]
    assert second.startswith("BBB ")
    assert count == "2 symbols with all conditions but one"
    misses = json.loads(explain("ten", *at, "--json").out)["near_misses"]
    assert [(miss["symbol"], miss["missing"], miss["value"]) for miss in misses] == [
        ("AAA", "price > 10", 9.9),
        ("BBB", "price > 10", 9.9),
    ]
    assert explain("ten").lines[-1] == "1 symbol with all conditions but one"


@pytest.mark.parametrize(
    ("at", "why"),
    [
        ("yesterday", "'yesterday' is not a time such as 2025-03-03T14:31:00Z"),
        ("", "'' is not a time such as"),
        ("14:31:00", "'14:31:00' is not a time such as"),
        ("2025-02-30T14:31:00Z", "is not a time such as"),
        ("2025-03-03T14:31:00", "lacks its zone: 2025-03-03T14:31:00Z, or -05:00 for New York in winter"),
        ("2025-03-03", "lacks its zone"),
        ("0001-01-01T00:00:00+14:00", "is on no tape"),
        ("9999-12-31T23:59:59-14:00", "is on no tape"),
    ],
)
def test_instant_that_is_none_is_refused(explain: Type, at: str, why: str) -> None:
    line = explain("ten", "AAA", "--at", at).mistake
    assert line.startswith("--at: ")
    assert why in line


def test_explain_of_a_rule_that_is_not_there_or_switched_off(explain: Type, tmp_path: Path) -> None:
    assert explain("eleven", "AAA").refusal(1) == "rule eleven is not in these files; there are: ten"
    explain("ten")
    (tmp_path / "ten.rules").write_text(TEN + "  disabled\n")
    assert explain("ten", "AAA").refusal(1) == "rule ten is disabled"
    assert explain("ten").refusal(1) == "rule ten is disabled"


def test_explain_needs_files_and_a_tape_or_a_server(say: Type, tape: Path, files: Path) -> None:
    needed = "--rules and --tape say what to explain, or --url which running server to ask"
    for words in ((), ("--rules", files), ("--tape", tape)):
        assert say("rules", "explain", "ten", "AAA", *words).mistake == needed
    where = ("--rules", files, "--tape")
    assert say("rules", "explain", "ten", *where, tape / "x").mistake == f"{tape / 'x'}: no such file"
    assert "'1sec' is not" in say("rules", "explain", "ten", *where, tape, "--scan-interval", "1sec").mistake
    assert "profile 'iex'" in say("rules", "explain", "ten", *where, tape, "--eligibility", "iex").mistake


# -- a store -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> tuple[str, Path]:
    return "--data-dir", tmp_path / "data"


def stored(folder: Path) -> dict[str, tuple[int, str]]:
    """Of each rule of a store: its version and its condition."""

    async def read() -> dict[str, tuple[int, str]]:
        store = SqlStore(folder / "tapewatch.db")
        try:
            return {rule.id: (rule.version, rule.when) for rule in (await store.rules()).rules}
        finally:
            await store.close()

    return asyncio.run(read())


def test_diff_ends_with_1_until_the_files_are_applied(say: Type, files: Path, data: tuple[str, Path]) -> None:
    new = [
        "+ watchlist mine",
        "+ rule listed",
        "+ rule ten",
        "3 new, 0 changed, 0 the same, 0 only in the installation",
    ]
    told = say("rules", "diff", files, *data)
    assert (told.code, told.err, told.out.splitlines()) == (1, "", new)
    assert stored(data[1]) == {}
    assert say("rules", "apply", files, *data).lines == new
    assert stored(data[1]) == {"listed": (1, "symbol in watchlist mine and price > 1"), "ten": (1, "price > 10")}
    same = ["0 new, 0 changed, 3 the same, 0 only in the installation"]
    assert say("rules", "diff", files, *data).lines == same
    assert say("rules", "apply", files, *data).lines == same
    assert {version for version, _ in stored(data[1]).values()} == {1}


def test_changed_rule_is_shown_as_a_difference_and_gets_a_version(
    say: Type, files: Path, data: tuple[str, Path]
) -> None:
    say("rules", "apply", files, *data)
    (files / "ten.json").write_text(json.dumps([{"id": "ten", "name": "Above ten", "when": "price>=12"}]))
    changed = [
        "~ rule ten",
        "    --- installed/ten",
        "    +++ files/ten",
        "    @@ -1,2 +1,2 @@",
        '     rule ten "Above ten"',
        "    -  when price > 10",
        "    +  when price >= 12",
        "0 new, 1 changed, 2 the same, 0 only in the installation",
    ]
    told = say("rules", "diff", files, *data)
    assert (told.code, told.out.splitlines()) == (1, changed)
    as_json = json.loads(say("rules", "diff", files, *data, "--json").out)
    assert {(c["kind"], c["what"], c["id"]) for c in as_json["changes"]} == {
        ("same", "watchlist", "mine"),
        ("same", "rule", "listed"),
        ("changed", "rule", "ten"),
    }
    assert say("rules", "apply", files, *data).lines == changed
    assert stored(data[1])["ten"] == (2, "price >= 12")
    assert stored(data[1])["listed"][0] == 1


def test_what_the_files_lack_stays_unless_pruned(say: Type, files: Path, data: tuple[str, Path]) -> None:
    say("rules", "apply", files, *data)
    (files / "mine.rules").unlink()
    counts = "0 new, 0 changed, 1 the same, 2 only in the installation"
    extra = ["- watchlist mine", "- rule listed", counts]
    assert say("rules", "diff", files, *data).lines == extra
    assert say("rules", "apply", files, *data).lines == [counts]
    assert set(stored(data[1])) == {"listed", "ten"}
    assert say("rules", "apply", files, *data, "--prune").lines == extra
    assert set(stored(data[1])) == {"ten"}
    assert say("rules", "apply", files, *data, "--prune").lines[-1].endswith("1 the same, 0 only in the installation")


def test_deleted_id_is_told_in_one_line_and_stays_deleted(say: Type, files: Path, data: tuple[str, Path]) -> None:
    say("rules", "apply", files, *data)
    (files / "ten.json").rename(files / "ten.txt")
    say("rules", "apply", files, *data, "--prune")
    (files / "ten.txt").rename(files / "ten.json")
    assert "ten" in say("rules", "apply", files, *data).refusal(1)
    assert set(stored(data[1])) == {"listed"}


def test_nothing_is_applied_of_files_with_a_mistake(say: Type, files: Path, data: tuple[str, Path]) -> None:
    (files / "z.rules").write_text("rule z\n  when prise > 1\n")
    for command in ("diff", "apply"):
        assert say("rules", command, files, *data).mistake.startswith(f"{files / 'z.rules'}: line 2, column 8: ")
    assert not data[1].exists()


def test_store_that_cannot_be_opened_is_told_in_one_line(say: Type, files: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = say("rules", "apply", files, "--data-dir", tmp_path / "file").mistake
    assert line.startswith(f"--data-dir: cannot use {tmp_path / 'file'}")


# -- a server ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A small market, begun with a file of rules in text."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "seed.rules").write_text('watchlist seeds = AAA\nrule seed "Seed"\n  when price > 0\n')
    words = ["--symbols", "50", "--ticks-per-second", "500", "--port", "0", "--rules", str(folder / "seed.rules")]
    command = [sys.executable, "-m", "tapewatch", "up", "--data-dir", str(folder / "data"), *words]
    with (
        (folder / "stderr.txt").open("w") as stderr,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("tapewatch is up: "), (folder / "stderr.txt").read_text()
            address = line.split()[3]
            with connect(address.replace("http", "ws") + "/ws", proxy=None, max_size=None) as client:
                while json.loads(client.recv(timeout=20))["type"] != "alert":
                    pass
            yield address
        finally:
            process.terminate()
            assert process.wait(timeout=20) == 0
    assert "Traceback" not in (folder / "stderr.txt").read_text()


def api(server: str, path: str) -> Any:
    return httpx.get(f"{server}/api/v1/{path}", trust_env=False).raise_for_status().json()


def renamed(text: str, name: str) -> str:
    """The same rules and lists under ids of their own, since a server's tests share it."""
    return text.replace("mine", f"{name}-mine").replace("listed", f"{name}-listed").replace("rule ten", f"rule {name}")


def test_up_takes_over_rules_and_watchlists_from_text(server: str) -> None:
    assert (api(server, "rules/seed")["when"], api(server, "watchlists/seeds")["symbols"]) == ("price > 0", ["AAA"])


def test_files_are_applied_to_a_server(say: Type, server: str, tmp_path: Path) -> None:
    path, url = tmp_path / "a.rules", ("--url", server)
    path.write_text(renamed(TEN + MINE, "one"))
    assert say("rules", "diff", path, *url).code == 1
    first = say("rules", "apply", path, *url).lines
    assert first[:3] == ["+ watchlist one-mine", "+ rule one", "+ rule one-listed"]
    assert say("rules", "diff", path, *url).code == 0
    assert api(server, "rules/one-listed")["when"] == "symbol in watchlist one-mine and price > 1"
    path.write_text(path.read_text().replace("> 10", "> 11").replace("AAA, BBB", "AAA"))
    assert [line for line in say("rules", "apply", path, *url).lines if line[0] == "~"] == [
        "~ watchlist one-mine",
        "~ rule one",
    ]
    rule = api(server, "rules/one")
    assert (rule["version"], rule["when"]) == (2, "price > 11")
    assert api(server, "watchlists/one-mine")["symbols"] == ["AAA"]
    assert api(server, "rules/one-listed")["version"] == 1
    assert say("rules", "diff", path, *url).code == 0


def test_prune_deletes_on_a_server_and_what_is_deleted_stays_so(say: Type, server: str, tmp_path: Path) -> None:
    url = ("--url", server)
    kept, gone = tmp_path / "kept.rules", tmp_path / "gone.rules"
    gone.write_text(renamed(TEN + MINE, "two"))
    say("rules", "apply", gone, *url)
    everything = read_everything(server)
    kept.write_text("".join(text for name, text in everything.items() if not name.startswith("two")))
    deleted = [line for line in say("rules", "apply", kept, *url, "--prune").lines if line[0] == "-"]
    assert deleted == ["- watchlist two-mine", "- rule two", "- rule two-listed"]
    assert read_everything(server) == {name: text for name, text in everything.items() if not name.startswith("two")}
    line = say("rules", "apply", gone, *url).refusal(1)
    assert line.endswith("the id two-mine is taken")


def read_everything(server: str) -> dict[str, str]:
    """Of each rule and watchlist of a server its text."""

    async def read() -> dict[str, str]:
        installed = OnServer(server)
        try:
            book = await installed.found()
        finally:
            await installed.close()
        return {
            document.id: document.written() for found in (book.watchlists, book.rules) for document in found.values()
        }

    return asyncio.run(read())


@pytest.mark.anyio
@pytest.mark.parametrize("prune", [False, True])
async def test_change_of_somebody_else_in_between_is_not_overwritten(
    server: str, tmp_path: Path, *, prune: bool
) -> None:
    name = f"race-{prune}".lower()
    (tmp_path / "a.rules").write_text(renamed(TEN, name))
    installed = OnServer(server)
    try:
        await apply(
            installed,
            [change for change in changes(read_rule_book([tmp_path]), await installed.found()) if change.id == name],
            prune=False,
        )
        (tmp_path / "a.rules").write_text(renamed(TEN, "race-other" if prune else name).replace("10", "11"))
        planned = [
            change for change in changes(read_rule_book([tmp_path]), await installed.found()) if change.id == name
        ]
        assert [change.kind for change in planned] == ["extra" if prune else "changed"]
        async with httpx.AsyncClient(base_url=server, trust_env=False) as other:
            theirs = await other.put(f"/api/v1/rules/{name}", json={"name": "Theirs", "when": "price > 12"})
        assert theirs.json()["version"] == 2
        with pytest.raises(VersionConflict, match=f"rules/{name}: version 2 is stored"):
            await apply(installed, planned, prune=prune)
        assert (await installed.found()).rules[name].when == "price > 12"
    finally:
        await installed.close()


def test_explain_asks_a_server_of_now(say: Type, server: str) -> None:
    symbol = api(server, "alerts?limit=1")["items"][0]["symbol"]
    url = ("--url", server)
    document = {"when": None}
    while document["when"] is None:  # the first scan after rules changed comes within a second
        document = json.loads(say("rules", "explain", "seed", symbol, *url, "--json").out)
    assert (document["rule_id"], document["symbol"], document["when"]["text"]) == ("seed", symbol, "price > 0")
    lines = say("rules", "explain", "seed", symbol, *url).lines
    assert lines[0].startswith(f"seed (version 1), {symbol}, scan at ")
    assert lines[2] == "when"
    assert "symbol" in say("rules", "explain", "seed", *url).lines[-1]
    assert isinstance(json.loads(say("rules", "explain", "seed", *url, "--json").out)["near_misses"], list)


@pytest.mark.parametrize("rule", ["none", "a/../seed", "..", "a b", "?", "é", "\udcff"])
def test_explain_of_a_rule_that_a_server_does_not_have_is_one_line(say: Type, server: str, rule: str) -> None:
    said = say("rules", "explain", rule, "AAA", "--url", server)
    assert said.refusal(said.code)
    assert said.code in {1, 2}
    assert say("rules", "explain", rule, "--url", server).code == said.code


def test_explain_of_a_symbol_that_is_none_is_one_line(say: Type, server: str) -> None:
    for symbol in ("a b", "", "\udcff", "A" * 100):
        assert say("rules", "explain", "seed", symbol, "--url", server).mistake


def test_rule_that_a_server_refuses_is_one_line(say: Type, server: str, tmp_path: Path) -> None:
    (tmp_path / "a.rules").write_text("rule validate\n  when price > 1\n")
    line = say("rules", "apply", tmp_path, "--url", server).mistake
    assert line.startswith("rules: ")
    assert "'validate' is the name of an operation" in line


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://127.0.0.1", "http://", "", "http://[::1", "http://a:b"])
def test_address_that_is_none_is_one_line(say: Type, files: Path, url: str) -> None:
    for words in (("diff", files), ("apply", files), ("explain", "ten")):
        line = say("rules", *words, "--url", url).mistake
        assert line == f"--url: {url!r} is not an address such as http://127.0.0.1:8000"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://nobody.invalid"])
def test_server_that_does_not_answer_is_one_line(say: Type, files: Path, url: str) -> None:
    for words in (("diff", files), ("apply", files), ("explain", "ten", "AAA"), ("explain", "ten")):
        assert say("rules", *words, "--url", url).refusal(1).startswith(f"{url} does not answer: ")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"{}"),
        (200, b'{"items": [{"id": 5}], "total": 1}'),
        (200, b'{"items": 5, "total": 1}'),
        (200, b'{"items": [null], "total": "many"}'),
        (200, b"\xff\xfe"),
        (301, b""),
        (404, b"<html>"),
        (500, b'["detail"]'),
    ],
)
def test_server_that_is_something_else_is_one_line(say: Type, files: Path, status: int, body: bytes) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: standard error belongs to the command."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        running = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
        running.start()
        try:
            url = f"http://127.0.0.1:{other.server_port}"
            for words in (("diff", files), ("explain", "ten", "AAA"), ("explain", "ten")):
                assert say("rules", *words, "--url", url).refusal(1)
        finally:
            other.shutdown()
            running.join()


def test_texts_of_a_server_are_rule_files(server: str) -> None:
    everything = "".join(read_everything(server).values())
    rules, watchlists = load_rule_file(everything, where="all.rules")
    assert {"seed"} <= {rule.id for rule in rules}
    assert {"seeds"} <= {watchlist.id for watchlist in watchlists}
