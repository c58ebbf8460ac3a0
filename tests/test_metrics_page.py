"""docs/metrics.md lists the catalogue as it is."""

import re
from pathlib import Path

from tapewatch.engine.metrics import CATALOGUE

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


def test_metrics_page_lists_every_metric_with_its_formula() -> None:
    listed = re.findall(r"^\| `(\w+)` \| (\S+) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == [(m.name, m.unit, m.formula) for m in CATALOGUE.values()]
