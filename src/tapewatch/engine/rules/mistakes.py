"""What to tell the writer of a rule whose text cannot be read: where, what was found, what could have stood there, and
what was probably meant.
"""

import re
from collections.abc import Collection

from tapewatch.engine.metrics import canonical_metric
from tapewatch.engine.rules.checked import hint
from tapewatch.errors import Invalid

END = "$END"
_SHOWN = 40
"""Characters of what was found."""
_FOUND = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9][A-Za-z0-9_.:%]*|[=<>!]+|[&|]+|.", re.DOTALL)
_BRACKETS = re.compile(r'"(?:[^"\\\n]|\\.)*"|#[^\n]*|[()]')

_OPERATORS = {
    "=>": ">=", "=<": "<=", "<>": "!=", "===": "==", "!==": "!=", "&&": "and", "&": "and", "||": "or", "|": "or",
    "!": "not", "≥": ">=", "≤": "<=", "≠": "!=", "\N{MULTIPLICATION SIGN}": "*", "÷": "/",
    "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "“": '"', "”": '"', "„": '"',
    "'": '"', "{": "(", "}": ")",
}  # fmt: skip
_SYNONYMS = {
    "above": ">", "over": ">", "exceeds": ">", "greater": ">", "more": ">", "below": "<", "under": "<", "less": "<",
    "equals": "==", "equal": "==", "is": "==", "cross": "crosses_above or crosses_below",
    "crosses": "crosses_above or crosses_below", "crossing": "crosses_above or crosses_below",
    "crossed": "crosses_above or crosses_below",
}  # fmt: skip
_WORDS = {
    "_AND": ("and",), "_OR": ("or",), "_NOT": ("not",), "_THEN": ("then",), "_WITHIN": ("within",), "_FOR": ("for",),
    "_TIMES": ("times in a row",), "_IN": ("in",), "_IS": ("is",), "_BETWEEN": ("between",),
    "CROSSES": ("crosses_above", "crosses_below"), "ATTRIBUTE": ("symbol", "exchange", "type", "sector", "session"),
    "_WATCHLIST_WORD": ("watchlist",), "WATCHLIST": ("watchlist",), "RULE": ("rule",), "DESCRIPTION": ("description",),
    "WHEN": ("when",), "_WHEN_WORD": ("when",), "GATE": ("gate",), "REARM": ("rearm",), "FIRE": ("fire",),
    "COOLDOWN": ("cooldown",), "SEVERITY": ("severity",), "TAGS": ("tags",), "DISABLED": ("disabled",),
    "SHARED": ("shared",), "SHARED_WORD": ("shared",),
    "EDGE": ("edge",), "LEVEL": ("level",), "_ONCE": ("once",), "_PER": ("per",), "SESSION_WORD": ("session",),
    "DAY": ("day",), "BAR": ("bar",),
}  # fmt: skip
_VALUE_WORDS = ("not", "abs", "min", "max", "symbol", "exchange", "type", "sector", "session", "time")
_PLAIN_WORDS = (
    "_IS", "_IN", "_TIMES", "_WHEN_WORD", "_WATCHLIST_WORD", "EDGE", "LEVEL", "_ONCE", "_PER", "SESSION_WORD", "DAY",
    "BAR", "SHARED_WORD",
)  # fmt: skip
_CLAUSES = ("DESCRIPTION", "WHEN", "GATE", "REARM", "FIRE", "COOLDOWN", "SEVERITY", "TAGS", "DISABLED", "SHARED")


def place_of(text: str, at: int) -> str:
    """``line 2, column 7``, both counted from 1."""
    return f"line {text.count(chr(10), 0, at) + 1}, column {at - text.rfind(chr(10), 0, at)}"


def unknown_name(name: str, error: ValueError) -> str:
    """What to say of a name that is no metric: it may be a misspelt word of the language too."""
    why = str(error)
    return why if "did you mean" in why else why + hint(name, [word for word in _VALUE_WORDS if word != name])


def explained(
    text: str, at: int, expected: Collection[str], *, begin: int, before: tuple[str, int] | None = None
) -> Invalid:
    """The error at place `at`, where one of the terminals `expected` could have stood. `begin` is where the condition
    starts, `before` a bare name that stands directly in front, and its place.
    """
    if before is not None:
        name, start = before
        try:
            canonical_metric(name)
        except ValueError as error:
            if name not in _VALUE_WORDS:
                return Invalid(place_of(text, start), unknown_name(name, error))
    where = place_of(text, at)
    found = _found(text, at)
    opened = _unclosed(text, begin, at)
    if opened is not None and "RPAR" in expected and (at >= len(text) or found.lower() in _starts()):
        return Invalid(where, f"{_named(found)}: the parenthesis of {place_of(text, opened)} is not closed")
    if found == ")" and opened is None:
        return Invalid(where, "this closing parenthesis was never opened")
    if found == '"':
        return Invalid(where, 'found a "; ' + _wanted(expected) if _closes(text, at) else "this quote is never closed")
    return Invalid(where, f"{_named(found)}; {_wanted(expected)}{_advice(found, expected)}")


def _starts() -> set[str]:
    return {word for name in (*_CLAUSES, "RULE", "WATCHLIST") for word in _WORDS[name]}


def _found(text: str, at: int) -> str:
    match = _FOUND.match(text, at)
    return match.group(0) if match else ""


def _named(found: str) -> str:
    if not found:
        return "found the end of the text"
    shown = found if len(found) <= _SHOWN else found[: _SHOWN - 1] + "…"
    if not found.isascii():
        return f"found {shown!r} (U+{ord(found[0]):04X})"
    return f"found {shown!r}"


def _closes(text: str, at: int) -> bool:
    end = text.find("\n", at)
    return '"' in text[at + 1 : end if end >= 0 else len(text)]


def _unclosed(text: str, begin: int, at: int) -> int | None:
    """The place of the last parenthesis that is opened between `begin` and `at` and not closed."""
    opened: list[int] = []
    for match in _BRACKETS.finditer(text, begin, at):
        if match.group(0) == "(":
            opened.append(match.start())
        elif match.group(0) == ")" and opened:
            opened.pop()
    return opened[-1] if opened else None


def _wanted(expected: Collection[str]) -> str:
    phrases = []
    if "NAME" in expected:
        phrases.append("a condition such as price > 10" if "_NOT" in expected else "a metric or a number")
    if "COMPARE" in expected:
        phrases.append("a comparison such as >, between or crosses_above")
    if "DURATION" in expected:
        phrases.append("a time such as 30s or 5m")
    if "WORD" in expected:
        phrases.append("a name such as AAPL")
    if "ID" in expected:
        phrases.append("an identifier such as gap-and-go")
    if "STRING" in expected and "WORD" not in expected and "ID" not in expected:
        phrases.append("a text in double quotes")
    if "COUNT" in expected:
        phrases.append("a whole number")
    if "LPAR" in expected and "NAME" not in expected and "COMPARE" not in expected:
        phrases.append("(")
    if "_AND" in expected and "COMPARE" not in expected:
        phrases += ["and", "or"]
    if _is_step(expected):
        phrases.append("within and a time (a sequence is written A then B within 10m)")
    phrases += [word for name in _PLAIN_WORDS for word in _WORDS[name] if name in expected]
    signs = (("COMMA", "a comma"), ("RPAR", "a closing parenthesis"), ("RSQB", "]"), ("EQUAL", "="))
    phrases += [phrase for name, phrase in signs if name in expected]
    if set(_CLAUSES) & set(expected):
        phrases.append("a clause such as when, gate or cooldown")
    elif "RULE" in expected:
        phrases.append("a rule or a watchlist")
    if END in expected:
        phrases.append("the end")
    return "expected " + (" or ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1]))) if phrases else "the end")


def _is_step(expected: Collection[str]) -> bool:
    """The second step of a sequence could end here, but its time is missing."""
    return "_WITHIN" in expected and not {END, "RPAR", "RULE"} & set(expected)


def _advice(found: str, expected: Collection[str]) -> str:
    if found in _OPERATORS:
        return f"; write {_OPERATORS[found]}"
    if found and found[0] in "=<>!":
        if "_IS" in expected:
            return "; write is, such as symbol is AAPL"
        if "_AND" in expected and "COMPARE" not in expected:
            return "; join comparisons with and, such as price > 5 and price < 50"
        return ""
    word = found.lower()
    if "COMPARE" in expected and word in _SYNONYMS:
        return f"; write {_SYNONYMS[word]}"
    if found[:1].isdigit():
        return _advice_on_number(found, expected)
    if not word.isidentifier():
        return ""
    known = [spelt for name in expected for spelt in _WORDS.get(name, ())]
    return hint(word, sorted(known))


def _advice_on_number(found: str, expected: Collection[str]) -> str:
    if "DURATION" in expected:
        return "; times are written 500ms, 30s, 5m, 2h or 1h30m"
    if "NUMBER" in expected:
        if re.fullmatch(r"[0-9.]+[mb]", found):
            return "; a million is 1M, a billion 1B"
        if re.fullmatch(r"[0-9.]+(?:ms|s|m|h)+", found):
            return "; a time can stand only behind for, within and cooldown"
        return "; numbers are written 1500, 1_500, 1.5k, 2M or 1e6"
    return ""
