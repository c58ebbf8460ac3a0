"""The command line as people type it: what it prints, what it answers to mistakes, and with which status it ends.

Most tests call `tapewatch.cli.main` in this process with the words of a command line; a few start the program.
"""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tapewatch import __version__
from tapewatch.cli import main

COMMANDS = [
    "up",
    "replay",
    "synthesize",
    "rules",
    "rules check",
    "rules test",
    "rules explain",
    "rules diff",
    "rules apply",
    "backtest",
    "db",
    "db upgrade",
    "user",
    "user add",
    "token",
    "token create",
    "doctor",
    "bench",
]
OPEN_NS = 1_741_012_200_000_000_000
"""2025-03-03 09:30 in New York."""
RULE: dict[str, Any] = {"id": "a", "conditions": [{"metric": "price", "operator": ">", "value": 10}]}


@dataclass(frozen=True, slots=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def mistake(self) -> str:
        """The one line that a mistake of the user gets."""
        assert self.code == 2, self
        assert self.err.startswith("tapewatch: "), self.err
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err + self.out
        assert len(self.err) < 700
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


def start(*words: object) -> Said:
    """The installed program, as a shell starts it."""
    program = Path(sys.executable).parent / "tapewatch"
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=60, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    """Three trades of one stock: 9.90, 10.10, 10.20."""
    path = tmp_path / "tape.parquet"
    pq.write_table(tape_table(), path)
    return path


def tape_table() -> pa.Table:
    return pa.table(
        {
            "symbol": ["AAA"] * 3,
            "ts_ns": [OPEN_NS + second * 10**9 + 500_000_000 for second in (0, 4, 70)],
            "price": [9.9, 10.1, 10.2],
            "size": [100.0, 200.0, 300.0],
            "conditions": [" ", " ", "I"],
            "exchange": ["N"] * 3,
            "tape": ["A"] * 3,
        }
    )


# -- the words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_shown(say: Type, command: str) -> None:
    said = say(*command.split(), "--help")
    assert (said.code, said.err) == (0, "")
    assert f"Usage: tapewatch {command}".strip() in said.out


def test_version_is_shown(say: Type) -> None:
    assert say("--version") == Said(0, f"tapewatch {__version__}\n", "")


@pytest.mark.parametrize("command", ["", "rules", "db"])
def test_no_words_show_the_help(say: Type, command: str) -> None:
    said = say(*command.split())
    assert said.code == 2
    assert "Usage: tapewatch" in said.out + said.err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("scan", "no such command 'scan' (see tapewatch --help)"),
        ("rules chek", "no such command 'chek'"),
        ("--verbose", "no such option: --verbose"),
        ("replay t.parquet --outt x", "no such option: --outt"),
        ("replay", "missing argument 'tapes' (see tapewatch replay --help)"),
        ("replay t.parquet", "missing option '--out'"),
        ("replay t.parquet --out", "option '--out' requires an argument"),
        ("rules check", "missing argument 'paths'"),
        ("rules explain", "missing argument 'rule'"),
        ("rules explain a AAA BBB", "unexpected extra argument"),
        ("rules diff", "missing argument 'paths'"),
        ("rules apply --prune", "missing argument 'paths'"),
        ("rules test", "missing argument 'files'"),
        ("synthesize", "missing argument 'out'"),
        ("up --port eighty", "invalid value for '--port'"),
        ("up --speed fast", "invalid value for '--speed'"),
    ],
)
def test_words_that_do_not_fit_get_one_line(say: Type, words: str, named: str) -> None:
    assert named in say(*words.split()).mistake


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--feed reuters", "--feed: 'reuters' is not a feed; there are: synthetic, replay"),
        ("--feed replay", "--feed replay needs at least one --tape FILE"),
        ("--tape t.parquet", "--tape goes with --feed replay"),
        ("--port 65536", "--port: 65536 is not a port"),
        ("--port -1", "--port: -1 is not a port"),
        ("--host http://x", "--host: 'http://x' is not an address to listen on"),
        ("--host 0.0.0.0 --port 0", "so accounts come first: tapewatch user add NAME --role admin --data-dir"),
        ("--symbols 0", "--symbols: 0 is not between"),
        ("--ticks-per-second 0", "--ticks-per-second: 0 is not between"),
        ("--ticks-per-second nan", "--ticks-per-second: nan is not between"),
        ("--speed 0", "--speed: 0 is not positive"),
        ("--speed nan", "--speed: nan is not positive"),
        ("--scan-interval 1", "--scan-interval: '1' is not a duration such as 100ms, 1s or 2m"),
        ("--scan-interval 0s", "--scan-interval: '0s' must be a multiple of 100ms"),
        ("--scan-interval 150ms", "--scan-interval: '150ms' must be a multiple of 100ms"),
        ("--scan-interval 61s", "from 100ms to 60s"),
        ("--scan-interval -1s", "is not a duration"),
    ],
)
def test_up_refuses_bad_options(say: Type, tmp_path: Path, words: str, named: str) -> None:
    assert named in say("up", "--data-dir", tmp_path, *words.split()).mistake


def test_up_refuses_an_unknown_profile(say: Type, tmp_path: Path) -> None:
    line = say("up", "--data-dir", tmp_path, "--port", 0, "--eligibility", "nasdaq").mistake
    assert line == "unknown eligibility profile 'nasdaq'; there are: algoseek, alpaca, massive, sip"


def test_up_names_the_port_that_is_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = start("up", "--port", port, "--data-dir", tmp_path).mistake
    assert line == f"--port: cannot listen on 127.0.0.1:{port}: Address already in use"


def test_up_refuses_a_data_folder_that_is_a_file(say: Type, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    line = say("up", "--port", 0, "--data-dir", tmp_path / "data").mistake
    assert line.startswith(f"--data-dir: cannot use {tmp_path / 'data'}")


def test_up_refuses_a_store_that_is_none(say: Type, tmp_path: Path) -> None:
    (tmp_path / "tapewatch.db").write_text("not a database, but long enough to be looked at " * 100)
    assert "tapewatch.db" in say("up", "--port", 0, "--data-dir", tmp_path).mistake


# -- replay ---------------------------------------------------------------------------------------------------------


def test_replay_writes_four_files_and_says_what_it_did(say: Type, tape: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.json").write_text(json.dumps([RULE]))
    said = say("replay", tape, "--rules", tmp_path / "rules.json", "--out", tmp_path / "out")
    assert (said.code, said.err) == (0, "")  # no bar of progress: this is no terminal
    assert said.out.startswith("3 trades read, 3 used, 0 rejected; 1 bars, 1 alerts in ")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "bars.parquet",
        "indicators.parquet",
        "alerts.jsonl",
        "summary.json",
    }
    (alert,) = map(json.loads, (tmp_path / "out" / "alerts.jsonl").read_text().splitlines())
    assert (alert["rule_id"], alert["symbol"], alert["price"]) == ("a", "AAA", 10.1)
    assert alert["fired_at"] == "2025-03-03T14:30:05.000000000Z"
    (bar,) = pq.read_table(tmp_path / "out" / "bars.parquet").to_pylist()
    assert [bar[name] for name in ("open", "high", "low", "close", "volume")] == [9.9, 10.1, 9.9, 10.1, 300]


def test_replay_as_json_prints_the_summary_alone(tape: Path, tmp_path: Path) -> None:
    said = start("replay", tape, "--out", tmp_path / "out", "--json")
    assert (said.code, said.err) == (0, "")
    printed = json.loads(said.out)
    assert printed == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert printed["trades"]["read"] == 3


def test_replay_refuses_bad_options(say: Type, tape: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert "unknown eligibility profile 'iex'" in say("replay", tape, *out, "--eligibility", "iex").mistake
    assert "'1sec' is not a duration" in say("replay", tape, *out, "--scan-interval", "1sec").mistake
    assert "cannot be read: No such file" in say("replay", tape, *out, "--rules", tmp_path / "none.json").mistake
    assert say("replay", tape, "--out", tape).mistake == f"--out: {tape} is a file, not a folder"
    assert say("replay", tape, "--out", tape / "below").mistake.startswith(f"--out: cannot write to {tape / 'below'}")


def test_replay_refuses_a_missing_tape_and_a_folder(say: Type, tmp_path: Path) -> None:
    missing = tmp_path / "none.parquet"
    assert say("replay", missing, "--out", tmp_path / "out").mistake == f"{missing}: no such file"
    assert "is a folder, not a tape file" in say("replay", tmp_path, "--out", tmp_path / "out").mistake


@pytest.mark.parametrize("content", [b"", b"symbol,price\nAAA,10\n", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_replay_refuses_a_tape_that_is_not_parquet(say: Type, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tape.parquet"
    path.write_bytes(content)
    assert say("replay", path, "--out", tmp_path / "out").mistake.startswith(f"{path}: is not a Parquet file")


def test_replay_names_the_column_that_a_tape_lacks(say: Type, tape: Path, tmp_path: Path) -> None:
    pq.write_table(tape_table().drop_columns(["price", "tape"]), tape)
    line = say("replay", tape, "--out", tmp_path / "out").mistake
    assert line.startswith(f"{tape}: lacks the column 'price' and 'tape'; it has: symbol, ts_ns")


def test_replay_names_the_column_that_has_another_type(say: Type, tape: Path, tmp_path: Path) -> None:
    table = tape_table()
    pq.write_table(table.set_column(2, "price", pa.array(["9.9", "10.1", "10.2"])), tape)
    assert "the column 'price' must be a number, not string" in say("replay", tape, "--out", tmp_path / "out").mistake


def test_replay_tells_the_first_row_of_each_kind_that_it_refused(say: Type, tape: Path, tmp_path: Path) -> None:
    table = tape_table()
    pq.write_table(table.set_column(2, "price", pa.array([9.9, -1.0, 10.2])), tape)
    said = say("replay", tape, "--out", tmp_path / "out")
    assert said.code == 0
    assert "  price: 1, first: tape.parquet row 1\n" in said.out


# -- rules ----------------------------------------------------------------------------------------------------------


def rule(**fields: Any) -> str:
    return json.dumps([{**RULE, **fields}])


def condition(**fields: Any) -> str:
    return rule(conditions=[{**RULE["conditions"][0], **fields}])


BAD_RULES = {
    "empty": ("", "not valid JSON at line 1, column 1"),
    "not JSON": ("rules: []", "not valid JSON at line 1, column 1"),
    "cut short": ('[{"id": "a",\n "cond', "not valid JSON at line 2, column 2"),
    "not UTF-8": (b'["\xff"]', "not UTF-8 at byte 2"),
    "a text": ('"rules"', 'must be a list of rules, or {"rules": [...]}'),
    "another object": ('{"rule": []}', 'must be a list of rules, or {"rules": [...]}'),
    "a number for a rule": ("[5]", "rules[0]: "),
    "NaN": (condition(value=float("nan")), "NaN is not a number that JSON knows"),
    "Infinity": (condition(value=float("-inf")), "-Infinity is not a number that JSON knows"),
    "too large for a float": (condition(value=5).replace("5", "1e999"), "conditions[0].value: "),
    "key twice": ('[{"id": "a", "id": "b"}]', "the key 'id' appears twice in one object"),
    "unknown metric": (condition(metric="change_6m"), "conditions[0].metric: unknown metric 'change_6m'; did you mean"),
    "look-alike": (condition(metric="pri\u0441e"), "conditions[0].metric: unknown metric"),
    "metric of a thousand letters": (condition(metric="m" * 1000), "conditions[0].metric: "),
    "unknown operator": (condition(operator="=>"), "conditions[0].operator: input should be '>', '<', '>=', '<='"),
    "unknown field": (rule(owner_id="me"), "rules[0].owner_id: is not a field of this document"),
    "unknown field of a condition": (condition(window="5m"), "conditions[0].window: is not a field of this document"),
    "field with an escape sequence": (rule(**{"\x1b[2J": 1}), "is not a field of this document"),
    "no conditions": (json.dumps([{"id": "a"}]), "rules[0].conditions: is missing"),
    "empty conditions": (rule(conditions=[]), "rules[0].conditions: "),
    "too many conditions": (rule(conditions=RULE["conditions"] * 65), "rules[0].conditions: "),
    "conditions are an object": (rule(conditions={}), "rules[0].conditions: "),
    "value is true": (condition(value=True), "conditions[0].value: input should be a valid number"),
    "value is text": (condition(value="5"), "conditions[0].value: input should be a valid number"),
    "value is null": (condition(value=None), "conditions[0].value: input should be a valid number"),
    "value is huge": (condition(value=10**30), "conditions[0].value: "),
    "value has 400 digits": (condition(value=10**400), "conditions[0].value: "),
    "value has 5,000 digits": (condition(value=1).replace(": 1}", f": {'1' * 5000}}}"), "too many digits"),
    "cooldown is negative": (rule(cooldown=-1), "rules[0].cooldown: input should be greater than or equal to 0"),
    "cooldown is NaN": (rule(cooldown=float("nan")), "NaN is not a number that JSON knows"),
    "cooldown is text": (rule(cooldown="60s"), "rules[0].cooldown: input should be a valid number"),
    "cooldown is ten days": (rule(cooldown=864_000), "rules[0].cooldown: input should be less than or equal to 604800"),
    "cooldown is huge": (rule(cooldown=10**400), "rules[0].cooldown: "),
    "id is a number": (rule(id=5), "rules[0].id: input should be a valid string"),
    "id is a path": (rule(id="../a"), "rules[0].id: "),
    "id with a line end": (rule(id="a\n"), "rules[0].id: "),
    "id is a lone surrogate": (rule(id="\ud800"), "rules[0].id: "),
    "name is a lone surrogate": (rule(name="\ud800"), "rules[0].name: "),
    "name is hidden": (rule(name="a\u202eb"), "rules[0].name: has a character that cannot be shown (U+202E)"),
    "name has a line end": (rule(name="a\nb"), "rules[0].name: has a character that cannot be shown (U+000A)"),
    "name is empty": (rule(name=""), "rules[0].name: "),
    "name of a megabyte": (rule(name="n" * 1_000_000), "rules[0].name: "),
    "metric of a megabyte": (condition(metric="\U0001f600" * 250_000), "conditions[0].metric: "),
    "key of a megabyte, twice": (f'[{{"{"k" * 500_000}": 1, "{"k" * 500_000}": 2}}]', "the key 'kkk"),
    "megabyte of noise": ("#" * 1_000_000, "not valid JSON at line 1, column 1"),
    "ids twice": (json.dumps([RULE, RULE]), "rules[1].id: 'a' is already the id of another rule in this file"),
    "brackets": ("[" * 10_000, "nested too deeply"),
    "brackets that close": ("[" * 10_000 + "]" * 10_000, "nested too deeply"),
    "braces": ('{"a":' * 10_000, "nested too deeply"),
    "enabled is text": (rule(enabled="yes"), "rules[0].enabled: "),
    "version is zero": (rule(version=0), "rules[0].version: "),
}


@pytest.mark.parametrize(("content", "named"), BAD_RULES.values(), ids=BAD_RULES)
def test_bad_rules_get_one_line_that_names_the_place(
    say: Type, tmp_path: Path, content: str | bytes, named: str
) -> None:
    path = tmp_path / "rules.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = say("rules", "check", path).mistake
    assert line.startswith(f"{path}: ")
    assert named in line
    assert line.isprintable()


def test_bad_rules_are_refused_by_replay_and_up_too(say: Type, tape: Path, tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_text(condition(metric="prise"))
    named = f"{path}: rules[0].conditions[0].metric: unknown metric 'prise'; did you mean price?"
    assert say("replay", tape, "--rules", path, "--out", tmp_path / "out").mistake == named
    assert say("up", "--port", 0, "--rules", path, "--data-dir", tmp_path).mistake == named
    assert start("rules", "check", path).mistake == named


def test_sound_rules_are_counted_or_printed(say: Type, tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"rules": [RULE, {"conditions": [{**RULE["conditions"][0], "metric": "vwap_60m"}]}]}))
    said = say("rules", "check", path)
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        "a: price > 10",
        "    reads price; 2 us a scan",
        "rule-2: vwap_1h > 10",
        "    reads vwap_1h; 2 us a scan",
        f"{path}: 2 rules and 0 watchlists, all sound",
    ]
    printed = json.loads(say("rules", "check", path, "--json").out)
    assert [item["id"] for item in printed["rules"]] == ["a", "rule-2"]
    assert printed["rules"][1]["conditions"][0]["metric"] == "vwap_1h"


def test_rules_of_a_megabyte_are_read(say: Type, tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_text(json.dumps([{**RULE, "id": f"rule-{n}"} for n in range(12_000)]))
    assert path.stat().st_size > 1_000_000
    *rules, last = say("rules", "check", path).out.splitlines()
    assert len(rules) == 2 * 12_000
    assert last == f"{path}: 12,000 rules and 0 watchlists, all sound"


SCENARIO = """\
name: Above ten
date: 2025-03-03
rules: [{id: a, conditions: [{metric: price, operator: ">", value: 10}]}]
tape: |
  09:30:00 AAA 10.50 x 100
expect:
  - at: 09:30:01
    alerts: [a AAA]
"""


def test_scenarios_that_hold_end_with_0(say: Type, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO)
    assert say("rules", "test", tmp_path) == Said(0, "ok   Above ten\n1 passed, 0 failed\n", "")


def test_scenario_that_does_not_hold_ends_with_1_and_says_why(say: Type, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO.replace("10.50", "9.50"))
    why = "at 09:30:01 expected rule 'a' to fire for AAA; it did not: price was 9.5, needs > 10"
    said = say("rules", "test", tmp_path / "s.yaml")
    assert said == Said(1, f"FAIL Above ten\n     {why}\n0 passed, 1 failed\n", "")
    printed = say("rules", "test", tmp_path / "s.yaml", "--json")
    assert printed.code == 1
    assert json.loads(printed.out) == {"scenarios": [{"name": "Above ten", "failures": [why]}]}


def test_mistake_in_a_scenario_names_file_and_line(say: Type, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO.replace("x 100", "x many"))
    line = say("rules", "test", tmp_path).mistake
    assert line == f"{tmp_path / 's.yaml'} line 5: the size 'many' is not a number"


# -- the others -----------------------------------------------------------------------------------------------------


def test_synthesize_writes_a_tape_that_replay_reads(say: Type, tmp_path: Path) -> None:
    path = tmp_path / "made.parquet"
    said = say("synthesize", path, "--symbols", 20, "--trades", 2_000, "--session", "regular")
    assert (said.code, said.err) == (0, "")
    assert said.out.endswith(f"trades of 20 symbols -> {path}\n")
    said = say("replay", path, "--out", tmp_path / "out", "--json")
    summary = json.loads(said.out)
    assert summary["trades"]["read"] == pq.read_metadata(path).num_rows
    assert summary["bars"] > 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--session night", "--session: 'night' is neither day nor regular"),
        ("--symbols 0", "--symbols must be between 1 and 100000"),
        ("--trades 0", "--trades at least 1"),
        ("--day yesterday", "'yesterday' is not a date such as 2025-03-03"),
        ("--day 2025-03-01", "2025-03-01 is not a trading day"),
        ("--day 2525-03-01", "2525-03-01 is not a trading day between 2003-01-02 and "),
    ],
)
def test_synthesize_refuses_bad_options(say: Type, tmp_path: Path, words: str, named: str) -> None:
    assert named in say("synthesize", tmp_path / "t.parquet", *words.split()).mistake


def test_synthesize_refuses_a_place_that_cannot_be_written(say: Type, tmp_path: Path) -> None:
    out = tmp_path / "none" / "t.parquet"
    line = say("synthesize", out, "--symbols", 2, "--trades", 10).mistake
    assert line == f"cannot write to {out}: No such file or directory"


def test_store_is_created_and_found_sound(say: Type, tmp_path: Path) -> None:
    said = say("db", "upgrade", "--data-dir", tmp_path / "data")
    assert said == Said(0, f"the store in {tmp_path / 'data'} is up to date\n", "")
    assert say("db", "upgrade", "--data-dir", tmp_path / "data").code == 0
    found = json.loads(say("doctor", "--data-dir", tmp_path / "data", "--json").out)["findings"]
    (store,) = (finding for finding in found if finding["check"] == "store")
    assert store["ok"]
    assert store["says"].startswith("revision ")


def test_doctor_ends_with_1_exactly_if_something_is_to_mend(say: Type, tmp_path: Path) -> None:
    said = say("doctor", "--data-dir", tmp_path)
    assert said.err == ""
    marks = {line[:5] for line in said.out.splitlines()}
    assert marks <= {"ok   ", "MEND "}
    assert said.code == ("MEND " in marks)


def test_bench_names_the_figures_that_there_are(say: Type) -> None:
    assert "unknown figure 'speed'; there are: " in say("bench", "speed").mistake


def test_program_that_is_started_answers_like_the_module() -> None:
    said = start("replay", "none.parquet", "--out", "out")
    assert said.mistake == "none.parquet: no such file"
    module = subprocess.run(
        [sys.executable, "-m", "tapewatch", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert module.stdout == f"tapewatch {__version__}\n"
