"""The guide to rules is true: every example on it is read, run, or compared."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from tapewatch.cli import app
from tapewatch.config import RULES_A_USER, WATCHLISTS_A_USER
from tapewatch.documents import MAX_CONDITIONS, Rule, load_rule_file
from tapewatch.engine.rules import checked
from tapewatch.engine.rules.cost import MAX_COST_US
from tapewatch.engine.rules.plan import MOST_MATCHES
from tapewatch.engine.rules.text import (
    MAX_FILE,
    MAX_SYMBOLS,
    MAX_TAGS,
    MAX_TEXT,
    format_condition,
    parse_condition,
    parse_rules,
)
from tapewatch.errors import Invalid
from tapewatch.rule_forms import condition_of
from tapewatch.scenarios import run_scenario
from tapewatch.scenarios.script import read_scenario
from tapewatch.templates import templates

DOCUMENT = Path(__file__).parent.parent / "docs" / "rules.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
KINDS = {"rule", "rules", "json", "scenario", "text", "sh"}


class Block(NamedTuple):
    kind: str
    text: str
    line: int
    before: "Block | None"
    """The block that this one follows with nothing but a blank line between them."""


def blocks() -> Iterator[Block]:
    before, end = None, -1
    for match in re.finditer(r"^```(\S*)\n(.*?)^```\n", TEXT, re.DOTALL | re.MULTILINE):
        follows = not TEXT[end : match.start()].strip() if before else False
        line = TEXT.count("\n", 0, match.start()) + 1
        before = Block(match[1], match[2], line, before if follows else None)
        end = match.end()
        yield before


BLOCKS = list(blocks())
ROWS = re.findall(r"^\| ([^|]+) \| `([^`|]+)` \| `(\{[^`|]+\})` \|$", TEXT, re.MULTILINE)


def run(block: Block, folder: Path) -> None:
    match block.kind:
        case "rule":
            tree = parse_condition(block.text)
            assert parse_condition(format_condition(tree)) == tree
        case "rules":
            rules, watchlists = load_rule_file(block.text, where="guide.rules")
            assert rules
            written = "".join([*(w.written() for w in watchlists), *(rule.written() for rule in rules)])
            assert load_rule_file(written, where="again.rules") == (rules, watchlists)
        case "json":
            assert block.before is not None, "a block of JSON says what the block before it says"
            assert block.before.kind == "rules"
            as_text, as_json = (load_rule_file(b.text, where=f"x.{b.kind}") for b in (block.before, block))
            assert as_json == as_text
        case "scenario":
            file = folder / "guide.yaml"
            file.write_text(block.text, encoding="utf-8")
            assert run_scenario(read_scenario(file)).failures == []
        case "sh":
            check_commands(block.text)


def check_commands(text: str) -> None:
    for line in text.splitlines():
        words = line.split("#")[0].split()
        assert words[0] == "tapewatch"
        command = typer.main.get_command(app)
        for word in words[1:3]:
            if hasattr(command, "commands"):
                assert word in command.commands, line
                command = command.commands[word]
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line {block.line}")
def test_example_of_the_guide_holds(block: Block, tmp_path: Path) -> None:
    assert block.kind in KINDS
    run(block, tmp_path)


def test_no_example_is_left_out() -> None:
    assert len(BLOCKS) * 2 == len(re.findall(r"^ *(?:```|~~~)", TEXT, re.MULTILINE))
    assert {"rule", "rules", "json", "scenario"} <= {block.kind for block in BLOCKS}


@pytest.mark.parametrize(("meaning", "text", "form"), ROWS, ids=lambda value: value[:24])
def test_text_and_json_of_the_table_are_the_same_condition(meaning: str, text: str, form: str) -> None:
    tree = parse_condition(text)
    assert condition_of(json.loads(form)) == tree, meaning
    assert parse_condition(format_condition(tree)) == tree


def test_every_kind_of_node_is_in_the_table() -> None:
    shown = {text for _, text, _ in ROWS}
    assert len(ROWS) == TEXT.count(" | `{")
    for sign in (*("> ", ">= ", "< ", "<= ", "== ", "!= "), "between", "not between", "crosses_above", "crosses_below"):
        assert any(sign in text for text in shown), sign
    for word in ("then", "or", "and", "not", "for", "within", "times in a row", "in watchlist", "abs(", "max(", "min("):
        assert any(word in text for text in shown), word


def test_numbers_and_words_are_written_as_the_guide_says() -> None:
    wanted = parse_condition("volume_day > 100000 and gap_pct > 4")
    for number in ("100_000", "100k", "0.1M", "1e5"):
        assert parse_condition(f"volume_day > {number} AND gap_pct > 4%") == wanted
    with pytest.raises(Invalid, match="is dollars, but it stands beside per cent"):
        parse_condition("gap_pct > $4")
    assert (10.5 / 10 - 1) * 100 == 5.000000000000004


def test_limits_are_those_of_the_program() -> None:
    (table,) = re.findall(r"^## Limits\n\n(.*?)\n\n", TEXT, re.DOTALL | re.MULTILINE)
    limits = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", table, re.MULTILINE))
    hour_ns = 3_600 * 10**9
    wanted = {
        "a condition as text": f"{MAX_TEXT:,} characters",
        "parts of a condition (metrics, numbers, operators)": str(checked.MAX_NODES),
        "levels of nesting": str(checked.MAX_DEPTH),
        "names in a list": str(checked.MAX_LISTED),
        "symbols of a watchlist": f"{MAX_SYMBOLS:,}",
        "tags of a rule": str(MAX_TAGS),
        "rules of a user": str(RULES_A_USER),
        "watchlists of a user": str(WATCHLISTS_A_USER),
        "conditions of a rule in JSON": str(MAX_CONDITIONS),
        "a file": f"{MAX_FILE:,} characters",
        "closed candles back": "10",
        "times in a row": f"{checked.MIN_TIMES} to {checked.MAX_TIMES:,}",
        "a duration": f"{checked.MIN_DURATION_NS // 10**6}ms to {checked.MAX_DURATION_NS // hour_ns}h",
        "a cooldown": "168h",
        "estimated cost, for ten thousand stocks": f"{MAX_COST_US:,.0f} us a scan",
        "alerts of one rule at one scan": f"{MOST_MATCHES:,}; the first by name, the others are counted",
    }
    assert {name: limit for name, limit in limits.items() if name not in {"what", "---"}} == wanted
    parse_rules("rule a when price > 5 cooldown 168h")
    with pytest.raises(Invalid, match="at most 168h"):
        parse_rules("rule a when price > 5 cooldown 169h")
    parse_condition("high_5m[10] > 5")
    with pytest.raises(ValueError, match="no further than"):
        checked.operand("high_5m", 11)


def test_ready_made_rules_are_listed() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \|$", TEXT, re.MULTILINE)

    def row(rule: Rule) -> tuple[str, str, str]:
        return rule.id, rule.name, ", ".join(rule.tags)

    listed = [found for found in rows if found[0] in templates()]
    assert listed == [row(rule) for rule in templates().values()]
