"""What the bytes of a state hold, what is refused, and that no attribute of the engine is left behind."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from random import Random
from types import CellType, FunctionType, MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tapes import STYLES, VENDORS, facts_of, make_tape, to_entries, to_facts, trading_days

from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.calendar import TradingDays
from tapewatch.engine.columns import SECOND_NS, Batch, Gap, make_batch, pulse
from tapewatch.engine.conditions import Profile
from tapewatch.engine.frozen import Frozen, Whitelist, _digest, freeze
from tapewatch.engine.indicators import Indicators
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.rules.text import parse_condition
from tapewatch.engine.rules.tree import Fire, Ruleset, RuleSpec
from tapewatch.engine.scanner import _WHITELIST, Scanner
from tapewatch.errors import Invalid

VENDOR = next(vendor for vendor in VENDORS if vendor.name == "sip")
MADE_WITH: dict[str, Any] = {
    "days": trading_days(),
    "profile": VENDOR.profile,
    "scan_interval_ns": SECOND_NS,
    "board_interval_ns": SECOND_NS,
    "kept_trades": 100,
}
WHENS = (
    "price > 20 and price < 80",
    "price crosses_above vwap_day for 2s",
    "(price > 30 within 5s) or not exchange is XNAS",
    "close_5m[1] > price 3 times in a row",
    "price > 10 then volume_day > 100 within 30s",
    "symbol in watchlist mine and session is regular",
    "max(price, 30) - 3 > low_day and price between 10 and 90",
    "rsi_14_5m > 10 or atr_14_1m > 0 or consecutive_candles_1m > 0 or swing_low_1h > 3 or price_4h > 2"
    if "price_4h" in CATALOGUE
    else "rsi_14_5m > 10 or atr_14_1m > 0 or consecutive_candles_1m > 0 or swing_low_1h > 3",
)
_HEAD = 56


def rich_scanner(rows: int = 150) -> Scanner:
    """One that keeps all that can be kept."""
    scanner = Scanner(**MADE_WITH)
    rules = tuple(
        RuleSpec(
            id=f"r{i}",
            version=1,
            name="rule",
            when=parse_condition(when),
            gate=parse_condition("price > 1") if i % 2 else None,
            fire=Fire("level") if i % 3 else Fire("bar", 5),
            cooldown_ns=i * SECOND_NS,
        )
        for i, when in enumerate(WHENS)
    )
    scanner.apply(Ruleset(number=1, rules=rules, watchlists={"mine": frozenset({"AA", "QQ"})}))
    scanner.keep(CATALOGUE)
    for facts in to_facts(facts_of(Random(1))):
        scanner.learn(facts)
    tape = make_tape(Random(7), STYLES[1], VENDOR, rows=rows, symbols=4, wild=True)
    for entry in to_entries(tape, set(range(0, len(tape), 10))):
        assert isinstance(entry, Batch)
        scanner.step(entry)
    scanner.gap(Gap(scanner.watermark_ns - SECOND_NS, scanner.watermark_ns, "network"))
    return scanner


# -- nothing is left behind -------------------------------------------------------------------------------------------


def parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value consists of, whatever it is; this knows nothing of what is carried."""
    if isinstance(value, dict | MappingProxyType):
        yield "keys", list(value)
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield "length", len(value)
        yield from ((f"[{place}]", part) for place, part in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield "members", sorted(value)
    elif isinstance(value, FunctionType):
        yield "name", value.__qualname__
        yield from ((f"cell {place}", cell) for place, cell in enumerate(value.__closure__ or ()))
    elif isinstance(value, CellType):
        yield "contents", value.cell_contents
    else:
        names = {field.name for field in fields(value)} if is_dataclass(value) else set()
        for base in type(value).__mro__:
            slots = vars(base).get("__slots__", ())
            names |= {slots} if isinstance(slots, str) else set(slots)
        names |= set(getattr(value, "__dict__", ()))
        names -= {"__weakref__", "__dict__"}
        yield "attributes", sorted(name for name in names if hasattr(value, name))
        yield from ((f".{name}", getattr(value, name)) for name in sorted(names) if hasattr(value, name))


def differences(one: Any, other: Any, without: set[tuple[str, str]]) -> list[str]:
    """Paths at which two objects differ; those that are the same twice in one must be so in the other."""
    found: list[str] = []
    waiting = [("", one, other)]
    twins: dict[int, int] = {}
    alive: list[Any] = []
    while waiting:
        path, a, b = waiting.pop()
        alive.append((a, b))  # so that a number stays that object's
        if type(a) is not type(b):
            found.append(f"{path}: {type(a)} and {type(b)}")
        elif a is None or isinstance(a, bool | int | str | bytes | Enum | type | slice):
            found += [path] * (a != b)
        elif isinstance(a, float | np.generic):
            found += [path] * (repr(a) != repr(b))
        elif id(a) in twins:
            found += [f"{path}: another object"] * (isinstance(a, dict | list) and twins[id(a)] != id(b))
        elif isinstance(a, np.ndarray):
            same = a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
            found += [path] * (not same)
            twins[id(a)] = id(b)
        elif not (callable(a) and a is b):
            twins[id(a)] = id(b)
            for (name, x), (also, y) in zip(parts(a), parts(b), strict=False):
                found += [f"{path}{name} and {also}"] * (name != also)
                if (type(a).__name__, name.removeprefix(".")) not in without:
                    waiting.append((path + name, x, y))
    return found


CACHES = {
    ("SymbolTable", "_dictionary"),
    ("SymbolTable", "_translation"),
    ("EffectTable", "_dictionary"),
    ("EffectTable", "_table"),
    ("Spans", "_closed"),
    ("Spans", "_revised"),
    ("Frame", "_closed"),
    ("Board", "_memo"),
    ("Board", "values"),
    ("Scene", "computed"),
    ("Plan", "_sealed"),
    # A question that depends on this scan alone answers anew when it is asked again.
    ("Question", "_scan"),
    ("Question", "_answer"),
}
"""What is empty after a thaw and filled when somebody asks. All else that is made again is as it was."""


def test_thawed_engine_equals_the_frozen_one_attribute_by_attribute() -> None:
    scanner = rich_scanner()
    thawed = Scanner.thaw(scanner.freeze(), **MADE_WITH)
    assert differences(scanner, thawed, CACHES) == []
    for kind, names in zip(_WHITELIST.kinds, _WHITELIST.attributes, strict=True):
        assert {*kind.given, *kind.remade} <= set(names), kind
    assert {kind.cls for kind in _WHITELIST.kinds} >= {type(scanner), type(scanner.bars), type(scanner.plan)}


def test_each_class_that_may_be_carried_is() -> None:
    scanner = rich_scanner()
    scanner.learn(to_facts({2**60: {"A": {"high_52w": 3.0}}})[0])
    met: set[type] = set()
    waiting: list[Any] = [scanner]
    seen: dict[int, Any] = {}
    while waiting:
        value = waiting.pop()
        if id(value) in seen or value is None or isinstance(value, int | float | str | np.ndarray | np.generic | type):
            met |= {type(value)} if isinstance(value, Enum) else set()
            continue
        seen[id(value)] = value
        met.add(type(value))
        waiting += [part for _, part in parts(value)]
    assert {kind.cls.__name__ for kind in _WHITELIST.kinds if kind.cls not in met} == set()


def test_attribute_that_init_does_not_set_or_of_a_strange_class_is_noticed() -> None:
    scanner = Scanner(**MADE_WITH)
    scanner.bars.novelty = 1  # type: ignore[attr-defined]  # that is the point
    with pytest.raises(TypeError, match="novelty"):
        scanner.freeze()
    scanner = Scanner(**MADE_WITH)
    scanner.labels["exchange"] = object()  # type: ignore[assignment]  # that is the point
    with pytest.raises(TypeError, match="no part of a state"):
        scanner.freeze()


class Older:
    WIDTH = 3

    def __init__(self) -> None:
        self.kept = np.zeros(4)


def test_engine_of_other_classes_or_fixed_numbers_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    from tapewatch.engine.frozen import Carried  # here only

    def whitelist() -> Whitelist:
        return Whitelist((Carried(Older),), {})

    state = freeze(Older(), whitelist(), about={}, count=0, capacity=0)
    assert isinstance(Frozen(state, whitelist()).thaw({}), Older)

    def with_more(self: Older) -> None:
        self.kept = np.zeros(4)
        self.more = 1  # type: ignore[attr-defined]  # that is the point

    for name, value in (("WIDTH", 4), ("__init__", with_more)):
        with monkeypatch.context() as changed:
            changed.setattr(Older, name, value)
            with pytest.raises(Invalid, match="another engine"):
                Frozen(state, whitelist())


# -- for whom it is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"scan_interval_ns": 2 * SECOND_NS}, "scan_interval_ns"),
        ({"board_interval_ns": 0}, "board_interval_ns"),
        ({"board_offset_ns": SECOND_NS // 2}, "board_offset_ns"),
        ({"lateness_ns": 0}, "lateness_ns"),
        ({"kept_trades": 101}, "kept_trades"),
        ({"profile": VENDORS[0].profile}, "profile"),
        ({"days": TradingDays(*(np.zeros(0, np.int64) for _ in range(4)))}, "calendar"),
    ],
)
def test_state_of_other_arguments_is_refused(other: dict[str, Any], what: str) -> None:
    with pytest.raises(Invalid, match=what):
        Scanner.thaw(rich_scanner(20).freeze(), **{**MADE_WITH, **other})


def test_profile_that_judges_otherwise_is_another_although_it_has_the_name() -> None:
    profile = VENDOR.profile
    judging = Profile(
        name=profile.name,
        column=profile.column,
        effect=lambda conditions, tape, phase: profile.effect(conditions, tape, phase) ^ 1,
        asks=profile.asks,
        listing=profile.listing,
    )
    state = rich_scanner(20).freeze()
    with pytest.raises(Invalid, match="profile"):
        Scanner.thaw(state, **{**MADE_WITH, "profile": judging})


def test_calendar_that_goes_on_further_is_the_same() -> None:
    days = trading_days()
    builder = BarBuilder(days=days, profile=VENDOR.profile, kept_trades=10)
    builder.step(pulse(int(days.open_ns[0])))
    edges = (days.pre_ns, days.open_ns, days.close_ns, days.post_ns)
    longer = TradingDays(*(np.append(edge, edge[-1] + 86_400 * SECOND_NS) for edge in edges))
    made = BarBuilder.thaw(builder.freeze(), days=longer, profile=VENDOR.profile, kept_trades=10)
    assert made.open_minute == builder.open_minute
    builder.step(pulse(int(days.open_ns[-1])))
    with pytest.raises(Invalid, match="calendar"):  # what comes after the last day that was known is now known better
        BarBuilder.thaw(builder.freeze(), days=longer, profile=VENDOR.profile, kept_trades=10)


def test_state_of_bars_is_none_of_a_scanner() -> None:
    builder = BarBuilder(days=trading_days(), profile=VENDOR.profile, kept_trades=10)
    with pytest.raises(Invalid, match="engine"):
        Scanner.thaw(builder.freeze(), **MADE_WITH)
    with pytest.raises(Invalid, match="engine"):
        Indicators.thaw(builder.freeze(), days=trading_days())


# -- what is thawed ---------------------------------------------------------------------------------------------------


def test_arrays_have_memory_of_their_own() -> None:
    state = rich_scanner().freeze()
    thawed = Scanner.thaw(state, **MADE_WITH)
    before = bytes(state)
    for name in (*thawed.bars.candles.FLOATS, *thawed.bars.candles.INTS):
        column = getattr(thawed.bars.candles, name)
        assert column.flags.writeable
        column.fill(1)
    assert state == before
    Scanner.thaw(state, **MADE_WITH)


def test_symbols_that_do_not_exist_and_rows_without_news_cost_little() -> None:
    empty = len(Scanner(**{**MADE_WITH, "kept_trades": 500_000}).freeze())
    assert empty < 60_000
    scanner = Scanner(**MADE_WITH)
    scanner.keep(CATALOGUE)
    names = tuple(f"S{i}" for i in range(600))
    scanner.step(make_batch(symbols=names, symbol=[0], ts_ns=[trading_days().open_ns[0]], price=[5.0], size=[1.0]))
    assert scanner.symbols.capacity > 600
    assert len(scanner.freeze()) < 500_000  # of 40 MB


# -- damage -----------------------------------------------------------------------------------------------------------

STATE = rich_scanner(40).freeze()
WORDS = st.integers(0, (len(STATE) - _HEAD) // 8 - 1)
EXAMPLES = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def thaw(state: bytes) -> Scanner:
    return Scanner.thaw(state, **MADE_WITH)


def signed(state: bytes) -> bytes:
    """Bytes of somebody who knows how to make a digest."""
    return state[:16] + _digest(state[32:_HEAD], np.frombuffer(state, np.uint8, offset=_HEAD)) + state[32:]


@EXAMPLES
@given(st.integers(0, len(STATE) - 1))
def test_state_that_was_cut_off_is_refused(length: int) -> None:
    with pytest.raises(Invalid):
        thaw(STATE[:length])


@EXAMPLES
@given(st.integers(0, len(STATE) - 1) | st.integers(0, 200), st.integers(1, 255))
def test_state_with_a_wrong_byte_is_refused(place: int, bits: int) -> None:
    damaged = bytearray(STATE)
    damaged[place] ^= bits
    with pytest.raises(Invalid):
        thaw(bytes(damaged))


@EXAMPLES
@given(st.lists(st.tuples(WORDS, WORDS)))
def test_state_with_words_exchanged_is_refused(pairs: list[tuple[int, int]]) -> None:
    words = np.frombuffer(STATE, np.uint64, offset=_HEAD).copy()
    for one, other in pairs:
        words[[one, other]] = words[[other, one]]
    damaged = STATE[:_HEAD] + words.tobytes()
    if damaged != STATE:
        with pytest.raises(Invalid):
            thaw(damaged)


@EXAMPLES
@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: STATE[:_HEAD] + tail))
def test_any_other_bytes_are_refused(state: bytes) -> None:
    with pytest.raises(Invalid):
        thaw(state)


@EXAMPLES
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 4))
def test_signed_nonsense_makes_an_engine_or_the_one_error(seed: int, changes: int) -> None:
    """Texts in which numbers, names and brackets were exchanged: no other error, no code, no endless memory."""
    random = Random(seed)
    sealed, told, _ = np.frombuffer(STATE, np.uint64, 3, 32).tolist()
    text = bytearray(STATE[_HEAD : _HEAD + sealed + told])
    engine = text.index(b'"engine"')
    for _ in range(changes):
        place = random.randrange(len(text))
        if not engine <= place < engine + 50:
            text[place] = random.choice(b'0123456789[]",-edlaktrnulse' + bytes([text[place]]))
    with suppress(Invalid):
        thaw(signed(STATE[:_HEAD] + bytes(text) + STATE[_HEAD + sealed + told :]))


def rewritten(change: Any) -> bytes:
    sealed, told, size = np.frombuffer(STATE, np.uint64, 3, 32).tolist()
    start = _HEAD + sealed
    document = json.loads(STATE[start : start + told])
    change(document)
    text = STATE[_HEAD:start] + json.dumps(document).encode()
    padded = text + bytes(-len(text) % 8)
    sizes = np.array([sealed, len(text) - sealed, size], np.uint64).tobytes()
    return signed(STATE[:32] + sizes + padded + STATE[len(STATE) - size :])


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["arrays"].__setitem__(0, [0, [1 << 40], 0, 0]),
        lambda document: document["arrays"].__setitem__(0, [0, [1 << 62, 1 << 62], 0, 0]),
        lambda document: document["arrays"].__setitem__(0, [0, [-1], 0, 0]),
        lambda document: document["arrays"].__setitem__(0, [99, [1], 0, 0]),
        lambda document: document["arrays"].pop(),
        lambda document: document.__setitem__("symbols", 1 << 60),
        lambda document: document.__setitem__("symbols", -1),
        lambda document: document.__setitem__("arrays", [[0, [1 << 20, 64], 64, 1 << 20]] * 1000),
        lambda document: document.__setitem__("root", ["k", 0, []]),
        lambda document: document.__setitem__("root", ["k", 10**6, []]),
        lambda document: document.__setitem__("root", ["n", "os.system"]),
        lambda document: document.__setitem__("root", ["r", 10**9]),
        lambda document: document.__setitem__("root", {"__class__": "Scanner"}),
        lambda document: document.__setitem__("root", []),
        lambda document: document.__setitem__("root", 3),
        lambda document: document.__setitem__("about", []),
        lambda document: document["about"].__setitem__("calendar", [1 << 62, "x"]),
        lambda document: document.clear(),
    ],
)
def test_hostile_state_is_refused(change: Any) -> None:
    with pytest.raises(Invalid):
        thaw(rewritten(change))


def test_rewriting_nothing_changes_nothing() -> None:
    assert thaw(rewritten(len)).freeze() == STATE


def test_nesting_without_end_is_refused() -> None:
    state = signed(_deep(20_000))
    with pytest.raises(Invalid):
        thaw(state)


def _deep(levels: int) -> bytes:
    sealed, told, size = np.frombuffer(STATE, np.uint64, 3, 32).tolist()
    start = _HEAD + sealed
    document = json.loads(STATE[start : start + told])
    document["root"] = "?"
    text = json.dumps(document).replace('"?"', '["l",[' * levels + "]]" * levels).encode()
    texts = STATE[_HEAD:start] + text
    sizes = np.array([sealed, len(text), size], np.uint64).tobytes()
    return STATE[:32] + sizes + texts + bytes(-len(texts) % 8) + STATE[len(STATE) - size :]
