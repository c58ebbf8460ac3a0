"""What every `Store` keeps its word about: users whom an OpenID provider knows."""

import asyncio

import pytest

from tapewatch.accounts.users import Identity
from tapewatch.contracts.store_accounts import make_user
from tapewatch.errors import NotFound, VersionConflict
from tapewatch.ports import AuditQuery, Store

ANN = Identity("https://id.example.com", "248289761001")


class StoreIdentities:
    """Part of `StoreContract`."""

    async def test_user_is_found_by_issuer_and_subject_together(self, store: Store) -> None:
        ann = await store.add_user(make_user("ann"), identity=ANN)
        assert await store.user_of(ANN) == ann
        others = (
            Identity("https://id.example.com/", ANN.subject),
            Identity("https://other.example.com", ANN.subject),
            Identity(ANN.issuer, "248289761002"),
            Identity(ANN.subject, ANN.issuer),
        )
        for other in others:
            with pytest.raises(NotFound):
                await store.user_of(other)

    async def test_subjects_that_differ_in_capitals_are_two(self, store: Store) -> None:
        users = [
            await store.add_user(make_user(name), identity=Identity(ANN.issuer, subject))
            for name, subject in (("ann", "aNN"), ("bob", "Ann"))
        ]
        assert [await store.user_of(Identity(ANN.issuer, subject)) for subject in ("aNN", "Ann")] == users

    async def test_identity_is_of_one_user(self, store: Store) -> None:
        ann = await store.add_user(make_user("ann"), identity=ANN)
        with pytest.raises(VersionConflict):
            await store.add_user(make_user("bob"), identity=ANN)
        with pytest.raises(NotFound):
            await store.user_named("bob")
        bob = await store.add_user(make_user("bob"))
        with pytest.raises(VersionConflict):
            await store.link_identity(bob.user_id, ANN)
        assert await store.user_of(ANN) == ann

    async def test_of_two_who_come_at_once_with_one_identity_one_is_added(self, store: Store) -> None:
        users = [make_user(f"ann-{n}") for n in range(4)]
        done = await asyncio.gather(*(store.add_user(user, identity=ANN) for user in users), return_exceptions=True)
        assert sum(isinstance(answer, VersionConflict) for answer in done) == 3
        assert await store.user_of(ANN) in users

    async def test_user_has_as_many_as_are_linked(self, store: Store) -> None:
        ann = await store.add_user(make_user("ann"), identity=ANN)
        other = Identity("https://login.example.org", "ann")
        await store.link_identity(ann.user_id, other, actor="root")
        await store.link_identity(ann.user_id, other, actor="root")
        assert await store.user_of(ANN) == await store.user_of(other) == ann
        linked, created = await store.audit(AuditQuery())
        assert (linked.actor, linked.action, linked.subject) == ("root", "change", ann.user_id)
        assert linked.after == {"identity": {"issuer": other.issuer, "subject": "ann"}}
        assert created.after["identity"] == {"issuer": ANN.issuer, "subject": ANN.subject}
        with pytest.raises(NotFound):
            await store.link_identity("nobody", ANN)

    async def test_identity_of_a_deleted_user_is_free_again(self, store: Store) -> None:
        ann = await store.add_user(make_user("ann"), identity=ANN)
        await store.delete_user(ann.user_id)
        with pytest.raises(NotFound):
            await store.user_of(ANN)
        again = await store.add_user(make_user("ann", user_id="u-2"), identity=ANN)
        assert await store.user_of(ANN) == again
