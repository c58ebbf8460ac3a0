"""The text of rules: text to checked tree. `spelling` goes the other way.

A text is read in time that grows with its length, and refused as soon as it breaks a limit. Whatever is wrong with it
is `Invalid`, whose place is a line and a column.
"""

from functools import cache
from typing import Any, cast

from lark import Lark, Token
from lark.exceptions import UnexpectedInput, UnexpectedToken

from tapewatch.engine.rules import checked
from tapewatch.engine.rules.grammar import GRAMMAR
from tapewatch.engine.rules.mistakes import END, explained, place_of
from tapewatch.engine.rules.phrases import MAX_SYMBOLS, MAX_TAGS, Build, RuleFile, parse_duration, refuse
from tapewatch.engine.rules.spelling import (
    WrittenRule,
    WrittenWatchlist,
    format_condition,
    format_fire,
    format_rule,
    format_watchlist,
)
from tapewatch.engine.rules.tree import Condition, Fire
from tapewatch.errors import Invalid

MAX_TEXT = 8_000
"""Characters of a condition."""
MAX_FILE = 1_000_000
_MAX_STACK = 400
"""Of what is begun and not yet ended: more than any tree within the limits needs."""
_NO_LIMIT = 1 << 62


def parse_condition(text: str) -> Condition:
    """The tree of a condition such as ``gap_pct > 4 and price > vwap_session``."""
    condition: Condition = _parse(text, "condition", MAX_TEXT)
    return condition


def parse_fire(text: str) -> Fire:
    """``edge``, ``level``, ``once per session``, ``once per day`` or ``once per bar 5m``."""
    fire: Fire = _parse(text, "fire", MAX_TEXT)
    return fire


def parse_rules(text: str) -> RuleFile:
    """A file of rules and watchlists. Each id stands once."""
    file: RuleFile = _parse(text, "file", MAX_FILE)
    return file


# -- reading ----------------------------------------------------------------------------------------------------------


@cache
def _parser() -> Lark:
    return Lark(
        GRAMMAR,
        parser="lalr",
        lexer="contextual",
        start=["condition", "fire", "file"],
        transformer=Build(),
        maybe_placeholders=False,
    )


_CONDITIONS_OF_A_RULE = {"WHEN", "GATE", "REARM"}
_OTHER_PARTS = {
    "WATCHLIST", "RULE", "DESCRIPTION", "FIRE", "COOLDOWN", "SEVERITY", "TAGS", "DISABLED", "SHARED",
}  # fmt: skip
_PARTS = _CONDITIONS_OF_A_RULE | _OTHER_PARTS


def _parse(text: str, start: str, limit: int) -> Any:
    if len(text) > limit:
        raise Invalid("", f"is longer than {limit:,} characters")
    text = text.replace("\r\n", "\n")
    hidden = checked.unseen(text)
    if hidden is not None:
        raise Invalid(place_of(text, hidden), f"has a character that cannot be shown (U+{ord(text[hidden]):04X})")
    run: Any = _parser().parse_interactive(text, start=start)  # much of its class has no types
    state = run.parser_state
    stack = state.state_stack
    begin, last_end = 0, limit
    before: Token | None = None
    try:
        for token in run.lexer_thread.lex(state):
            if token.type in _CONDITIONS_OF_A_RULE:
                last_end = _start(token) + MAX_TEXT
            elif token.type in _OTHER_PARTS:
                last_end = _NO_LIMIT
            if token.end_pos > last_end:
                refuse(token, f"the condition is longer than {MAX_TEXT:,} characters")
            if len(stack) > _MAX_STACK:
                refuse(token, f"the condition is nested deeper than {checked.MAX_DEPTH} levels")
            state.feed_token(token)
            if token.type in _PARTS:
                begin = _start(token)
            before = token
        return run.feed_eof(before)
    except UnexpectedInput as error:
        at = len(text)
        if not (isinstance(error, UnexpectedToken) and error.token.type == END):
            at = cast("int", error.pos_in_stream)
        name = (str(before), _start(before)) if before is not None and before.type == "NAME" else None
        raise explained(text, at, run.accepts(), begin=begin, before=name) from None


def _start(token: Token) -> int:
    return cast("int", token.start_pos)


__all__ = [
    "MAX_FILE",
    "MAX_SYMBOLS",
    "MAX_TAGS",
    "MAX_TEXT",
    "RuleFile",
    "WrittenRule",
    "WrittenWatchlist",
    "format_condition",
    "format_fire",
    "format_rule",
    "format_watchlist",
    "parse_condition",
    "parse_duration",
    "parse_fire",
    "parse_rules",
]
