"""explain: answers what scanners made of a rule. It shares them with the scanner roles and only reads them."""

from collections.abc import Callable, Iterable

import msgspec

from tapewatch.engine.rules.explain import explain, near_misses
from tapewatch.engine.scanner import Scanner
from tapewatch.errors import Unavailable
from tapewatch.explanations import ANSWERS, QUESTIONS, AnswerPart, Question, explanation_json, near_miss_json
from tapewatch.ports import Bus
from tapewatch.telemetry import ERRORS_TOTAL


class ExplainRole:
    """`scanners` gives those of this process as they are now: each answers for its partition."""

    def __init__(self, *, scanners: Callable[[], Iterable[Scanner]], bus: Bus) -> None:
        self._scanners, self._bus = scanners, bus

    async def run(self) -> None:
        async for notice in self._bus.listen(QUESTIONS):
            question = msgspec.json.decode(notice, type=Question)
            try:
                for scanner in self._scanners():
                    await self._bus.notify(ANSWERS, msgspec.json.encode(_answer(scanner, question)))
            except Unavailable:  # whoever asked has stopped waiting by the time that it is back
                ERRORS_TOTAL.labels(where="explain.answer").inc()


def _answer(scanner: Scanner, question: Question) -> AnswerPart:
    plan, board = scanner.plan, scanner.board
    found, near = None, None
    if question.symbol is None:
        near = near_misses(plan, question.rule_id, reason=board.reason, limit=question.limit)
    else:
        found = explain(plan, question.rule_id, question.symbol, reason=board.reason, age_s=board.age_s)
    return AnswerPart(
        question_id=question.question_id,
        rule_known=found is not None or near is not None,
        symbol_known=question.symbol is None or question.symbol in scanner.symbols,
        explanation=None if found is None else explanation_json(found),
        near_misses=[near_miss_json(miss) for miss in near or ()],
    )
