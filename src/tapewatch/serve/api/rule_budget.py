"""What the rules of one user may cost together, so that nobody's rules take the time of everybody's scan."""

import asyncio
from collections import OrderedDict

from tapewatch.documents import Rule
from tapewatch.engine.rules.cost import MAX_USER_COST_US, MAX_USER_MEMORY_BYTES, Cost, cost
from tapewatch.errors import QuotaReached
from tapewatch.serve.rule_lists import RuleLists

_MOST_KNOWN = 20_000


class RuleBudget:
    """Held (`turn`) from `check` until the rule is saved: of rules that come at once each counts the ones before it.
    Several API processes may overrun the budget by a rule each.
    """

    def __init__(self, lists: RuleLists) -> None:
        self._lists = lists
        self._known: OrderedDict[tuple[str, int], Cost] = OrderedDict()
        self.turn = asyncio.Lock()

    async def check(self, wanted: Rule) -> None:
        """`QuotaReached` if its owner's rules that are on would cost too much with it, and more than without it."""
        if not wanted.enabled:
            return
        rules = [rule for rule in await self._lists.all() if rule.owner == wanted.owner and rule.enabled]
        before = [self._cost(rule) for rule in rules]
        others = [known for rule, known in zip(rules, before, strict=True) if rule.id != wanted.id]
        after = [*others, cost_of(wanted)]
        us, us_before = sum(known.scan_us for known in after), sum(known.scan_us for known in before)
        if us > max(MAX_USER_COST_US, us_before):
            raise QuotaReached(
                f"the rules that are on would cost {us / 1_000:,.0f} ms a scan of 10,000 symbols together, and "
                f"{MAX_USER_COST_US / 1_000:,.0f} ms are allowed: switch one off first"
            )
        held, held_before = sum(known.memory_bytes for known in after), sum(known.memory_bytes for known in before)
        if held > max(MAX_USER_MEMORY_BYTES, held_before):
            raise QuotaReached(
                f"the rules that are on would take {held / 1e6:,.0f} MB of memory together, and "
                f"{MAX_USER_MEMORY_BYTES / 1e6:,.0f} MB are allowed: switch one off first"
            )

    def _cost(self, rule: Rule) -> Cost:
        """A version never changes."""
        key = (rule.id, rule.version)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = cost_of(rule)
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return known


def cost_of(rule: Rule) -> Cost:
    spec = rule.spec()
    return cost(spec.when, spec.gate, spec.rearm)
