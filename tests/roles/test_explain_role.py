"""explain: each question is answered from what the last scan left, whatever is asked and whenever."""

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import msgspec
import pytest

from tapewatch.adapters.memory import MemoryBus
from tapewatch.contracts.samples import make_rule_of_every_node
from tapewatch.documents import ruleset
from tapewatch.eligibility import load_profile
from tapewatch.engine.columns import OPEN_END_NS, SECOND_NS, Gap
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.rules import Ruleset, RuleSpec, compare
from tapewatch.engine.scanner import Scanner
from tapewatch.errors import Unavailable
from tapewatch.explanations import ANSWERS, QUESTIONS, AnswerPart, Question, explanation_lines
from tapewatch.nyse import trading_days
from tapewatch.roles.explain import ExplainRole
from tapewatch.telemetry import ERRORS_TOTAL

pytestmark = pytest.mark.anyio
RULES = Ruleset(
    number=1,
    rules=(
        RuleSpec(id="above", version=1, name="above", when=compare("price", ">", 10.0), cooldown_ns=0),
        RuleSpec(id="quiet", version=4, name="quiet", when=compare("price", ">", 10.0), cooldown_ns=60 * SECOND_NS),
    ),
)


@pytest.fixture
def scanner() -> Scanner:
    return Scanner(days=trading_days(), profile=load_profile("alpaca"))


@pytest.fixture
async def ask(bus: MemoryBus, scanner: Scanner, running: Any, eventually: Any) -> AsyncIterator[Callable[..., Any]]:
    """A question, and the answer's bytes read back."""
    async with running(ExplainRole(scanners=partial(list, [scanner]), bus=bus)):
        answers = bus.listen(ANSWERS)
        await eventually(lambda: QUESTIONS in bus._listeners.channels)

        async def asked(rule_id: str, symbol: str | None = None, limit: int = 20) -> AnswerPart:
            question = Question(question_id=f"{rule_id} {symbol}", rule_id=rule_id, symbol=symbol, limit=limit)
            await bus.notify(QUESTIONS, msgspec.json.encode(question))
            part = msgspec.json.decode(await anext(answers), type=AnswerPart)
            assert part.question_id == question.question_id
            return part

        yield asked


async def test_before_anything_was_scanned_nothing_is_known(ask: Any, scanner: Scanner) -> None:
    part = await ask("above", "A")
    assert (part.rule_known, part.symbol_known, part.explanation) == (False, False, None)
    scanner.apply(RULES)
    part = await ask("above", "A")
    assert (part.rule_known, part.symbol_known) == (True, False)
    assert (part.explanation["at"], part.explanation["verdict"]) == (None, "not asked")
    assert part.explanation["why"] == "Not asked: no scan has been made yet."
    assert (await ask("above")).near_misses == []


async def test_verdict_follows_the_scans(ask: Any, scanner: Scanner, prints: Any) -> None:
    scanner.apply(RULES)
    verdicts = []
    for second, price in enumerate((9.0, 11.0, 11.0, 9.0, 12.0)):
        scanner.step(prints(second + 0.5, "A", price=price))
        scanner.step(prints(second + 1, "A", price=price))
        verdicts.append([(await ask(rule, "A")).explanation["verdict"] for rule in ("above", "quiet")])
    assert verdicts == [
        ["false", "false"],
        ["fired", "fired"],
        ["held", "cooldown"],
        ["false", "false"],
        ["fired", "cooldown"],
    ]
    part = await ask("quiet", "A")
    assert part.explanation["rule_version"] == 4
    assert "silent for another 57 s" in part.explanation["why"]


async def test_near_misses_come_without_a_symbol(ask: Any, scanner: Scanner, prints: Any) -> None:
    scanner.apply(RULES)
    scanner.step(prints(0.5, "A", "B", "C", price=9.0))
    scanner.step(prints(1, "A", price=9.5))
    scanner.step(prints(2, "A", price=9.5))
    part = await ask("above")
    assert (part.rule_known, part.symbol_known, part.explanation) == (True, True, None)
    assert [(miss["symbol"], miss["lacks"]) for miss in part.near_misses] == [("A", 0.5), ("B", 1.0), ("C", 1.0)]
    assert len((await ask("above", limit=1)).near_misses) == 1
    assert (await ask("nothing")).rule_known is False


async def test_symbol_that_came_after_the_scan_is_not_asked_yet(ask: Any, scanner: Scanner, prints: Any) -> None:
    scanner.apply(RULES)
    scanner.step(prints(0.5, "A"))
    scanner.step(prints(1, "A"))
    many = [f"N{n}" for n in range(200)]
    scanner.step(prints(1.2, *many, price=20.0))
    for symbol in (many[0], many[-1]):
        part = await ask("above", symbol)
        assert part.explanation["verdict"] == "not asked"
    assert [miss["symbol"] for miss in (await ask("above")).near_misses] == ["A"]


async def test_every_metric_can_be_explained_at_any_time(ask: Any, scanner: Scanner, prints: Any) -> None:
    """Known or not, and with what `prints` leaves unknown for good: quotes, candles, reference data, a gap."""
    names = [*CATALOGUE, *(f"{name}[{metric.back}]" for name, metric in CATALOGUE.items() if metric.back)]
    rules = tuple(
        RuleSpec(id=f"r{i}", version=1, name="r", when=compare(name, ">", 1.0)) for i, name in enumerate(names)
    )
    scanner.apply(Ruleset(number=1, rules=rules))
    unseen = tuple(f"U{n}" for n in range(3))

    async def explained(symbol: str) -> dict[str, dict[str, Any]]:
        said = {}
        for i, name in enumerate(names):
            document = (await ask(f"r{i}", symbol)).explanation
            (operand,) = document["when"]["operands"]
            assert operand["name"] == name
            assert (operand["value"] is None) == (operand["unknown"] is not None), name
            assert operand["formula"], name
            assert len(list(explanation_lines(document))) >= 5
            said[name] = operand
        return said

    scanner.step(prints(-20, "A"))
    scanner.step(prints(-0.5, "A", *unseen).rows(0, 1))
    scanner.step(prints(0, "A"))
    before_open = await explained("A")
    scanner.step(prints(20.5, "A"))
    scanner.step(prints(21, "A"))
    known, never = await explained("A"), await explained("U1")
    scanner.gap(Gap(scanner.watermark_ns, OPEN_END_NS, "silent"))
    scanner.step(prints(22, "A"))
    scanner.step(prints(23, "A"))
    during_gap = await explained("A")
    assert known["price"]["age_s"] == 0.0
    assert before_open["opening_range_high_15m"]["unknown"] == "not in session"
    assert known["rsi_14_1m"]["unknown"] == "warming"
    assert known["market_cap"]["unknown"] == "no reference data"
    assert never["price"]["unknown"] == "no trade yet"
    assert {operand["unknown"] for operand in during_gap.values()} == {"gap"}


async def test_rule_of_every_node_is_explained_and_asked_for_near_misses(
    ask: Any, scanner: Scanner, prints: Any
) -> None:
    scanner.apply(ruleset(1, [make_rule_of_every_node("every")]))
    scanner.step(prints(0.5, "AAPL", "B"))
    scanner.step(prints(1, "AAPL", "B"))
    for symbol in ("AAPL", "B"):
        document = (await ask("every", symbol)).explanation
        assert document["verdict"] in {"unknown", "false"}
        assert document["rearm"]["parts"]
    assert (await ask("every")).near_misses == []


async def test_bus_that_is_away_costs_one_answer(
    bus: MemoryBus, scanner: Scanner, running: Any, eventually: Any
) -> None:
    class AwayOnce:
        """A bus that is away when the first answer is ready."""

        refused = 0

        def listen(self, channel: str) -> AsyncIterator[bytes]:
            return bus.listen(channel)

        async def notify(self, channel: str, payload: bytes) -> None:
            if not self.refused:
                self.refused += 1
                raise Unavailable("away")
            await bus.notify(channel, payload)

    away: Any = AwayOnce()
    errors = ERRORS_TOTAL.labels(where="explain.answer")
    before = errors._value.get()
    async with running(ExplainRole(scanners=partial(list, [scanner]), bus=away)):
        answers = bus.listen(ANSWERS)
        await eventually(lambda: QUESTIONS in bus._listeners.channels)
        for number in (1, 2):
            await bus.notify(QUESTIONS, msgspec.json.encode(Question(str(number), "above", "A", 0)))
        assert msgspec.json.decode(await anext(answers), type=AnswerPart).question_id == "2"
    assert errors._value.get() == before + 1
