"""Scenarios: given this tape and these rules, at this second expect this.

A scenario is a YAML file that a trader can read and run (`tapewatch rules test`); docs/scenarios.md is its description.
`source` reads YAML with line numbers, `tape` the lines of a readable tape, `given` the rules and what is known of
symbols, `script` the whole file; `run` plays it through the live product's scanner. Nothing here imitates the engine.
"""

from tapewatch.scenarios.run import Result, run_scenario
from tapewatch.scenarios.script import Scenario, find_scenarios

__all__ = ["Result", "Scenario", "find_scenarios", "run_scenario"]
