"""Asks the scanners what they made of a rule: one question out, an answer a partition back, within a second or two."""

import asyncio
import contextlib
import secrets
from typing import Any

import msgspec

from tapewatch.errors import NotFound, Unavailable
from tapewatch.explanations import ANSWERS, QUESTIONS, AnswerPart, Question
from tapewatch.ports import Bus

PATIENCE_S = 2.0


class Explanations:
    def __init__(self, bus: Bus, *, partitions: int, patience_s: float = PATIENCE_S) -> None:
        self._bus, self._partitions, self._patience_s = bus, partitions, patience_s

    async def explain(self, rule_id: str, symbol: str) -> dict[str, Any]:
        """What the last scan made of the rule for the symbol. `NotFound` if no scanner has the rule."""
        parts = await self._ask(rule_id, symbol=symbol)
        for part in sorted(parts, key=lambda part: not part.symbol_known):
            if part.explanation is not None:
                return part.explanation
        raise _not_asked(rule_id)

    async def near_misses(self, rule_id: str, *, limit: int) -> list[dict[str, Any]]:
        """Symbols of which all conditions but one are true, nearest first. `NotFound` if no scanner has the rule."""
        parts = await self._ask(rule_id, limit=limit)
        if not any(part.rule_known for part in parts):
            raise _not_asked(rule_id)
        near = [miss for part in parts for miss in part.near_misses]
        near.sort(key=lambda miss: (miss["lacks_pct"] is None, miss["lacks_pct"] or 0.0, miss["symbol"]))
        return near[:limit]

    async def _ask(self, rule_id: str, *, symbol: str | None = None, limit: int = 0) -> list[AnswerPart]:
        """The answers of all partitions, or only that of the one which has the symbol; `Unavailable` if one is missing:
        the symbol may be that one's.
        """
        question = Question(question_id=secrets.token_hex(8), rule_id=rule_id, symbol=symbol, limit=limit)
        parts: list[AnswerPart] = []
        answers = self._bus.listen(ANSWERS)  # before the question is out
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                await self._bus.notify(QUESTIONS, msgspec.json.encode(question))
                async for notice in answers:
                    part = msgspec.json.decode(notice, type=AnswerPart)
                    if part.question_id != question.question_id:
                        continue
                    if symbol is not None and part.symbol_known:
                        return [part]
                    parts.append(part)
                    if len(parts) == self._partitions:
                        return parts
        missing = self._partitions - len(parts)
        raise Unavailable(f"{missing} of {self._partitions} scanners do not answer" if parts else "no scanner answers")


def _not_asked(rule_id: str) -> NotFound:
    return NotFound(f"rule {rule_id} is not asked: it is disabled, or has not reached the scanner yet")
