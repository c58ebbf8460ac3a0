"""A verdict for people, and as JSON."""

from collections.abc import Iterator
from typing import Any

from tapewatch.documents import rfc3339
from tapewatch.ledger.checker import KINDS, Example, Identity, Verdict


def lines(verdict: Verdict) -> Iterator[str]:
    """The report, line by line; the last one is the verdict."""
    yield f"compared     {verdict.bars:,} bars and {verdict.alerts:,} alerts that must exist"
    if verdict.excluded_bars or verdict.excluded_alerts:
        yield (
            f"left out     {verdict.excluded_bars:,} bars and {verdict.excluded_alerts:,} alerts "
            "that declared gaps touch"
        )
    for rule, why in sorted(verdict.unchecked.items()):
        yield f"not checked  rule {rule}: {why}"
    for rule, count in sorted(verdict.unchecked_alerts.items()):
        yield f"not checked  {count:,} alert{'s' * (count != 1)} of rule {rule}"
    for rule, count in sorted(verdict.paused_alerts.items()):
        yield (
            f"not checked  rule {rule} while the market is closed and scans may pause, and what follows from it: "
            f"{count:,} alert{'s' * (count != 1)}"
        )
    for client, count in sorted(verdict.repeats.items()):
        yield f"repeated     {count:,} frames to client {client}"
    if verdict.identity is not None:
        yield f"rows         {account(verdict.identity)}"
    if verdict.told is not None:
        yield f"as told      {account(verdict.told)}"
    if verdict.sums is not None:
        want, have = verdict.sums
        yield f"in bars      {want.trades:,} trades expected, {have.trades:,} found"
        yield f"in bars      {want.shares:,.10g} shares expected, {have.shares:,.10g} found"
    for kind in KINDS:
        if not verdict.counts[kind]:
            continue
        yield f"{kind}: {verdict.counts[kind]:,}"
        for example in verdict.examples[kind]:
            yield f"  {_place(example)}: expected {example.expected}; found {example.found}"
    yield "verdict      " + ("everything is as it must be" if verdict.ok else _wrong(verdict))


def account(identity: Identity) -> str:
    """Both sides of the account."""
    left = f"{identity.sent:,} sent"
    right = (
        f"{identity.accepted:,} accepted + {identity.rejected:,} rejected + {identity.duplicates:,} duplicates + "
        f"{identity.declared_lost:,} declared lost"
    )
    return f"{left} {'=' if identity.balanced else 'IS NOT'} {right}"


def _place(example: Example) -> str:
    name = f"{example.symbol} " if example.symbol else ""
    return f"{example.where}: {name}{rfc3339(example.at_ns)} {example.what}"


def _wrong(verdict: Verdict) -> str:
    return ", ".join(f"{verdict.counts[kind]:,} {kind}" for kind in KINDS if verdict.counts[kind])


def as_json(verdict: Verdict) -> dict[str, Any]:
    """The same for programs."""
    return {
        "ok": verdict.ok,
        "compared": {"bars": verdict.bars, "alerts": verdict.alerts},
        "left_out": {"bars": verdict.excluded_bars, "alerts": verdict.excluded_alerts},
        "not_checked": {
            "rules": dict(verdict.unchecked),
            "alerts": dict(verdict.unchecked_alerts),
            "alerts_while_scans_may_pause": dict(verdict.paused_alerts),
        },
        "repeated_frames": dict(verdict.repeats),
        "rows": None if verdict.identity is None else verdict.identity._asdict(),
        "rows_as_told": None if verdict.told is None else verdict.told._asdict(),
        "in_bars": None
        if verdict.sums is None
        else {"expected": verdict.sums[0]._asdict(), "found": verdict.sums[1]._asdict()},
        "wrong": {
            kind: {"count": verdict.counts[kind], "examples": [_example(e) for e in verdict.examples[kind]]}
            for kind in KINDS
            if verdict.counts[kind]
        },
    }


def _example(example: Example) -> dict[str, str]:
    return {
        "where": example.where,
        "symbol": example.symbol,
        "at": rfc3339(example.at_ns),
        "what": example.what,
        "expected": example.expected,
        "found": example.found,
    }
