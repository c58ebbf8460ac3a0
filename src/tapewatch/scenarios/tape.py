"""A tape that people can write: one print, quote, halt or series a line, in New York time.

Owns the grammar of a line and nothing of what a print may do. It knows no file: an error is a ValueError that says why,
and the caller knows the line.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tapewatch.config import duration_s
from tapewatch.engine.columns import MINUTE_NS, SECOND_NS, Kind
from tapewatch.errors import ConfigError

MOST_ROWS = 500_000
DAY_NS = 24 * 60 * MINUTE_NS
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?")
_NUMBER = re.compile(r"(?:\d{1,3}(?:_\d{3}){1,3}|\d{1,12})(\.\d{1,9})?")
_SYMBOL = re.compile(r"[A-Z][A-Za-z0-9./\-]{0,23}")
_TOKEN = re.compile(r'"[^"]*"|[^\s"]+|"')
_CONDITIONS = re.compile(r'"[^"]*"|[A-Z0-9]{1,8}|0x[0-9a-f]{1,8}')
PRINT: Final = '09:30:00 AAA 100.00 x 200 ["@ TI"] [tape C] [@09:30:05]'
SERIES: Final = "from 09:30 to 09:45 every 10s AAA 100.00 -> 103.00 x 200"
QUOTE: Final = "09:30:00 AAA bid 99.98 x 300 ask 100.02 x 200"
BAND: Final = "09:30:00 AAA band 95.00 to 105.00"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one row of the tape says. Times are nanoseconds since midnight in New York."""

    kind: Kind = Kind.TRADE
    symbol: str
    at_ns: int
    """When it happened."""
    arrives_ns: int
    """When it is on the tape: later than `at_ns` for a late print."""
    price: float = 0.0
    size: float = 0.0
    conditions: str = " "
    tape: str = ""


def read_clock(text: str) -> int:
    """``09:31``, ``09:31:05`` or ``09:31:05.250`` as nanoseconds since midnight; ValueError otherwise."""
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time such as 09:31:05 or 09:31:05.250")
    hour, minute, second, fraction = int(match[1]), int(match[2]), int(match[3] or 0), (match[4] or "").ljust(9, "0")
    if hour > 23 or minute > 59 or second > 59:
        raise ValueError(f"{text!r} is not a time of the day")
    return (hour * 3600 + minute * 60 + second) * SECOND_NS + int(fraction)


def show_clock(at_ns: int) -> str:
    """The time of the day, with a fraction only if it has one."""
    seconds, fraction = divmod(at_ns % DAY_NS, SECOND_NS)
    text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{text}.{fraction:09}".rstrip("0") if fraction else text


def read_line(text: str) -> Iterator[Row]:
    """The rows of one line; none for a blank line or a comment. ValueError says what is wrong."""
    tokens = _Tokens(text)
    if tokens.end:
        return
    if tokens.peek == "from":
        yield from _series(tokens)
    else:
        yield from _single(tokens)


class _Tokens:
    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        for token in _TOKEN.findall(text):
            if token.startswith("#"):
                break
            self._tokens.append(token)
        self._next = 0
        forms = {"bid": QUOTE, "band": BAND}
        self._form = SERIES if self.peek == "from" else forms.get(" ".join(self._tokens[2:3]), PRINT)

    @property
    def end(self) -> bool:
        return self._next >= len(self._tokens)

    @property
    def peek(self) -> str:
        return "" if self.end else self._tokens[self._next]

    def take(self, what: str) -> str:
        if self.end:
            raise ValueError(f"{what} is missing; a line reads: {self._form}")
        self._next += 1
        return self._tokens[self._next - 1]

    def keyword(self, word: str) -> None:
        token = self.take(f"{word!r}")
        if token != word:
            raise ValueError(f"expected {word!r}, not {token!r}; a line reads: {self._form}")

    def number(self, what: str, *, zero: bool = False) -> tuple[float, int]:
        """A number and how many decimals it is written with."""
        token = self.take(what)
        match = _NUMBER.fullmatch(token)
        if match is None or (float(token) == 0 and not zero):
            raise ValueError(f"{what} {token!r} is not a {'' if zero else 'positive '}number")
        return float(token), len((match[1] or ".")[1:])

    def symbol(self) -> str:
        token = self.take("the symbol")
        if not _SYMBOL.fullmatch(token):
            raise ValueError(f"{token!r} is not a symbol")
        return token

    def clock(self) -> int:
        return read_clock(self.take("the time"))

    def duration_ns(self) -> int:
        token = self.take("how often")
        try:
            return round(duration_s(token, option="every") * SECOND_NS)
        except ConfigError as error:
            raise ValueError(str(error)) from None

    def details(self) -> tuple[str, str]:
        """Sale conditions and tape; both may be left out."""
        conditions, tape = " ", ""
        if not self.end and self.peek != "tape" and not self.peek.startswith("@"):
            conditions = self.take("conditions")
            if not _CONDITIONS.fullmatch(conditions):
                raise ValueError(f"{conditions!r} is neither sale conditions, a tape nor a time of arrival")
            conditions = conditions.strip('"') or " "
        if self.peek == "tape":
            self.keyword("tape")
            tape = self.take("the tape")
            if tape not in {"A", "B", "C"}:
                raise ValueError(f"{tape!r} is not a tape: A, B or C")
        return conditions, tape

    def close(self) -> None:
        if not self.end:
            raise ValueError(f"{self.peek!r} is more than a line may hold; a line reads: {self._form}")


def _single(tokens: _Tokens) -> Iterator[Row]:
    at_ns, symbol = tokens.clock(), tokens.symbol()
    match tokens.peek:
        case "halt" | "resume":
            kind = Kind.HALT if tokens.take("halt or resume") == "halt" else Kind.RESUME
            tokens.close()
            yield Row(kind=kind, symbol=symbol, at_ns=at_ns, arrives_ns=at_ns)
        case "bid":
            sides = _quote(tokens)
            tokens.close()
            yield from _rows_of_quote(sides, symbol, at_ns)
        case "band":
            yield from _band(tokens, symbol, at_ns)
        case _:
            yield _print(tokens, symbol, at_ns)


def _quote(tokens: _Tokens) -> tuple[float, float, float, float]:
    """Bid, its size, ask, its size; size 0 is no bid, or no ask."""
    tokens.keyword("bid")
    bid, _ = tokens.number("the bid")
    tokens.keyword("x")
    bid_size, _ = tokens.number("the bid's size", zero=True)
    tokens.keyword("ask")
    ask, _ = tokens.number("the ask")
    tokens.keyword("x")
    ask_size, _ = tokens.number("the ask's size", zero=True)
    return bid, bid_size, ask, ask_size


def _rows_of_quote(sides: tuple[float, float, float, float], symbol: str, at_ns: int) -> Iterator[Row]:
    bid, bid_size, ask, ask_size = sides
    yield Row(kind=Kind.BID, symbol=symbol, at_ns=at_ns, arrives_ns=at_ns, price=bid, size=bid_size)
    yield Row(kind=Kind.ASK, symbol=symbol, at_ns=at_ns, arrives_ns=at_ns, price=ask, size=ask_size)


def _band(tokens: _Tokens, symbol: str, at_ns: int) -> Iterator[Row]:
    tokens.keyword("band")
    low, _ = tokens.number("the lower price")
    tokens.keyword("to")
    high, _ = tokens.number("the upper price")
    tokens.close()
    if low >= high:
        raise ValueError(f"a band from {low:g} to {high:g} is none: the lower price comes first")
    yield Row(kind=Kind.BAND_LOW, symbol=symbol, at_ns=at_ns, arrives_ns=at_ns, price=low)
    yield Row(kind=Kind.BAND_HIGH, symbol=symbol, at_ns=at_ns, arrives_ns=at_ns, price=high)


def _print(tokens: _Tokens, symbol: str, at_ns: int) -> Row:
    price, _ = tokens.number("the price")
    tokens.keyword("x")
    size, _ = tokens.number("the size", zero=True)
    conditions, tape = tokens.details()
    arrives_ns = at_ns
    if tokens.peek.startswith("@"):
        arrives_ns = read_clock(tokens.take("the time of arrival")[1:])
        if arrives_ns < at_ns:
            raise ValueError(f"the print arrives at {show_clock(arrives_ns)}, before it happened")
    tokens.close()
    return Row(
        symbol=symbol,
        at_ns=at_ns,
        arrives_ns=arrives_ns,
        price=price,
        size=size,
        conditions=conditions,
        tape=tape,
    )


def _series(tokens: _Tokens) -> Iterator[Row]:
    tokens.keyword("from")
    first_ns = tokens.clock()
    tokens.keyword("to")
    last_ns = tokens.clock()
    tokens.keyword("every")
    step_ns = tokens.duration_ns()
    symbol = tokens.symbol()
    sides = _quote(tokens) if tokens.peek == "bid" else None
    if sides is not None:
        tokens.close()
        for at_ns in _instants(first_ns, last_ns, step_ns):
            yield from _rows_of_quote(sides, symbol, at_ns)
        return
    first, decimals = tokens.number("the price")
    last = first
    if tokens.peek == "->":
        tokens.keyword("->")
        last, more = tokens.number("the last price")
        decimals = max(decimals, more)
    tokens.keyword("x")
    size, _ = tokens.number("the size", zero=True)
    conditions, tape = tokens.details()
    tokens.close()
    for at_ns in _instants(first_ns, last_ns, step_ns):
        price = first + (last - first) * (at_ns - first_ns) / (last_ns - first_ns)
        yield Row(
            symbol=symbol,
            at_ns=at_ns,
            arrives_ns=at_ns,
            price=round(price, max(decimals, 2)),
            size=size,
            conditions=conditions,
            tape=tape,
        )


def _instants(first_ns: int, last_ns: int, step_ns: int) -> range:
    if last_ns <= first_ns:
        raise ValueError(f"a series to {show_clock(last_ns)} does not end after it starts")
    if step_ns <= 0 or (last_ns - first_ns) // step_ns >= MOST_ROWS:
        raise ValueError(f"a series may not have more than {MOST_ROWS:,} prints")
    return range(first_ns, last_ns + 1, step_ns)
