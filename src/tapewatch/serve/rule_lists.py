"""The rules, and what each user sees of them ready to be sent: read and filtered once for each change of the rules.

Whether anything has changed is asked of the store each time, so a list is never older than the question.
"""

from collections.abc import Sequence

import msgspec

from tapewatch.accounts.roles import Principal
from tapewatch.documents import Rule
from tapewatch.ports import Store
from tapewatch.serve.api.ownership import viewer_of

_VIEWERS = 1_000
"""Whose lists are kept at once; beyond that, all are made again."""


class RuleLists:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._number = -1
        self._rules: list[Rule] = []
        self._seen: dict[str | None, list[Rule]] = {}
        self._encoded: dict[str, msgspec.Raw] = {}

    async def all(self) -> Sequence[Rule]:
        """By id."""
        if await self._store.ruleset_number() != self._number:
            snapshot = await self._store.rules()
            if snapshot.number != self._number:
                self._number, self._rules = snapshot.number, snapshot.rules
                self._seen, self._encoded = {}, {}
        return self._rules

    async def seen_by(self, principal: Principal) -> Sequence[Rule]:
        """By id."""
        rules = await self.all()
        viewer = viewer_of(principal)
        seen = self._seen.get(viewer)
        if seen is None:
            if len(self._seen) >= _VIEWERS:
                self._seen.clear()
            seen = [rule for rule in rules if principal.sees(rule.owner, shared=rule.shared)]
            self._seen[viewer] = seen
        return seen

    def encoded(self, rule: Rule) -> msgspec.Raw:
        """One of those that `seen_by` has just given, as JSON."""
        found = self._encoded.get(rule.id)
        if found is None:
            found = self._encoded[rule.id] = msgspec.Raw(msgspec.json.encode(rule.model_dump()))
        return found
