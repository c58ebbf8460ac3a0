"""Folders of rule files, what they would change in a store, and the change itself."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tapewatch.adapters.sql import SqlStore
from tapewatch.clock import SystemClock
from tapewatch.documents import Rule, Watchlist
from tapewatch.errors import ConfigError, Invalid, NotFound, VersionConflict
from tapewatch.rules_as_code import Change, InStore, OnServer, RuleBook, apply, changes, read_rule_book, rule_files

TEXT = """\
watchlist mine "Mine" = AAA, BBB

rule ten "Above ten"
  when price > 10 and symbol in watchlist mine
  cooldown 60s
  tags level
"""


def book(folder: Path, text: str, name: str = "a.rules") -> RuleBook:
    (folder / name).write_text(text)
    return read_rule_book([folder / name])


def kinds(planned: list[Change]) -> list[tuple[str, str, str]]:
    return [(change.kind, change.what, change.id) for change in planned]


# -- files -----------------------------------------------------------------------------------------------------------


def test_folder_gives_all_rule_files_below_it_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("z.rules", "b/a.rules", "b/c.json", "notes.md", "b/rules"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.rules").mkdir()
    found = rule_files([tmp_path, Path("named.txt")])
    assert found == [tmp_path / "b/a.rules", tmp_path / "b/c.json", tmp_path / "z.rules", Path("named.txt")]


def test_folder_without_rule_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(Invalid, match=r"holds no rule file \(\*\.rules, \*\.json\)"):
        rule_files([tmp_path])


def test_text_and_json_of_the_same_rules_are_the_same_book(tmp_path: Path) -> None:
    text = book(tmp_path, TEXT)
    fields = {"id": "ten", "name": "Above ten", "cooldown": 60, "tags": ["level"]}
    raw = {
        "rules": [{**fields, "when": "price > 10 and symbol in watchlist mine"}],
        "watchlists": [{"id": "mine", "name": "Mine", "symbols": ["AAA", "BBB"]}],
    }
    other = book(tmp_path, json.dumps(raw), "a.json")
    assert kinds(changes(other, text)) == [("same", "watchlist", "mine"), ("same", "rule", "ten")]


@pytest.mark.parametrize(
    ("again", "what"), [("rule ten\n  when price > 1\n", "rule ten"), (TEXT.splitlines()[0], "watchlist mine")]
)
def test_id_of_two_files_is_refused_with_both_names(tmp_path: Path, again: str, what: str) -> None:
    (tmp_path / "a.rules").write_text(TEXT)
    (tmp_path / "b.rules").write_text(again)
    with pytest.raises(Invalid) as refused:
        read_rule_book([tmp_path])
    assert str(refused.value) == f"{tmp_path / 'b.rules'}: {what} is in {tmp_path / 'a.rules'} already"


def test_rule_and_watchlist_may_share_an_id(tmp_path: Path) -> None:
    found = book(tmp_path, "watchlist ten = AAA\nrule ten\n  when symbol in watchlist ten\n")
    assert (list(found.rules), list(found.watchlists)) == (["ten"], ["ten"])


def test_rule_that_costs_more_than_a_rule_may_is_refused(tmp_path: Path) -> None:
    dear = " or ".join(f"price crosses_above {n}" for n in range(66))
    with pytest.raises(Invalid) as refused:
        book(tmp_path, f"rule dear\n  when {dear}\n")
    assert str(refused.value).startswith(f"{tmp_path / 'a.rules'}: rule dear: asks too much: it costs ")


# -- differences -----------------------------------------------------------------------------------------------------


def test_versions_and_times_are_no_difference(tmp_path: Path) -> None:
    wanted = book(tmp_path, TEXT)
    stored = {"version": 7, "created_at": "2025-03-03T00:00:00Z", "updated_at": "2025-03-04T00:00:00Z"}
    found = RuleBook(
        {key: rule.model_copy(update=stored) for key, rule in wanted.rules.items()},
        {key: watchlist.model_copy(update=stored) for key, watchlist in wanted.watchlists.items()},
    )
    assert {change.kind for change in changes(wanted, found)} == {"same"}


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ('rule ten "Above ten"', 'rule ten "Over ten"'),
        ("price > 10", "price >= 10"),
        ("cooldown 60s", "cooldown 61s"),
        ("tags level", "tags level, mine"),
        ("tags level", "tags level\n  severity critical"),
        ("tags level", "tags level\n  disabled"),
        ("tags level", "tags level\n  fire level"),
        ("tags level", "tags level\n  gate volume_day > 5"),
        ("tags level", "tags level\n  rearm when price < 9"),
        ("tags level", 'tags level\n  description "Why"'),
    ],
)
def test_each_line_of_a_rule_is_a_difference_that_is_shown(tmp_path: Path, line: str, other: str) -> None:
    found = book(tmp_path, TEXT)
    wanted = book(tmp_path, TEXT.replace(line, other))
    same, changed = changes(wanted, found)
    assert (same.kind, changed.kind) == ("same", "changed")
    shown = list(changed.lines())
    assert shown[:2] == ["--- installed/ten", "+++ files/ten"]
    assert [text for text in shown[3:] if text[0] == "+"]
    assert (wanted.rules["ten"].written() == found.rules["ten"].written()) is False


def test_watchlist_shows_its_difference(tmp_path: Path) -> None:
    found, wanted = book(tmp_path, TEXT), book(tmp_path, TEXT.replace("AAA, BBB", "AAA, CCC"))
    changed, same = changes(wanted, found)
    assert (changed.kind, same.kind) == ("changed", "same")
    assert list(changed.lines())[3:] == ['-watchlist mine "Mine" = AAA, BBB', '+watchlist mine "Mine" = AAA, CCC']


# -- a store ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = SqlStore(tmp_path / "store.db")
    await store.upgrade()
    yield store
    await store.close()


async def bring(store: SqlStore, wanted: RuleBook, *, prune: bool = False) -> list[tuple[str, str, str]]:
    installed = InStore(store, SystemClock())
    planned = changes(wanted, await installed.found())
    await apply(installed, planned, prune=prune)
    return kinds(planned)


@pytest.mark.anyio
async def test_applying_twice_changes_nothing(store: SqlStore, tmp_path: Path) -> None:
    wanted = book(tmp_path, TEXT)
    assert await bring(store, wanted) == [("new", "watchlist", "mine"), ("new", "rule", "ten")]
    number = (await store.rules()).number
    assert await bring(store, wanted) == [("same", "watchlist", "mine"), ("same", "rule", "ten")]
    snapshot = await store.rules()
    assert snapshot.number == number
    assert [(rule.version, rule.written()) for rule in snapshot.rules] == [(1, wanted.rules["ten"].written())]


@pytest.mark.anyio
async def test_changed_documents_get_a_version_and_keep_their_first_time(store: SqlStore, tmp_path: Path) -> None:
    await bring(store, book(tmp_path, TEXT))
    first = await store.rule("ten")
    wanted = book(tmp_path, TEXT.replace("> 10", "> 11").replace("AAA, BBB", "AAA"))
    assert await bring(store, wanted) == [("changed", "watchlist", "mine"), ("changed", "rule", "ten")]
    rule, watchlist = await store.rule("ten"), await store.watchlist("mine")
    assert (rule.version, watchlist.version, watchlist.symbols) == (2, 2, ["AAA"])
    assert rule.when == "price > 11 and symbol in watchlist mine"
    assert rule.created_at == first.created_at < rule.updated_at


@pytest.mark.anyio
async def test_what_the_files_lack_goes_only_when_told_and_rules_before_their_lists(
    store: SqlStore, tmp_path: Path
) -> None:
    await bring(store, book(tmp_path, TEXT))
    wanted = book(tmp_path, "rule other\n  when price > 1\n")
    told = [("extra", "watchlist", "mine"), ("new", "rule", "other"), ("extra", "rule", "ten")]
    assert await bring(store, wanted) == told
    assert len((await store.rules()).rules) == 2
    await bring(store, wanted, prune=True)
    assert [rule.id for rule in (await store.rules()).rules] == ["other"]
    assert await store.watchlists() == []


@pytest.mark.anyio
async def test_deleted_id_stays_deleted(store: SqlStore, tmp_path: Path) -> None:
    wanted = book(tmp_path, TEXT)
    await bring(store, wanted)
    await store.delete_rule("ten")
    with pytest.raises(VersionConflict, match="ten"):
        await bring(store, wanted)
    with pytest.raises(NotFound):
        await store.rule("ten")


@pytest.mark.anyio
async def test_change_of_somebody_else_in_between_is_not_overwritten(store: SqlStore, tmp_path: Path) -> None:
    await bring(store, book(tmp_path, TEXT))
    installed = InStore(store, SystemClock())
    planned = changes(book(tmp_path, TEXT.replace("> 10", "> 11")), await installed.found())
    theirs = (await store.rule("ten")).model_copy(update={"name": "Theirs", "version": 2})
    await store.save_rule(theirs)
    with pytest.raises(VersionConflict, match="ten"):
        await apply(installed, planned, prune=False)
    assert (await store.rule("ten")).name == "Theirs"


def test_new_documents_show_as_added_lines() -> None:
    rule = Rule(id="a", name="A", when="price > 1")
    watchlist = Watchlist(id="w", name="W", symbols=["AAA"])
    planned = changes(RuleBook({"a": rule}, {"w": watchlist}), RuleBook({}, {}))
    for change, text in zip(planned, (watchlist.written(), rule.written()), strict=True):
        assert list(change.lines())[3:] == [f"+{line}" for line in text.splitlines()]


@pytest.mark.parametrize("url", ["", "localhost:8000", "http://", "ftp://127.0.0.1", "http://[::1", "http://a:b"])
def test_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigError, match=r"--url: .* is not an address such as"):
        OnServer(url)
