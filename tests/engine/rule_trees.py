"""Random rules: every tree that `conditions` draws is canonical and within the limits."""

from collections.abc import Sequence
from functools import partial

from hypothesis import strategies as st

from tapewatch.engine.columns import SECOND_NS
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.rules import checked
from tapewatch.engine.rules.tree import Arithmetic, Comparison, Condition, Number, Operand, Value, walk

_MILLISECOND_NS = SECOND_NS // 1_000
_OPERATORS = (">", "<", ">=", "<=", "==", "!=")
_SYMBOLS = ("AAPL", "MSFT", "BRK.B", "BF-A", "NOT", "AND", "not", "A", "rule", "X$Y", "1", "in", "E+")


def operands(metrics: Sequence[str]) -> st.SearchStrategy[Operand]:
    """With `back` where the metric has closed candles."""

    def looking_back(name: str) -> st.SearchStrategy[Operand]:
        return st.builds(partial(checked.operand, name), st.integers(0, min(CATALOGUE[name].back, 5)))

    return st.sampled_from(list(metrics)).flatmap(looking_back)


def numbers() -> st.SearchStrategy[Number]:
    limit = checked.MAX_MAGNITUDE
    return st.builds(
        checked.number,
        st.integers(-100, 100).map(float)
        | st.sampled_from([0.0, 0.1, -0.5, 1e-7, 100_000.0, 1e15, -1e15, 570.0, 959.5])
        | st.floats(-limit, limit, allow_nan=False),
    )


def values(metrics: Sequence[str], *, leaves: int = 5) -> st.SearchStrategy[Value]:
    """Numbers, metrics and what can be calculated from them."""
    leaf: st.SearchStrategy[Value] = operands(metrics) | operands(metrics) | numbers()

    def larger(inner: st.SearchStrategy[Value]) -> st.SearchStrategy[Value]:
        one, several = st.tuples(inner), st.lists(inner, min_size=2, max_size=3)
        return (
            st.builds(Arithmetic, st.sampled_from("+-*/"), inner, inner).filter(
                lambda value: value.operator != "/" or value.right != Number(0.0)
            )
            | st.builds(checked.function, st.sampled_from(["abs", "negate"]), one)
            | st.builds(checked.function, st.sampled_from(["min", "max"]), several)
        )

    return st.recursive(leaf, larger, max_leaves=leaves)


def _asks(value: Value) -> bool:
    return any(isinstance(node, Operand) for node in walk(value))


def comparisons(metrics: Sequence[str], *, crossings: bool = True) -> st.SearchStrategy[Condition]:
    """Values against values: at least one side is made of metrics."""
    value = values(metrics)
    asking = value.filter(_asks)
    bounds = st.lists(numbers(), min_size=2, max_size=2).map(lambda pair: sorted(pair, key=lambda bound: bound.value))
    operator = st.sampled_from(_OPERATORS)
    kinds: list[st.SearchStrategy[Condition]] = [
        st.builds(Comparison, operands(metrics), operator, numbers()),
        st.builds(Comparison, asking, operator, value),
        st.builds(Comparison, value, operator, asking),
        st.builds(lambda asked, pair: checked.between(asked, *pair), asking, bounds),
        st.builds(checked.between, asking, operands(metrics), value),
    ]
    flags = [name for name in metrics if CATALOGUE[name].unit == "flag"]
    if flags:
        kinds.append(operands(flags).map(checked.flag))
    if crossings:
        kinds.append(st.builds(checked.crossing, asking, st.sampled_from(["above", "below"]), value))
    return st.one_of(kinds)


def attributes() -> st.SearchStrategy[Condition]:
    """What the symbol is, and the session."""

    def some(*names: str) -> st.SearchStrategy[list[str]]:
        return st.lists(st.sampled_from(names), min_size=1, max_size=4)

    return st.one_of(
        some(*_SYMBOLS).map(partial(checked.attribute, "symbol")),
        some("XNAS", "XNYS", "ARCX").map(partial(checked.attribute, "exchange")),
        some("CS", "ETF", "ADRC").map(partial(checked.attribute, "type")),
        some("Technology", "Health Care", 'A "quoted" one', "back\\slash", "Énergie", "not").map(
            partial(checked.attribute, "sector")
        ),
        some(*checked.SESSIONS).map(checked.in_session),
        st.sampled_from(["tech", "my-list", "a.b", "not", "1"]).map(checked.in_watchlist),
    )


def durations() -> st.SearchStrategy[int]:
    """Nanoseconds that may stand behind for and within."""
    most = checked.MAX_DURATION_NS // _MILLISECOND_NS
    milliseconds = st.sampled_from([100, 1_000, 30_000, 300_000, 5_400_000, most]) | st.integers(100, most)
    return milliseconds.map(lambda count: count * _MILLISECOND_NS)


def conditions(
    metrics: Sequence[str],
    *,
    leaves: int = 8,
    about_symbols: bool = True,
    crossings: bool = True,
    timed: bool = True,
    duration: st.SearchStrategy[int] | None = None,
) -> st.SearchStrategy[Condition]:
    """Conditions over these metrics: with `about_symbols` also attributes, sessions and watchlists; with `timed` also
    what remembers earlier scans, for times drawn from `duration`.
    """
    leaf = comparisons(metrics, crossings=crossings)
    if about_symbols:
        leaf = leaf | leaf | attributes()
    lasting = durations() if duration is None else duration

    def larger(inner: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
        several = st.lists(inner, min_size=2, max_size=4)
        joined = several.map(checked.all_of) | several.map(checked.any_of)
        kinds: list[st.SearchStrategy[Condition]] = [joined, joined, inner.map(checked.negated)]
        if timed:
            kinds += [
                st.builds(checked.held, inner, lasting),
                st.builds(checked.within, inner, lasting),
                st.builds(checked.in_a_row, inner, st.integers(2, 5) | st.just(checked.MAX_TIMES)),
                st.builds(checked.then, inner, inner, lasting),
            ]
        return st.one_of(kinds)

    return st.recursive(leaf, larger, max_leaves=leaves).filter(_fits)


def _fits(condition: Condition) -> bool:
    try:
        checked.check_size(condition)
    except ValueError:
        return False
    return True
