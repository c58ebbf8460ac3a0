"""Rules: questions asked of the board. A checked tree in, matches out."""

from tapewatch.engine.rules.plan import Plan
from tapewatch.engine.rules.tree import Comparison, Match, Ruleset, RuleSpec, alert_id

__all__ = ["Comparison", "Match", "Plan", "RuleSpec", "Ruleset", "alert_id"]
