"""explain: answers what a scanner made of a rule. It shares the scanner with the scanner role and only reads it."""

import msgspec

from tapewatch.engine.rules.explain import explain, near_misses
from tapewatch.engine.scanner import Scanner
from tapewatch.errors import Unavailable
from tapewatch.explanations import ANSWERS, QUESTIONS, AnswerPart, Question, explanation_json, near_miss_json
from tapewatch.ports import Bus
from tapewatch.telemetry import ERRORS_TOTAL


class ExplainRole:
    def __init__(self, *, scanner: Scanner, bus: Bus) -> None:
        self._scanner, self._bus = scanner, bus

    async def run(self) -> None:
        async for notice in self._bus.listen(QUESTIONS):
            question = msgspec.json.decode(notice, type=Question)
            try:
                await self._bus.notify(ANSWERS, msgspec.json.encode(self._answer(question)))
            except Unavailable:  # whoever asked has stopped waiting by the time that it is back
                ERRORS_TOTAL.labels(where="explain.answer").inc()

    def _answer(self, question: Question) -> AnswerPart:
        plan, board = self._scanner.plan, self._scanner.board
        found, near = None, None
        if question.symbol is None:
            near = near_misses(plan, question.rule_id, reason=board.reason, limit=question.limit)
        else:
            found = explain(plan, question.rule_id, question.symbol, reason=board.reason, age_s=board.age_s)
        return AnswerPart(
            question_id=question.question_id,
            rule_known=found is not None or near is not None,
            symbol_known=question.symbol is None or question.symbol in self._scanner.symbols,
            explanation=None if found is None else explanation_json(found),
            near_misses=[near_miss_json(miss) for miss in near or ()],
        )
