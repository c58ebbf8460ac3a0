"""Whose rules, lists, channels and alerts are there for somebody: all reads and changes over HTTP ask here.

What is another's is answered as if it were not there, with the store's own words.
"""

from typing import TypeVar

from tapewatch.accounts.roles import Principal
from tapewatch.delivery_documents import Channel, Subscription
from tapewatch.documents import Rule, RuleDraft, Watchlist
from tapewatch.engine.rules.tree import watchlists as named_watchlists
from tapewatch.errors import Invalid, NotFound
from tapewatch.ports import Store
from tapewatch.toplist_documents import Toplist

S = TypeVar("S", Rule, Watchlist)
V = TypeVar("V", Rule, Watchlist, Toplist, Channel, Subscription)


def seen(principal: Principal, document: S) -> S:
    """The document if they see it, else `NotFound`."""
    if principal.sees(document.owner, shared=document.shared):
        return document
    raise _missing(document)


def own(principal: Principal, document: V) -> V:
    """The document if they may change it, else `NotFound`, though they may see it."""
    if principal.changes(document.owner):
        return document
    raise _missing(document)


def viewer_of(principal: Principal) -> str | None:
    """For an `AlertQuery`; who administrates sees all."""
    return None if principal.role == "admin" else principal.user_id


def _missing(document: Rule | Watchlist | Toplist | Channel | Subscription) -> NotFound:
    return NotFound(f"there is no {type(document).__name__.lower()} {document.id}")


async def sees_watchlist(store: Store, owner: str, watchlist_id: str) -> bool:
    """Whether there is such a list, and rules of that owner may name it."""
    try:
        watchlist = await store.watchlist(watchlist_id)
    except NotFound:
        return False
    return watchlist.may_be_named_by(owner)


async def check_watchlists(store: Store, rule: Rule, draft: RuleDraft | None = None) -> None:
    """`Invalid` if it names a list that its owner does not see, at the field in which its author wrote it."""
    spec = rule.spec()
    when = "when" if draft is not None and "conditions" not in draft.model_fields_set else "conditions"
    for field, condition in ((when, spec.when), ("gate", spec.gate), ("rearm", spec.rearm)):
        for name in named_watchlists(condition):
            if not await sees_watchlist(store, rule.owner, name):
                raise Invalid(f"body.{field}" if draft is not None else "rule", f"names the unknown watchlist {name}")
