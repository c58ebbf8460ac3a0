"""What every `Store` keeps its word about: users, their sign-ins and the tokens of their programs."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from tapewatch.accounts.tokens import hashed
from tapewatch.accounts.users import MOST_SESSIONS, MOST_TOKENS, ApiToken, Profile, SignIn, User
from tapewatch.contracts.samples import NOON_NS
from tapewatch.errors import NotFound, VersionConflict
from tapewatch.ports import AuditQuery, Store

FAR_NS = NOON_NS * 4
"""Later than any clock of a test."""


def make_user(name: str = "ann", **fields: Any) -> User:
    return User(**{
        "user_id": f"u-{name}",
        "name": name,
        "role": "trader",
        "password_hash": f"$argon2id$of {name}",
        "created_at_ns": NOON_NS,
        **fields,
    })  # fmt: skip


def make_sign_in(number: int, user: User, **fields: Any) -> SignIn:
    return SignIn(**{
        "session_id": f"{number:032x}",
        "user_id": user.user_id,
        "refresh_hash": hashed(f"refresh {number}"),
        "created_at_ns": NOON_NS,
        "expires_ns": FAR_NS,
        "used_at_ns": NOON_NS + number,
        **fields,
    })  # fmt: skip


def make_token(number: int, user: User, **fields: Any) -> ApiToken:
    return ApiToken(**{
        "token_id": f"{number:016x}",
        "user_id": user.user_id,
        "name": f"program {number}",
        "secret_hash": hashed(f"secret {number}"),
        "scopes": None,
        "created_at_ns": NOON_NS + number,
        **fields,
    })  # fmt: skip


async def sessions_of(store: Store, now_ns: int = NOON_NS) -> list[str]:
    return sorted(session.session_id for session in (await store.accounts(now_ns)).sessions)


class StoreUsers:
    """Part of `StoreContract`."""

    async def test_user_arrives_as_they_were(self, store: Store) -> None:
        profile = Profile(display_name="Ann «%»", time_zone="Europe/Berlin", preferences={"dark": True, "rows": 5})
        user = make_user("Ann.O-1@x", role="operator", disabled=True, epoch=7, profile=profile)
        assert await store.add_user(user) == user
        assert await store.user(user.user_id) == user
        assert (await store.accounts(NOON_NS)).users == [user]
        assert user.password_hash not in repr(user)

    async def test_names_that_differ_in_capitals_are_one(self, store: Store) -> None:
        user = await store.add_user(make_user("Ann"))
        assert await store.user_named("aNN") == user
        for taken in (make_user("ANN", user_id="u-2"), make_user("bob", user_id=user.user_id)):
            with pytest.raises(VersionConflict):
                await store.add_user(taken)
        assert (await store.accounts(NOON_NS)).users == [user]

    async def test_users_that_are_not_there_are_not_found(self, store: Store) -> None:
        calls: list[Awaitable[object]] = [
            store.user("u"),
            store.user_named("ann"),
            store.change_user("u", disabled=True),
            store.delete_user("u"),
            store.set_password("u", "hash"),
            store.save_profile("u", Profile()),
            store.begin_session(make_sign_in(1, make_user())),
            store.renew_session("s", refresh_hash="a", next_hash="b", now_ns=NOON_NS),
            store.add_token(make_token(1, make_user())),
            store.revoke_token("t"),
        ]
        for call in calls:
            with pytest.raises(NotFound):
                await call
        await store.end_session("s")
        await store.rehash_password("u", "a", "b")
        await store.note_tokens_used({"t": NOON_NS})
        assert await store.audit(AuditQuery()) == []

    async def test_epoch_rises_with_role_password_and_disabling(self, store: Store) -> None:
        user = await store.add_user(make_user())
        changes = (
            store.change_user(user.user_id, role="viewer"),
            store.change_user(user.user_id, disabled=True),
            store.change_user(user.user_id, role="viewer", disabled=False),
            store.set_password(user.user_id, "another"),
        )
        assert [user.epoch, *[(await change).epoch for change in changes]] == [1, 2, 3, 4, 5]
        kept = await store.user(user.user_id)
        assert (kept.role, kept.disabled, kept.password_hash) == ("viewer", False, "another")

    async def test_change_that_changes_nothing_leaves_epoch_and_number(self, store: Store) -> None:
        user = await store.add_user(make_user())
        number = await store.accounts_number()
        assert await store.change_user(user.user_id, role="trader", disabled=False) == user
        assert await store.change_user(user.user_id) == user
        assert await store.save_profile(user.user_id, user.profile) == user
        assert await store.accounts_number() == number
        assert len(await store.audit(AuditQuery())) == 1

    async def test_last_admin_stays(self, store: Store) -> None:
        admin = await store.add_user(make_user("root", role="admin"))
        await store.add_user(make_user("old", role="admin", disabled=True))
        before = await store.accounts(NOON_NS)
        for change in (
            store.change_user(admin.user_id, role="trader"),
            store.change_user(admin.user_id, disabled=True),
            store.delete_user(admin.user_id),
        ):
            with pytest.raises(VersionConflict, match="last admin"):
                await change
        assert await store.accounts(NOON_NS) == before
        await store.add_user(make_user("other", role="admin"))
        await store.change_user(admin.user_id, role="trader")

    async def test_of_two_admins_that_disable_each_other_one_stays(self, store: Store) -> None:
        admins = [await store.add_user(make_user(name, role="admin")) for name in ("ann", "bob", "cy", "dee")]
        changes = (store.change_user(admin.user_id, disabled=True) for admin in admins)
        outcomes = await asyncio.gather(*changes, return_exceptions=True)
        assert sum(isinstance(outcome, VersionConflict) for outcome in outcomes) == 1
        assert sum(not user.disabled for user in (await store.accounts(NOON_NS)).users) == 1

    async def test_of_many_that_take_one_name_at_once_one_wins(self, store: Store) -> None:
        users = [make_user("ann", user_id=f"u-{n}") for n in range(10)]
        outcomes = await asyncio.gather(*map(store.add_user, users), return_exceptions=True)
        assert sum(isinstance(outcome, User) for outcome in outcomes) == 1
        assert all(isinstance(outcome, (User, VersionConflict)) for outcome in outcomes)

    async def test_deleted_user_takes_sign_ins_and_tokens_along(self, store: Store) -> None:
        ann, bob = await store.add_user(make_user("ann")), await store.add_user(make_user("bob"))
        for number, user in enumerate((ann, bob)):
            await store.begin_session(make_sign_in(number, user))
            await store.add_token(make_token(number, user))
        await store.delete_user(ann.user_id)
        view = await store.accounts(NOON_NS)
        assert view.users == [bob]
        assert {session.user_id for session in view.sessions} == {bob.user_id}
        assert {token.user_id for token in view.tokens} == {bob.user_id}
        assert [token.user_id for token in await store.tokens()] == [bob.user_id]

    async def test_same_password_kept_in_another_way_is_no_change(self, store: Store) -> None:
        user = await store.add_user(make_user())
        number = await store.accounts_number()
        await store.rehash_password(user.user_id, user.password_hash, "$argon2id$new")
        await store.rehash_password(user.user_id, user.password_hash, "$argon2id$too late")
        kept = await store.user(user.user_id)
        assert (kept.password_hash, kept.epoch) == ("$argon2id$new", user.epoch)
        assert await store.accounts_number() == number

    async def test_audit_names_each_change_and_no_secret(self, store: Store) -> None:
        user = await store.add_user(make_user(), actor="root")
        await store.change_user(user.user_id, role="viewer", actor="root")
        await store.set_password(user.user_id, "$argon2id$other", actor=user.user_id)
        await store.save_profile(user.user_id, Profile(display_name="Ann"), actor=user.user_id)
        session, token = make_sign_in(1, user), make_token(1, user, scopes=frozenset({"alerts:read"}))
        await store.begin_session(session)
        await store.end_session(session.session_id, actor=user.user_id)
        await store.add_token(token, actor=user.user_id)
        await store.revoke_token(token.token_id, actor="root")
        await store.delete_user(user.user_id, actor="root")
        entries = list(reversed(await store.audit(AuditQuery())))
        assert [(entry.actor, entry.action, entry.kind) for entry in entries] == [
            ("root", "create", "user"),
            ("root", "change", "user"),
            (user.user_id, "change", "user"),
            (user.user_id, "change", "user"),
            (user.user_id, "create", "session"),
            (user.user_id, "delete", "session"),
            (user.user_id, "create", "token"),
            ("root", "delete", "token"),
            ("root", "delete", "user"),
        ]
        assert (entries[1].before, entries[1].after) == ({"role": "trader"}, {"role": "viewer"})
        assert entries[2].after == {"password": "changed"}
        assert entries[3].after == {"display_name": "Ann"}
        said = repr(entries)
        for secret in ("argon2id", session.refresh_hash, token.secret_hash):
            assert secret not in said


class StoreSignIns:
    """Part of `StoreContract`."""

    async def test_number_rises_with_what_decides_who_is_let_in(self, store: Store) -> None:
        numbers = [await store.accounts_number()]
        user = make_user()
        for change in (
            store.add_user(user),
            store.begin_session(make_sign_in(1, user)),
            store.add_token(make_token(1, user)),
            store.change_user(user.user_id, role="viewer"),
            store.set_password(user.user_id, "other"),
            store.revoke_token(make_token(1, user).token_id),
            store.begin_session(make_sign_in(2, user)),
            store.end_session(make_sign_in(2, user).session_id),
            store.delete_user(user.user_id),
        ):
            await change
            numbers.append(await store.accounts_number())
            assert (await store.accounts(NOON_NS)).number == numbers[-1]
        assert numbers == sorted(set(numbers))

    async def test_refresh_token_is_good_once_and_the_next_one_after_it(self, store: Store) -> None:
        user = await store.add_user(make_user())
        session = make_sign_in(1, user)
        await store.begin_session(session)
        number = await store.accounts_number()
        for before, after in (("refresh 1", "a"), ("a", "b"), ("b", "c")):
            renewed = await store.renew_session(
                session.session_id, refresh_hash=hashed(before), next_hash=hashed(after), now_ns=NOON_NS + 5
            )
            assert (renewed.refresh_hash, renewed.used_at_ns) == (hashed(after), NOON_NS + 5)
        assert await store.accounts_number() == number
        assert (await store.accounts(NOON_NS)).sessions == [renewed]

    @pytest.mark.parametrize("shown", ["refresh 1", "a", "made up"])
    async def test_any_but_the_newest_refresh_token_ends_the_session(self, store: Store, shown: str) -> None:
        user = await store.add_user(make_user())
        session, other = make_sign_in(1, user), make_sign_in(2, user)
        await store.begin_session(session)
        await store.begin_session(other)
        for before, after in (("refresh 1", "a"), ("a", "b")):
            await store.renew_session(
                session.session_id, refresh_hash=hashed(before), next_hash=hashed(after), now_ns=NOON_NS
            )
        for refresh in (shown, "b"):  # and then the newest one is of no use either
            with pytest.raises(NotFound):
                await store.renew_session(
                    session.session_id, refresh_hash=hashed(refresh), next_hash=hashed("x"), now_ns=NOON_NS
                )
        assert await sessions_of(store) == [other.session_id]
        newest = (await store.audit(AuditQuery(kind="session")))[0]
        assert (newest.subject, newest.after) == (session.session_id, {"why": "an old refresh token was used"})

    async def test_of_two_that_show_one_refresh_token_at_once_none_stays(self, store: Store) -> None:
        user = await store.add_user(make_user())
        session = make_sign_in(1, user)
        await store.begin_session(session)
        renewals = (
            store.renew_session(
                session.session_id, refresh_hash=session.refresh_hash, next_hash=hashed(f"next {n}"), now_ns=NOON_NS
            )
            for n in range(2)
        )
        outcomes = await asyncio.gather(*renewals, return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NotFound", "SignIn"]
        assert await sessions_of(store) == []

    async def test_session_that_has_expired_is_none(self, store: Store) -> None:
        user = await store.add_user(make_user())
        session = make_sign_in(1, user, expires_ns=NOON_NS + 10)
        await store.begin_session(session)
        assert await sessions_of(store, NOON_NS + 9) == [session.session_id]
        assert await sessions_of(store, NOON_NS + 10) == []
        with pytest.raises(NotFound):
            await store.renew_session(
                session.session_id, refresh_hash=session.refresh_hash, next_hash="x", now_ns=NOON_NS + 10
            )

    async def test_beyond_the_bound_the_longest_unused_session_ends(self, store: Store) -> None:
        ann, bob = await store.add_user(make_user("ann")), await store.add_user(make_user("bob"))
        await store.begin_session(make_sign_in(1_000, bob, used_at_ns=0))
        for number in range(MOST_SESSIONS + 3):
            await store.begin_session(make_sign_in(number, ann))
        kept = [make_sign_in(number, ann).session_id for number in range(3, MOST_SESSIONS + 3)]
        assert await sessions_of(store) == [*kept, make_sign_in(1_000, bob).session_id]

    async def test_disabled_user_is_signed_out_and_stays_out(self, store: Store) -> None:
        user = await store.add_user(make_user())
        session = make_sign_in(1, user)
        await store.begin_session(session)
        await store.change_user(user.user_id, disabled=True)
        with pytest.raises(NotFound):
            await store.begin_session(make_sign_in(2, user))
        await store.change_user(user.user_id, disabled=False)
        assert await sessions_of(store) == []

    async def test_password_change_ends_all_sessions_but_the_one_to_keep(self, store: Store) -> None:
        user = await store.add_user(make_user())
        for number in range(3):
            await store.begin_session(make_sign_in(number, user))
        kept = make_sign_in(1, user).session_id
        await store.set_password(user.user_id, "other", keep_session=kept)
        assert await sessions_of(store) == [kept]
        await store.set_password(user.user_id, "another")
        assert await sessions_of(store) == []

    async def test_tokens_arrive_as_they_were_newest_first(self, store: Store) -> None:
        ann, bob = await store.add_user(make_user("ann")), await store.add_user(make_user("bob"))
        some = make_token(1, ann, scopes=frozenset({"alerts:read", "rules:read"}), expires_ns=NOON_NS + 9)
        tokens = [some, make_token(2, bob), make_token(3, ann)]
        for token in tokens:
            assert await store.add_token(token) == token
        assert await store.tokens() == tokens[::-1]
        assert await store.tokens(ann.user_id) == [tokens[2], tokens[0]]
        assert await store.tokens("nobody") == []
        assert some.secret_hash not in repr(some)

    async def test_token_is_revoked_by_its_user_or_by_anybody(self, store: Store) -> None:
        ann, bob = await store.add_user(make_user("ann")), await store.add_user(make_user("bob"))
        first, second = await store.add_token(make_token(1, ann)), await store.add_token(make_token(2, ann))
        with pytest.raises(NotFound):
            await store.revoke_token(first.token_id, user_id=bob.user_id)
        await store.revoke_token(first.token_id, user_id=ann.user_id)
        number = await store.accounts_number()
        await store.revoke_token(first.token_id)
        assert await store.accounts_number() == number
        assert (await store.accounts(NOON_NS)).tokens == [second]
        assert [token.revoked for token in await store.tokens()] == [False, True]

    async def test_user_has_so_many_tokens_and_no_more(self, store: Store) -> None:
        user = await store.add_user(make_user())
        await store.add_token(make_token(1_000, user, expires_ns=1))  # which has ended
        for number in range(MOST_TOKENS):
            await store.add_token(make_token(number, user))
        with pytest.raises(VersionConflict, match="at most"):
            await store.add_token(make_token(MOST_TOKENS, user))
        await store.revoke_token(make_token(0, user).token_id)
        await store.add_token(make_token(MOST_TOKENS, user))

    async def test_of_tokens_that_are_no_longer_good_the_newest_are_kept(self, store: Store) -> None:
        user = await store.add_user(make_user())
        for number in range(MOST_TOKENS + 5):
            await store.revoke_token((await store.add_token(make_token(number, user))).token_id)
        await store.add_token(make_token(1_000, user))
        kept = [make_token(number, user).token_id for number in (1_000, *range(MOST_TOKENS + 4, 4, -1))]
        assert [token.token_id for token in await store.tokens()] == kept

    async def test_last_use_of_a_token_only_goes_forward(self, store: Store) -> None:
        user = await store.add_user(make_user())
        token = await store.add_token(make_token(1, user))
        number = await store.accounts_number()
        for used_at_ns in (NOON_NS + 5, NOON_NS + 3):
            await store.note_tokens_used({token.token_id: used_at_ns, "unknown": 1})
        assert [known.used_at_ns for known in await store.tokens()] == [NOON_NS + 5]
        assert await store.accounts_number() == number
