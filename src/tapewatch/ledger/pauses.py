"""While the market is closed and nothing trades, scans pause, and rules that fire by the clock are silent.

The manner of it is in docs/rules.md. When a pause begins and ends depends on what a tape does not tell: with whom a
stock shares its partition, which other rules there are, whether lists are made. So alerts of such rules are not judged
while their stock may be asleep, nor what follows from them: the rest of a bar, and a cooldown. They are named instead,
as stretches of time.
"""

from dataclasses import dataclass, field

from tapewatch.ledger.days import MINUTE, NEVER

AWAKE = 60 * MINUTE
"""For so long after a print of the stock scans never pause."""
BY_CLOCK = frozenset({"level", "bar"})
"""Ways to fire of rules that a pause silences: others fire only when something has changed."""


@dataclass
class Doubt:
    """What nobody can say of one rule and one stock."""

    scan_ns: int
    cooldown_ns: int
    stretches: list[tuple[int, int]] = field(default_factory=list)
    """[from, until): in these there may be alerts or not."""
    maybe_held: bool = False
    """It may have been true in this bar already, if anybody looked."""
    _since: int | None = None
    """A stretch that has not ended."""
    _cools_until: int = -1

    def begin_bar(self) -> None:
        self.maybe_held = False

    def falls_on(self, now: int, *, asleep: bool, true: bool, gate: bool, level: bool, held: bool) -> bool:
        """Whether it may fire at this scan or not; `held`: it was true in this bar, as far as scans were made."""
        if self._since is not None:
            self.note(self._since, now)
            self._cools_until = now - self.scan_ns + self.cooldown_ns
            self._since = None
        may = true and gate and (level or not held or self.maybe_held)
        unsure = may and (asleep or self.maybe_held or now < self._cools_until)
        if true and not level:
            self.maybe_held = asleep and (self.maybe_held or not held)
        if unsure and asleep:
            self._since = now  # until it is asked again, nothing changes
        elif unsure:
            self.crowds(now)
        return unsure

    def crowds(self, now: int) -> None:
        """It may fire at this scan alone."""
        self.note(now, now + 1)
        self._cools_until = now + self.cooldown_ns

    def note(self, start: int, end: int) -> None:
        """A stretch; one that follows at the next scan goes on."""
        if self.stretches and start - self.stretches[-1][1] < self.scan_ns:
            start = self.stretches.pop()[0]
        self.stretches.append((start, end))

    def ended(self) -> list[tuple[int, int]]:
        """All stretches, when the tape has ended."""
        return self.stretches if self._since is None else [*self.stretches, (self._since, NEVER)]
