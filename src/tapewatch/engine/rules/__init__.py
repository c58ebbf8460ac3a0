"""Rules: questions asked of the board. A checked tree in, matches out."""

from tapewatch.engine.rules.plan import Plan
from tapewatch.engine.rules.tree import All, Comparison, Match, Ruleset, RuleSpec, alert_id, compare

__all__ = ["All", "Comparison", "Match", "Plan", "RuleSpec", "Ruleset", "alert_id", "compare"]
