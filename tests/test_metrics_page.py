"""docs/metrics.md lists the catalogue as it is. Run as a program, this file writes it there."""

from pathlib import Path

import pytest

from tapewatch.engine.metrics import CATALOGUE, FAMILIES, Metric

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
BEGINS, ENDS = "<!-- the catalogue begins -->\n", "<!-- the catalogue ends -->\n"
COLUMNS = ("metric", "unit", "timeframe", "formula", "warm-up", "session", "moved by", "source")
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"
NEEDS = {"": "", "reference": "reference data", "quotes": "quotes", "index": "an index fund"}


def line(metric: Metric) -> str:
    source = "; ".join(filter(None, (metric.source, NEEDS[metric.needs])))
    cells = (
        f"`{metric.name}`",
        metric.unit,
        metric.timeframe,
        metric.formula,
        metric.warm_up,
        metric.session,
        metric.freshness,
        source,
    )
    return f"| {' | '.join(cells)} |\n"


def catalogue() -> str:
    parts = []
    for family in FAMILIES:
        title = (family.__doc__ or "").split("\n\n", maxsplit=1)[0].replace("\n", " ").removesuffix(".")
        parts.append(f"### {title}\n\n{HEAD}{''.join(map(line, family.METRICS))}")
    return "\n" + "\n".join(parts) + "\n"


def parts_of_page() -> tuple[str, str, str]:
    before, begins, rest = PAGE.read_text(encoding="utf-8").partition(BEGINS)
    listed, ends, after = rest.partition(ENDS)
    assert begins
    assert ends
    return before + begins, listed, ends + after


def test_metrics_page_lists_the_catalogue() -> None:
    assert parts_of_page()[1] == catalogue(), "run this file as a program to write the page"


def test_families_hold_each_metric_once() -> None:
    assert [metric.name for family in FAMILIES for metric in family.METRICS] == list(CATALOGUE)


@pytest.mark.parametrize("metric", CATALOGUE.values(), ids=lambda metric: metric.name)
def test_declaration_can_stand_in_a_table(metric: Metric) -> None:
    assert "|" not in line(metric)[2:-3].replace(" | ", "")
    assert metric.formula
    assert metric.formula == metric.formula.strip().removesuffix(".")
    assert bool(metric.back) == (metric.compute_back is not None)
    assert bool(metric.facts) <= (metric.needs in {"reference", "index"})


if __name__ == "__main__":
    start, _, end = parts_of_page()
    PAGE.write_text(start + catalogue() + end, encoding="utf-8")
