"""The scenario files hold, wrong expectations fail with the right sentence, and mistakes in a file are named."""

import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapewatch.documents import ruleset
from tapewatch.engine.columns import Kind
from tapewatch.engine.rules import Match
from tapewatch.errors import Invalid
from tapewatch.replay import final_bars, scan_tape
from tapewatch.scenarios import Scenario, find_scenarios, run_scenario
from tapewatch.scenarios.run import _Run, _Tape
from tapewatch.scenarios.script import Expectation, read_scenario
from tapewatch.scenarios.tape import DAY_NS, read_clock, read_line, show_clock

HERE = Path(__file__).parent
DOCUMENT = HERE.parent.parent / "docs" / "scenarios.md"
FILES = sorted(HERE.glob("*.yaml"))
OF_TEMPLATES = sorted(HERE.glob("templates/*.yaml"))
REPLAYED = [
    *FILES,
    *(HERE / "templates" / f"{name}.yaml" for name in ("first_pullback", "inside_bar_break_15m", "vwap_bounce")),
]
WORDS = ["from", "to", "every", "x", "->", "AAA", "09:30", "09:30:10", "100.00", "5", "10s"]
WORDS += ["tape", "A", "I", '"@ T"', "@09:31", "halt", "resume", "#", "bid", "ask", "band"]

GIVEN = """\
name: A stock that trades above 101.50 fires once
date: 2025-03-03
rules:
  - id: breakout
    conditions: [{metric: price, operator: ">", value: 101.5}]
    cooldown: 60
  - id: oversold
    conditions: [{metric: rsi_14_1m, operator: "<", value: 30}]
  - id: asleep
    conditions: [{metric: price, operator: ">", value: 1}]
    enabled: false
close_prev: {AAA: 99.00, CCC: 5}
tape: |
  09:30:00 AAA 100.00 x 200
  09:31:04.500 AAA 101.60 x 100
  09:31:10 AAA 101.20 x 100
  09:31:20 AAA 101.70 x 100
  09:31:30 BBB 20.00 x 100
expect:
"""
HOLDS = "  - at: 09:31:05\n    alerts: [breakout AAA]\n"


def read(path: Path, text: str) -> Scenario:
    path.write_text(text, encoding="utf-8")
    return read_scenario(path)


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


# -- what holds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES + OF_TEMPLATES, ids=lambda file: file.stem)
def test_scenario_holds(file: Path) -> None:
    assert run_scenario(read_scenario(file)).failures == []


@pytest.mark.parametrize("number", range(len(blocks("yaml"))))
def test_example_in_the_documentation_holds(number: int, tmp_path: Path) -> None:
    for kind in ("json", "rules"):
        (rules,) = blocks(kind)
        (tmp_path / f"mine.{kind}").write_text(rules, encoding="utf-8")
    scenario = read(tmp_path / "example.yaml", blocks("yaml")[number])
    assert run_scenario(scenario).failures == []


def test_failure_in_the_documentation_is_what_the_program_says(tmp_path: Path) -> None:
    shown = next(block for block in blocks("text") if block.startswith("FAIL"))
    wrong = blocks("yaml")[0].replace("AAA 101.60", "AAA 101.40")
    result = run_scenario(read(tmp_path / "wrong.yaml", wrong))
    assert [f"FAIL {result.name}", *(f"     {failure}" for failure in result.failures)] == shown.splitlines()


def test_lines_of_tape_in_the_documentation_are_read(tmp_path: Path) -> None:
    block = next(block for block in blocks("text") if "halt" in block)
    lines = [re.sub(r" {3,}(?![#])\S.*| {6,}a series.*", "", line) for line in block.splitlines()]
    tape = "".join(f"  {line}\n" for line in lines)
    scenario = read(tmp_path / "tape.yaml", f"name: n\ndate: 2025-03-03\ntape: |\n{tape}expect: []\n")
    assert [row.kind for row in scenario.tape].count(Kind.TRADE) == 4 + 85 + 15
    others = [row.kind for row in scenario.tape if row.kind is not Kind.TRADE]
    quotes = [Kind.BID, Kind.ASK]
    assert others == [*quotes, Kind.BAND_LOW, Kind.BAND_HIGH, *(quotes * 16), Kind.HALT, Kind.RESUME]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_looking_more_often_changes_nothing(file: Path) -> None:
    scenario = read_scenario(file)
    looks = range(scenario.tape[0].arrives_ns + 10**9, scenario.tape[-1].arrives_ns + 60 * 10**9, 7_700_000_000)
    often = tuple(Expectation(at_ns=ns // 10**8 * 10**8, alerts=None, metrics={}, bars={}) for ns in looks[:300])
    assert played(replace(scenario, expect=often)) == played(replace(scenario, expect=()))


@pytest.mark.parametrize("file", REPLAYED, ids=lambda file: file.stem)
def test_scenario_equals_the_replay_of_its_tape(file: Path, tmp_path: Path) -> None:
    scenario = read_scenario(file)
    in_time = tuple(row for row in scenario.tape if row.kind is Kind.TRADE and row.arrives_ns == row.at_ns)
    scenario = replace(scenario, tape=in_time, close_prev={}, facts={}, labels={}, expect=())
    batch = _Tape(scenario)._whole
    columns = {
        "symbol": [batch.symbols[i] for i in batch.symbol],
        "ts_ns": batch.ts_ns,
        "price": batch.price,
        "size": batch.size,
        "conditions": [batch.conditions[i] for i in batch.condition],
        "exchange": ["N"] * len(batch),
        "tape": [chr(letter) if letter else "" for letter in batch.tape],
    }
    pq.write_table(pa.table(columns), tmp_path / "tape.parquet")
    replayed = scan_tape(
        [tmp_path / "tape.parquet"],
        profile=scenario.profile,
        rules=ruleset(1, scenario.rules, scenario.watchlists),
        scan_interval_ns=scenario.scan_interval_ns,
    )
    assert played(scenario) == alerts_of(replayed.matches)
    assert len(final_bars([replayed.bars])) == len(replayed.bars)


def played(scenario: Scenario) -> list[tuple[str, dict[str, float]]]:
    run = _Run(scenario)
    run.failures()
    return alerts_of(run._seen.matches)


def alerts_of(matches: list[Match]) -> list[tuple[str, dict[str, float]]]:
    return [(match.alert_id, match.values) for match in matches]


# -- what does not hold -----------------------------------------------------------------------------------------------

NOT_EXPECTED = "at 09:31:05 rule 'breakout' fired for AAA, which no expectation names: price was 101.6"
SENTENCES = {
    "a threshold is not reached": (
        "  - at: 09:31:05\n    alerts: [breakout AAA]\n  - at: 09:31:11\n    alerts: [breakout AAA]\n",
        (
            "at 09:31:11 expected rule 'breakout' to fire for AAA; it did not: price was 101.2, needs > 101.5; "
            "it had fired at 09:31:05"
        ),
    ),
    "a symbol has not traded": (
        HOLDS + "  - at: 09:31:06\n    alerts: [breakout CCC]\n",
        (
            "at 09:31:06 expected rule 'breakout' to fire for CCC; it did not: "
            "price was unknown (no trade yet), needs > 101.5"
        ),
    ),
    "a metric is unknown": (
        HOLDS + "  - at: 09:31:06\n    alerts: [oversold AAA]\n",
        "at 09:31:06 expected rule 'oversold' to fire for AAA; it did not: rsi_14_1m was unknown (warming), needs < 30",
    ),
    "it was true before": (
        HOLDS + "  - at: 09:31:06\n    alerts: [breakout AAA]\n",
        (
            "at 09:31:06 expected rule 'breakout' to fire for AAA; it did not: "
            "all conditions held, in the cooldown of 60 s; it had fired at 09:31:05"
        ),
    ),
    "it has a cooldown": (
        HOLDS + "  - at: 09:31:21\n    alerts: [breakout AAA]\n",
        (
            "at 09:31:21 expected rule 'breakout' to fire for AAA; it did not: "
            "all conditions held, in the cooldown of 60 s; it had fired at 09:31:05"
        ),
    ),
    "its cooldown is over and it was true before": (
        HOLDS + "  - at: 09:32:30\n    alerts: [breakout AAA]\n",
        (
            "at 09:32:30 expected rule 'breakout' to fire for AAA; it did not: "
            "all conditions held, and already held before; it had fired at 09:31:05"
        ),
    ),
    "it is not enabled": (
        HOLDS + "  - at: 09:31:06\n    alerts: [asleep AAA]\n",
        "at 09:31:06 expected rule 'asleep' to fire for AAA; it did not: the rule is not enabled",
    ),
    "nothing is expected": ("  []\n", NOT_EXPECTED),
    "only numbers are expected at that instant": (
        "  - at: 09:31:05\n    metrics: {AAA: {price: 101.6}}\n",
        NOT_EXPECTED,
    ),
    "nothing is expected at that instant": (
        "  - at: 09:31:05\n    alerts: []\n",
        "at 09:31:05 rule 'breakout' fired for AAA, which was not expected: price was 101.6",
    ),
    "an alert has another value": (
        "  - at: 09:31:05\n    alerts: [{rule: breakout, symbol: AAA, values: {price: 101.7}}]\n",
        "at 09:31:05 rule 'breakout' fired for AAA with price 101.6; expected 101.7",
    ),
    "a metric has another value": (
        HOLDS + "    metrics: {AAA: {price: 101.7}}\n",
        "at 09:31:05 expected price of AAA to be 101.7; it was 101.6",
    ),
    "a metric is not above": (
        HOLDS + '    metrics: {AAA: {change_pct_day: "> 3"}}\n',
        "at 09:31:05 expected change_pct_day of AAA to be > 3; it was 2.626262626",
    ),
    "a metric is not about": (
        HOLDS + "    metrics: {AAA: {change_pct_day: about 2.62}}\n",
        "at 09:31:05 expected change_pct_day of AAA to be about 2.62; it was 2.626262626",
    ),
    "a metric is unknown and not unequal": (
        HOLDS + '    metrics: {AAA: {rsi_14_1m: "!= 5"}}\n',
        "at 09:31:05 expected rsi_14_1m of AAA to be != 5; it was unknown",
    ),
    "a metric is known": (
        HOLDS + "    metrics: {AAA: {price: unknown}}\n",
        "at 09:31:05 expected price of AAA to be unknown; it was 101.6",
    ),
    "a symbol of the tape has not traded yet": (
        HOLDS + "    metrics: {BBB: {price: 20}}\n",
        "at 09:31:05 expected price of BBB to be 20; it was unknown",
    ),
    "a bar has another volume": (
        HOLDS + "    bars: {AAA: {09:30: [100, 100, 100, 100, 300]}}\n",
        "at 09:31:05 expected the 09:30 bar of AAA to have volume 300; it was 200",
    ),
    "a bar is missing": (
        HOLDS + "    bars: {AAA: {09:29: [1, 1, 1, 1, 1]}}\n",
        "at 09:31:05 expected a 09:29 bar of AAA; there was none",
    ),
    "a bar is there": (
        HOLDS + "    bars: {AAA: {09:30: none}}\n",
        "at 09:31:05 expected no 09:30 bar of AAA; there was [100, 100, 100, 100, 200]",
    ),
    "the total differs": (HOLDS + "alerts_total: 3\n", "expected 3 alerts in all; there was 1"),
}


@pytest.mark.parametrize(("expected", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_wrong_expectation_fails_with_a_sentence(expected: str, sentence: str, tmp_path: Path) -> None:
    assert run_scenario(read(tmp_path / "s.yaml", GIVEN + expected)).failures == [sentence]


def test_right_expectation_of_the_same_scenario_holds(tmp_path: Path) -> None:
    assert run_scenario(read(tmp_path / "s.yaml", GIVEN + HOLDS + "alerts_total: 1\n")).failures == []


def test_other_alerts_are_allowed_if_the_file_says_so(tmp_path: Path) -> None:
    assert run_scenario(read(tmp_path / "s.yaml", GIVEN + "  []\nno_other_alerts: false\n")).failures == []


def test_many_alerts_that_nobody_names_are_told_in_few_sentences(tmp_path: Path) -> None:
    tape = "".join(f"  09:31:04 S{n} 102.00 x 100\n" for n in range(25))
    given = GIVEN.replace("  09:31:30 BBB", f"{tape}  09:31:30 BBB")
    failures = run_scenario(read(tmp_path / "s.yaml", given + "  []\n")).failures
    assert len(failures) == 11
    assert failures[-1] == "at 09:31:05 and then 16 more alerts that no expectation names"


# -- mistakes in a file -----------------------------------------------------------------------------------------------

MISTAKES = {
    "two keys": ("date: 2025-03-03", "date: 2025-03-03\ndate: 2025-03-04", 3, "the key 'date' stands twice"),
    "two symbols": ("{AAA: 99.00, CCC: 5}", "{AAA: 99.00, AAA: 5}", 12, "the key 'AAA' stands twice"),
    "unknown field": ("date: 2025", "dat: 2025", 2, "'dat' is not a field of a scenario; did you mean date?"),
    "no date": ("date: 2025-03-03\n", "", 1, "a scenario lacks 'date'"),
    "not a date": ("2025-03-03", "tomorrow", 2, "'tomorrow' is not a date"),
    "a Saturday": ("2025-03-03", "2025-03-01", 2, "2025-03-01 is not a trading day"),
    "no such date": ("2025-03-03", "2025-02-30", 2, "'2025-02-30' is not a date"),
    "unknown metric": ("rsi_14_1m", "rsi_14", 8, "rules[1].conditions[0].metric: unknown metric 'rsi_14'; did"),
    "cooldown is text": ("cooldown: 60", "cooldown: soon", 6, "rules[0].cooldown: "),
    "value is text": ("value: 101.5", 'value: "101.5"', 5, "rules[0].conditions[0].value: "),
    "value is infinite": ("value: 101.5", "value: .inf", 5, "rules[0].conditions[0].value: "),
    "huge integer": ("value: 101.5", f"value: {'9' * 5000}", 5, "too many digits"),
    "rules twice": ("close_prev", "rules_file: r.json\nclose_prev", 12, "rules or rules_file, not both"),
    "close is zero": ("AAA: 99.00", "AAA: 0", 12, "the previous close of AAA must be a positive number"),
    "profile": ("close_prev", "eligibility: alpacca\nclose_prev", 12, "unknown eligibility profile 'alpacca'"),
    "bit mask": ("close_prev", "eligibility: algoseek\nclose_prev", 15, "a bit mask such as 0x1, and there are none"),
    "interval": ("close_prev", "scan_interval: 50ms\nclose_prev", 12, "'50ms' must be a multiple of 100ms"),
    "endless interval": ("close_prev", f"scan_interval: {'9' * 400}s\nclose_prev", 12, ""),
    "every age": ("09:31:10 AAA", f"from 10:00 to 12:00 every {'9' * 400}s AAA", 16, ""),
    "time of the tape": ("09:30:00 AAA", "25:30:00 AAA", 14, "'25:30:00' is not a time of the day"),
    "no time": ("09:30:00 AAA", "AAA", 14, "'AAA' is not a time such as 09:31:05"),
    "symbol": ("09:30:00 AAA", "09:30:00 aaa", 14, "'aaa' is not a symbol"),
    "price": ("101.60 x", "-1 x", 15, "the price '-1' is not a positive number"),
    "price is zero": ("101.60 x", "0.00 x", 15, "the price '0.00' is not a positive number"),
    "price is too long": ("101.60 x", "1" * 400 + " x", 15, "is not a positive number"),
    "no x": ("101.60 x 100", "101.60 100", 15, "expected 'x', not '100'; a line reads: "),
    "no size": ("101.60 x 100", "101.60 x", 15, "the size is missing"),
    "conditions": ("101.60 x 100", "101.60 x 100 lots", 15, "'lots' is neither sale conditions, a tape nor a time"),
    "tape": ("101.60 x 100", "101.60 x 100 tape D", 15, "'D' is not a tape"),
    "arrives early": ("101.60 x 100", "101.60 x 100 @09:31:04", 15, "arrives at 09:31:04, before it happened"),
    "too much": ("101.60 x 100", "101.60 x 100 tape A @09:31:05 soon", 15, "'soon' is more than a line may hold"),
    "halt with a price": ("101.60 x 100", "halt 5", 15, "'5' is more than a line may hold"),
    "backwards": ("09:31:10 AAA", "from 10:00 to 09:00 every 1s AAA", 16, "does not end after it starts"),
    "endless series": ("09:31:10 AAA", "from 10:00 to 12:00 every 1ms AAA", 16, "more than 500,000 prints"),
    "every what": ("09:31:10 AAA", "from 10:00 to 12:00 every AAA", 16, "every: 'AAA' is not a duration"),
    "every never": ("09:31:10 AAA", "from 10:00 to 12:00 every 0s AAA", 16, "may not have more than"),
    "no such template": ("close_prev", "template: gap-and-fo\nclose_prev", 12, "did you mean gap-and-go"),
    "template twice": (
        "close_prev", "template:\n  - halted\n  - halted\nclose_prev", 14, "'halted' is already the id of another rule"
    ),
    "no such figure": ("close_prev", "facts: {AAA: {high_53w: 5}}\nclose_prev", 12, "did you mean high_52w"),
    "figure is text": ("close_prev", "facts: {AAA: {high_52w: much}}\nclose_prev", 12, "must be a number"),
    "previous close twice": ("close_prev", "facts: {AAA: {close_prev_day: 5}}\nclose_prev", 12, "in close_prev"),
    "no such label": ("close_prev", "labels: {AAA: {colour: red}}\nclose_prev", 12, "'colour' is not a field of"),
    "label": ("close_prev", "labels: {AAA: {exchange: Nasdaq}}\nclose_prev", 12, "is not the MIC of an exchange"),
    "quote without an ask": ("101.60 x 100", "bid 101.60 x 100", 15, "'ask' is missing; a line reads: 09:30:"),
    "quote of nothing": ("101.60 x 100", "bid 0 x 100 ask 5 x 5", 15, "the bid '0' is not a positive number"),
    "quote with conditions": ("101.60 x 100", "bid 5 x 5 ask 6 x 5 I", 15, "'I' is more than a line may hold"),
    "band": ("101.60 x 100", "band 105 to 95", 15, "the lower price comes first"),
    "half a band": ("101.60 x 100", "band 105", 15, "'to' is missing; a line reads: 09:30:00 AAA band"),
    "endless quotes": ("09:31:10 AAA 101", "from 10:00 to 12:00 every 1ms A bid 5 x 5 ask 6 x 5\n  #", 16, "500,000"),
    "tape is folded": ("tape: |", "tape: >", 13, "write `tape: |`"),
    "expect is no list": ("expect:\n", "expect: 5\nx:\n", 20, "'x' is not a field"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "why"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_in_what_is_given_is_named_with_its_line(
    old: str, new: str, line: int, why: str, tmp_path: Path
) -> None:
    assert old in GIVEN
    check_mistake(tmp_path / "s.yaml", GIVEN.replace(old, new, 1) + HOLDS, line, why)


EXPECTED_MISTAKES = {
    "no list": ("  at: 09:31:05\n", 19, "expect must be a list"),
    "no time": ("  - alerts: []\n", 20, "an expectation lacks 'at'"),
    "nothing": ("  - at: 09:31:05\n", 20, "an expectation needs alerts, metrics or bars"),
    "twice": (HOLDS + HOLDS, 22, "09:31:05 stands twice"),
    "before": ("  - at: 09:29:59\n    alerts: []\n", 20, "before the first line of the tape, at 09:30:00"),
    "too fine": ("  - at: 09:31:05.05\n    alerts: []\n", 20, "not a whole tenth of a second"),
    "between scans": ("  - at: 09:31:05.5\n    alerts: []\n", 20, "no rule is asked at 09:31:05.5"),
    "not a time": ("  - at: noon\n    alerts: []\n", 20, "'noon' is not a time"),
    "unknown rule": (
        "  - at: 09:31:05\n    alerts:\n      - breakdown AAA\n",
        22,
        "unknown rule 'breakdown'; there are: breakout, oversold, asleep",
    ),
    "unknown symbol": (
        "  - at: 09:31:05\n    alerts: [breakout AAB]\n",
        21,
        "'AAB' is not on the tape; there are: AAA",
    ),
    "no symbol": ("  - at: 09:31:05\n    alerts: [breakout]\n", 21, "an alert is a rule's id and a symbol"),
    "alert twice": (
        "  - at: 09:31:05\n    alerts: [breakout AAA, breakout AAA]\n",
        21,
        "rule 'breakout' and AAA stand twice",
    ),
    "alerts are no list": ("  - at: 09:31:05\n    alerts: breakout AAA\n", 21, "alerts must be a list"),
    "metric that the rule does not name": (
        "  - at: 09:31:05\n    alerts: [{rule: breakout, symbol: AAA, values: {volume_day: 5}}]\n",
        21,
        "rule 'breakout' does not name volume_day; it names price",
    ),
    "running candle in brackets": (
        '  - at: 09:31:05\n    metrics: {AAA: {"high_5m[0]": 5}}\n',
        21,
        "[1] is the last closed candle",
    ),
    "candle too far back": (
        '  - at: 09:31:05\n    metrics: {AAA: {"high_5m[99]": 5}}\n',
        21,
        "high_5m reaches back no further than [10]",
    ),
    "no metric at all": (
        '  - at: 09:31:05\n    metrics: {AAA: {"a + b": 5}}\n',
        21,
        "'a + b' is not a metric such as price, or close_5m[1]",
    ),
    "unknown metric": (
        "  - at: 09:31:05\n    metrics: {AAA: {prise: 5}}\n",
        21,
        "unknown metric 'prise'; did you mean price?",
    ),
    "value": ("  - at: 09:31:05\n    metrics: {AAA: {price: high}}\n", 21, "'high' is not a value"),
    "value is a list": ("  - at: 09:31:05\n    metrics: {AAA: {price: [1]}}\n", 21, "a value must be one word"),
    "bar of four": (
        "  - at: 09:31:05\n    bars: {AAA: {09:30: [1, 2, 3, 4]}}\n",
        21,
        "a bar is [open, high, low, close",
    ),
    "second of a bar": ("  - at: 09:31:05\n    bars: {AAA: {09:30:10: none}}\n", 21, "not the start of a minute"),
    "total": (HOLDS + "alerts_total: some\n", 22, "alerts_total must be a whole number"),
    "flag": (HOLDS + "no_other_alerts: maybe\n", 22, "no_other_alerts must be true or false"),
    "not YAML": ("  - at: [\n", 21, "not valid YAML"),
    "tab": ("\t- at: 5\n", 20, "not valid YAML"),
    "alias": ("  - &here {at: 09:31:05, alerts: []}\n  - *here\n", 20, "alias"),
    "tag": ("  - at: !!python/object/apply:os.getcwd []\n", 20, "has a tag"),
    "list as a key": ("  - ? [at]\n    : 5\n", 20, "a key must be text"),
    "control character": ("  - at: \x07\n", 20, "U+0007"),
    "two documents": ("  []\n---\nname: 5\n", 21, "not valid YAML"),
}


@pytest.mark.parametrize(("expected", "line", "why"), EXPECTED_MISTAKES.values(), ids=EXPECTED_MISTAKES)
def test_mistake_in_what_is_expected_is_named_with_its_line(expected: str, line: int, why: str, tmp_path: Path) -> None:
    # GIVEN has 19 lines: what is expected starts on line 20.
    check_mistake(tmp_path / "s.yaml", GIVEN + expected, line, why)


def check_mistake(path: Path, text: str, line: int, why: str) -> None:
    with pytest.raises(Invalid) as caught:
        read(path, text)
    assert caught.value.where == f"{path} line {line}", caught.value
    assert why in caught.value.why


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "5\n", "[" * 10_000, "- a\n" * 5, "name: \ud800".encode("utf-8", "surrogatepass")]
)
def test_file_that_is_no_scenario_is_refused(text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Invalid, match=re.escape(str(path))):
        read_scenario(path)


def test_file_of_a_megabyte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(Invalid, match=r"larger than 1,000,000 bytes"):
        read_scenario(tmp_path / "s.yaml")


def test_mistake_in_a_rules_file_names_that_file(tmp_path: Path) -> None:
    text = re.sub(r"rules:.*?close_prev", "rules_file: mine.json\nclose_prev", GIVEN, flags=re.DOTALL) + "  []\n"
    with pytest.raises(Invalid, match=r"s\.yaml line 3: the rules file .*mine\.json cannot be read: No such file"):
        read(tmp_path / "s.yaml", text)
    (tmp_path / "mine.json").write_text('[{"conditions": []}]')
    with pytest.raises(Invalid, match=r"mine\.json: rules\[0\]\.conditions: "):
        read(tmp_path / "s.yaml", text)


# -- rules as text, templates, and what is known of symbols ------------------------------------------------------------

TEXT = """\
name: Rules as text
date: 2025-03-03
rules: |
  watchlist mine = AAA, BBB

  rule breakout
    when price > 101.5 and symbol in watchlist mine
    gate volume_day >= 200
  rule asleep when price > 1 disabled
tape: |
  09:30:00 AAA 101.00 x 100
  09:30:00 CCC 101.00 x 500
  09:31:00 AAA 101.60 x 100
  09:31:00 CCC 101.60 x 100
  09:32:00 BBB 101.60 x 150
expect:
  - at: 09:31:01
    alerts: [{rule: breakout, symbol: AAA, values: {price: 101.6, volume_day: 200}}]
"""


def test_rules_as_text_bring_their_watchlists(tmp_path: Path) -> None:
    assert run_scenario(read(tmp_path / "s.yaml", TEXT + "alerts_total: 1\n")).failures == []


WHY_NOT = {
    "not on the list": ("breakout CCC", "symbol in watchlist mine was not true"),
    "nobody would have fired it": ("asleep AAA", "the rule is not enabled"),
    "the gate": ("breakout BBB", "all conditions held, but not the gate: volume_day was 150, needs >= 200"),
}


@pytest.mark.parametrize(("alert", "why"), WHY_NOT.values(), ids=WHY_NOT)
def test_failure_says_what_was_lacking(alert: str, why: str, tmp_path: Path) -> None:
    failures = run_scenario(read(tmp_path / "s.yaml", f"{TEXT}  - at: 09:32:01\n    alerts: [{alert}]\n")).failures
    rule, symbol = alert.split()
    assert failures == [f"at 09:32:01 expected rule {rule!r} to fire for {symbol}; it did not: {why}"]


AGAIN = {
    "edge": ("fire edge", "already held before"),
    "bar": ("fire once per bar 5m", "it fires once per bar 5m"),
    "rearm": ("rearm when price < 90", "the rule was not armed again by price < 90"),
    "cooldown": ("fire level cooldown 5m", "in the cooldown of 300 s"),
}


@pytest.mark.parametrize(("clause", "why"), AGAIN.values(), ids=AGAIN)
def test_failure_says_why_a_rule_that_is_true_is_silent(clause: str, why: str, tmp_path: Path) -> None:
    text = TEXT.replace("    gate volume_day >= 200\n", f"    {clause}\n").replace(", volume_day: 200", "")
    failures = run_scenario(read(tmp_path / "s.yaml", f"{text}  - at: 09:31:05\n    alerts: [breakout AAA]\n")).failures
    assert "at 09:31:05 expected rule 'breakout' to fire for AAA; it did not: all conditions held" in failures[0]
    assert why in failures[0]
    assert failures[0].endswith("it had fired at 09:31:01")


def test_failure_names_what_a_condition_of_several_values_saw(tmp_path: Path) -> None:
    text = TEXT.replace("price > 101.5 and", "price > high_prev_day * 1.01 and")
    (failure,) = run_scenario(read(tmp_path / "s.yaml", text)).failures
    assert failure.endswith(
        "it did not: price > high_prev_day * 1.01 was unknown "
        "(price was 101.6, high_prev_day was unknown (no reference data))"
    )


TEXT_MISTAKES = {
    "a word": ("price > 101.5", "price over 101.5", 7, "column 16: found 'over'"),
    "a metric": ("gate volume_day", "gate volume_dya", 8, "column 10: unknown metric 'volume_dya'"),
    "two rules of one id": ("rule asleep", "rule breakout", 9, "column 3: there is a rule 'breakout' above already"),
    "a rule without a condition": ("when price > 1 disabled", "disabled", 9, "column 3: the rule asleep has no when"),
    "a name without letters": ("rule asleep", 'rule asleep ""', 9, "rule asleep.name: "),
    "folded text": ("rules: |", "rules: >", 3, "write `rules: |`"),
}


@pytest.mark.parametrize(("old", "new", "line", "why"), TEXT_MISTAKES.values(), ids=TEXT_MISTAKES)
def test_mistake_in_rule_text_is_named_with_its_line_and_column(
    old: str, new: str, line: int, why: str, tmp_path: Path
) -> None:
    assert old in TEXT
    check_mistake(tmp_path / "s.yaml", TEXT.replace(old, new, 1), line, why)


def test_rules_on_one_line_are_text_too(tmp_path: Path) -> None:
    text = re.sub(r"rules: .*?tape", "rules: rule breakout when price > 101.5\ntape", TEXT, flags=re.DOTALL)
    text = text.replace(", volume_day: 200", "")
    assert len(run_scenario(read(tmp_path / "s.yaml", text)).failures) == 2  # CCC and BBB fire as well
    check_mistake(tmp_path / "s.yaml", text.replace("when price", "when prise"), 3, "unknown metric 'prise'")


def test_rules_file_of_text_brings_its_watchlists(tmp_path: Path) -> None:
    inside = re.search(r"rules: \|\n(.*?)tape", TEXT, re.DOTALL)
    assert inside is not None
    (tmp_path / "mine.rules").write_text(inside[1])
    text = re.sub(r"rules: .*?tape", "rules_file: mine.rules\ntape", TEXT, flags=re.DOTALL)
    assert run_scenario(read(tmp_path / "s.yaml", text)).failures == []
    (tmp_path / "mine.rules").write_text("rule x when 5")
    with pytest.raises(Invalid, match=r"mine\.rules: line 1, column 13"):
        read(tmp_path / "s.yaml", text)


def test_templates_stand_beside_rules_of_the_scenario(tmp_path: Path) -> None:
    text = TEXT.replace("tape:", "template: [halted, gap-and-go]\ntape:")
    scenario = read(tmp_path / "s.yaml", text)
    assert [rule.id for rule in scenario.rules] == ["breakout", "asleep", "halted", "gap-and-go"]
    check_mistake(tmp_path / "s.yaml", text.replace("rule asleep", "rule halted"), 10, "already the id of another rule")


KNOWN = """\
name: Figures, labels, quotes and bands
date: 2025-03-03
rules: |
  rule at-the-high when price >= high_52w and exchange is XNAS and sector is "Real estate"
facts:
  AAA: {high_52w: 1_000, avg_daily_volume_20d: 2_000_000.5}
  BBB: {high_52w: 1_000}
  CCC: {low_52w: -5}
labels:
  AAA: {exchange: XNAS, type: CS, sector: Real estate}
  BBB: {exchange: XNYS, sector: Real estate}
tape: |
  09:30:00 AAA 1000.00 x 100
  09:30:00 BBB 1000.00 x 100
  09:30:00 AAA bid 999.98 x 300 ask 1000.02 x 0
  09:30:00 AAA band 950 to 1050
  from 09:30:10 to 09:50:00 every 10s BBB bid 999.00 x 300 ask 1001.00 x 200
expect:
  - at: 09:30:01
    alerts: [{rule: at-the-high, symbol: AAA, values: {price: 1_000, high_52w: 1_000}}]
    metrics:
      AAA: {bid: 999.98, ask: unknown, band_low: 950, band_high: 1050, avg_daily_volume_20d: 2_000_000.5}
      BBB: {bid: unknown, high_52w: 1_000, avg_daily_volume_20d: unknown}
      CCC: {high_52w: unknown}
  - at: 09:50:05
    metrics: {AAA: {bid: unknown}, BBB: {spread: 2, spread_pct: 0.2, quote_age: 5}}
alerts_total: 1
"""


def test_what_is_known_of_symbols_reaches_the_board(tmp_path: Path) -> None:
    assert run_scenario(read(tmp_path / "s.yaml", KNOWN)).failures == []


def test_closed_candles_are_looked_at_by_number(tmp_path: Path) -> None:
    text = """\
name: Candles
date: 2025-03-03
rules: |
  rule inside when high_5m[1] < high_5m[2]
tape: |
  09:31:00 AAA 101.00 x 100
  09:36:00 AAA 100.00 x 100
  09:41:00 AAA 102.00 x 100
expect:
  - at: 09:40:01
    alerts: []
    metrics: {AAA: {high_5m: 100, "high_5m[1]": 101, "high_5m[2]": unknown}}
  - at: 09:40:02
    alerts: [{rule: inside, symbol: AAA, values: {"high_5m[1]": 100, "high_5m[2]": 101}}]
"""
    assert run_scenario(read(tmp_path / "s.yaml", text)).failures == []
    check_mistake(tmp_path / "s.yaml", text.replace('"high_5m[2]": 101', "high_5m: 5"), 14, "does not name high_5m; it")


# -- finding them -----------------------------------------------------------------------------------------------------


def test_folder_gives_its_scenarios_in_order_and_those_below(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", "deep/c.yaml", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(GIVEN + HOLDS)
    found = find_scenarios([tmp_path, tmp_path / "a.yml"])
    assert [scenario.path.name for scenario in found] == ["a.yml", "b.yaml", "c.yaml"]


def test_nothing_to_find_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="has no scenario in it"):
        find_scenarios([tmp_path])
    with pytest.raises(Invalid, match="no such file or folder"):
        find_scenarios([tmp_path / "none.yaml"])


def test_symbol_named_on_is_a_symbol(tmp_path: Path) -> None:
    text = (GIVEN + HOLDS).replace("AAA", "ON")
    assert run_scenario(read(tmp_path / "s.yaml", text)).failures == []


@given(st.text(max_size=60) | st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join))
def test_any_line_is_rows_or_a_mistake(line: str) -> None:
    try:
        rows = list(read_line(line))
    except ValueError as error:
        assert str(error)  # noqa: PT017  some lines are rows
        return
    assert all(0 <= row.at_ns <= row.arrives_ns < DAY_NS for row in rows)


@pytest.mark.parametrize(("text", "ns"), [("09:31", 34_260), ("9:31:05", 34_265), ("00:00", 0), ("23:59:59", 86_399)])
def test_time_of_the_day_is_read_and_shown(text: str, ns: int) -> None:
    assert read_clock(text) == ns * 10**9
    assert read_clock(show_clock(ns * 10**9)) == ns * 10**9


def test_fraction_of_a_second_is_kept() -> None:
    assert read_clock("09:30:00.25") == 34_200_250_000_000
    assert show_clock(34_200_250_000_000) == "09:30:00.25"
