"""What a scenario gives beside its tape: the rules that are asked, and what is known of the symbols.

Owns these fields and their errors, each with the line at which it stands. `script` reads the rest of the file.
"""

import math
import re
from collections.abc import Collection, Mapping

from tapewatch.documents import Rule, Watchlist, load_rule_file, rules_of
from tapewatch.engine.columns import LABELS
from tapewatch.engine.daily import DAILY_FACTS
from tapewatch.engine.rules import checked
from tapewatch.errors import Invalid
from tapewatch.scenarios.source import Node, Source
from tapewatch.templates import templates

_PLACE = re.compile(r"line (\d+)(?:, column (\d+))?")


def rules_given(source: Source, inline: Node | None, file: Node | None) -> tuple[list[Rule], list[Watchlist]]:
    """The rules of the field `rules`, a list or a block of text, or of the file that `rules_file` names."""
    if inline is not None and file is not None:
        raise source.invalid(file.line, "a scenario has rules or rules_file, not both")
    if inline is not None:
        return _rules_of_text(source, inline) if isinstance(inline.value, str) else (_rules_of_list(source, inline), [])
    if file is None:
        return [], []
    path = source.path.parent / source.word(file, "rules_file")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise source.invalid(file.line, f"the rules file {path} cannot be read: {error.strerror}") from None
    return load_rule_file(text, where=str(path))


def _rules_of_list(source: Source, node: Node) -> list[Rule]:
    try:
        return rules_of(node.plain)
    except Invalid as error:
        line = node.at(error.where.removeprefix("rules")).line
        raise source.invalid(line, str(error)) from None


def _rules_of_text(source: Source, node: Node) -> tuple[list[Rule], list[Watchlist]]:
    """A mistake is told by its line and column in the scenario's file."""
    if not node.is_block and "\n" in node.value:
        raise source.invalid(node.line, "rules as text must be lines: write `rules: |` and the lines below it")
    try:
        return load_rule_file(node.value, where="inline.rules")
    except Invalid as error:
        place = _PLACE.search(error.where)
        if place is None:
            raise source.invalid(node.line, error.why) from None
        line = node.line + int(place[1]) - 1 + node.is_block
        column = f"column {int(place[2]) + node.indent}" if place[2] and node.is_block else ""
        field = error.where[place.end() :].strip(": ")
        raise source.invalid(line, ": ".join(filter(None, (column, field, error.why)))) from None


def templates_given(source: Source, node: Node | None, *, taken: Collection[str]) -> list[Rule]:
    """The ready-made rules that the field `template` names; `taken` are the ids of the scenario's own."""
    if node is None:
        return []
    found: dict[str, Rule] = {}
    for item in node.value if isinstance(node.value, list) else [node]:
        name = source.word(item, "a template")
        if name not in templates():
            hint = checked.hint(name, templates()) or f"; there are: {', '.join(templates())}"
            raise source.invalid(item.line, f"there is no template {name!r}{hint}")
        if name in found or name in taken:
            raise source.invalid(item.line, f"{name!r} is already the id of another rule of the scenario")
        found[name] = templates()[name]
    return list(found.values())


def close_prev_given(source: Source, node: Node | None) -> dict[str, float]:
    """Previous closes by symbol."""
    if node is None:
        return {}
    prices: dict[str, float] = {}
    for symbol, price in source.pairs(node, "close_prev").items():
        if not price.is_number or not 0 < price.value < math.inf:
            raise source.invalid(price.line, f"the previous close of {symbol} must be a positive number")
        prices[symbol] = float(price.value)
    return prices


def facts_given(source: Source, node: Node | None, *, close_prev: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Daily figures by symbol and name."""
    if node is None:
        return {}
    found: dict[str, dict[str, float]] = {}
    for symbol, figures in source.pairs(node, "facts").items():
        for name, figure in source.pairs(figures, f"the facts of {symbol}").items():
            if name not in DAILY_FACTS:
                hint = checked.hint(name, DAILY_FACTS) or "; docs/reference-data.md lists them"
                raise source.invalid(figure.line, f"{name!r} is no daily figure{hint}")
            if not figure.is_number or not math.isfinite(figure.value):
                raise source.invalid(figure.line, f"{name} of {symbol} must be a number")
            if name == "close_prev_day" and symbol in close_prev:
                raise source.invalid(figure.line, f"the previous close of {symbol} stands in close_prev already")
            found.setdefault(symbol, {})[name] = float(figure.value)
    return found


def labels_given(source: Source, node: Node | None) -> dict[str, dict[str, str]]:
    """What symbols are, by symbol and label."""
    if node is None:
        return {}
    found: dict[str, dict[str, str]] = {}
    for symbol, words in source.pairs(node, "labels").items():
        for name, word in source.fields(words, f"the labels of {symbol}", optional=LABELS).items():
            text = source.word(word, name)
            try:
                checked.attribute(name, (text,))
            except ValueError as error:
                raise source.invalid(word.line, str(error)) from None
            found.setdefault(symbol, {})[name] = text
    return found
