"""Rules that come with the product, ready to be taken over and changed: one file of rule text a theme.

A template is an ordinary rule. Nothing here is active until somebody saves it as a rule of their own.
"""

from functools import cache
from importlib.resources import files

from tapewatch.documents import Rule, load_rule_file


@cache
def templates() -> dict[str, Rule]:
    """All templates by id, in the order of the files' names and of the rules in each."""
    found: dict[str, Rule] = {}
    themes = sorted(file.name for file in files(__name__).iterdir() if file.name.endswith(".rules"))
    for name in themes:
        rules, _ = load_rule_file(files(__name__).joinpath(name).read_bytes(), where=name)
        found |= {rule.id: rule for rule in rules}
    return found
