"""The house rules: what the documentation names exists, and nothing stands in the tree that should not be there."""

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup
from typer.testing import CliRunner

from tapewatch import errors
from tapewatch.cli import app
from tapewatch.documents import load_rule_file

ROOT = Path(__file__).parent.parent
MADE = {"data", "dist", "src/tapewatch/serve/ui"}
MADE_NAMES = re.compile(r"\.git|\.venv|\.services|node_modules|__pycache__|\.hypothesis|\..*_cache|.*\.egg-info")
MADE_SUFFIXES = {".db", ".png", ".parquet", ".whl", ".zst", ".ico", ".woff2"}


@cache
def tree() -> tuple[Path, ...]:
    """The files that belong to the project, not those that tools left beside them."""

    def walk(folder: Path) -> Iterator[Path]:
        for entry in sorted(folder.iterdir()):
            if MADE_NAMES.fullmatch(entry.name) or named(entry) in MADE:
                continue
            if entry.is_dir():
                yield from walk(entry)
            elif entry.suffix not in MADE_SUFFIXES:
                yield entry

    return tuple(walk(ROOT))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def of_kind(*suffixes: str) -> list[Path]:
    return [path for path in tree() if path.suffix in suffixes]


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def commands(group: TyperGroup, prefix: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        yield f"{prefix}{name}"
        if isinstance(command, TyperGroup):
            yield from commands(command, f"{prefix}{name} ")


def test_make_targets_that_readme_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"run", "test"} <= targets
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", readme(), re.MULTILINE)) - targets == set()


def test_make_targets_all_stand_in_readme() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert targets - set(re.findall(r"make ([a-z-]+)", readme())) == set()


def test_commands_in_readme_are_those_of_the_program() -> None:
    program = typer.main.get_command(app)
    assert isinstance(program, TyperGroup)
    every = set(commands(program))
    groups = {name for name in every if any(other.startswith(f"{name} ") for other in every)}
    table = set(re.findall(r"^\| `tapewatch ([a-z -]+?)` \|", readme(), re.MULTILINE))
    assert table == every - groups

    named_anywhere = re.findall(r"(?:`|/)tapewatch ([a-z][a-z-]*)", readme())
    assert set(named_anywhere) - {name.split()[0] for name in every} == set()


def test_help_of_every_command_in_readme_is_shown() -> None:
    for command in re.findall(r"^\| `tapewatch ([a-z -]+?)` \|", readme(), re.MULTILINE):
        result = CliRunner().invoke(app, [*command.split(), "--help"])
        assert result.exit_code == 0, f"tapewatch {command} --help: {result.output}"


def test_rule_file_in_readme_is_valid() -> None:
    (example,) = re.findall(r"```rules\n(.*?)```", readme(), re.DOTALL)
    assert len(load_rule_file(example, where="mine.rules")[0]) == 2


@pytest.mark.parametrize("page", of_kind(".md"), ids=named)
def test_relative_links_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    missing = [
        link
        for link in links
        if not re.match(r"[a-z]+:|#", link) and not (page.parent / link.partition("#")[0]).exists()
    ]
    assert missing == []


def test_decisions_are_all_listed() -> None:
    index = (ROOT / "docs/decisions/README.md").read_text(encoding="utf-8")
    pages = sorted(path.name for path in (ROOT / "docs/decisions").glob("[0-9]*.md"))
    assert re.findall(r"\((\d{4}-[a-z-]+\.md)\)", index) == pages


@pytest.mark.parametrize("decision", sorted((ROOT / "docs/decisions").glob("[0-9]*.md")), ids=named)
def test_decision_has_its_four_parts(decision: Path) -> None:
    headings = re.findall(r"^## (.+)$", decision.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == ["Context", "Decision", "Cost", "When to look again"]


# Put together here, so that this file does not hold what it looks for.
REGISTRIES = [f"{name}.{domain}" for name, domain in [
    ("registry.npmjs", "org"), ("pypi", "org"), ("pythonhosted", "org"), ("yarnpkg", "com"), ("crates", "io"),
]]  # fmt: skip
MACHINE_PATH = re.compile(r"(?<![\w.~$)}-])/(work|root|home|Users)/")


def test_no_file_names_a_registry_or_a_path_of_somebodys_machine() -> None:
    found = []
    for path in tree():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            hits = [host for host in REGISTRIES if host in line]
            hits += [hit.group(0) for hit in MACHINE_PATH.finditer(line)]
            found += [f"{named(path)}:{number}: {hit}" for hit in hits]
    assert found == []


def test_no_module_is_named_after_nothing() -> None:
    nothing = re.compile(r"(utils?|common|helpers?|managers?|base|misc)", re.IGNORECASE)
    assert [
        named(path)
        for path in of_kind(".py", ".ts", ".svelte")
        if nothing.fullmatch(path.name.partition(".")[0]) or any(map(nothing.fullmatch, path.relative_to(ROOT).parts))
    ] == []


def test_errors_are_all_in_the_tree_of_their_module() -> None:
    public = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    drawn = set(re.findall(r"^ +(?:[├└]── )?([A-Z]\w+)(?:$| {2,})", errors.__doc__ or "", re.MULTILINE))
    assert drawn == public


@pytest.mark.parametrize("source", of_kind(".py"), ids=named)
def test_python_source_runs_no_text_and_reads_no_pickle(source: Path) -> None:
    found = []
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Name(id="eval" | "exec" | "compile" | "__import__" as name)):
                found.append(f"line {node.lineno}: {name}()")
            case ast.Import(names=aliases):
                found += [f"line {node.lineno}: {a.name}" for a in aliases if a.name.split(".")[0] in UNSAFE_MODULES]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in UNSAFE_MODULES:
                found.append(f"line {node.lineno}: {module}")
    assert found == []


SHELLS = {"system", "popen", "getoutput", "getstatusoutput"}


@pytest.mark.parametrize("source", of_kind(".py"), ids=named)
def test_python_source_starts_no_shell_and_builds_nothing_from_yaml(source: Path) -> None:
    found = []
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        match node:
            case ast.keyword(arg="shell", value=ast.Constant(value=True)):
                found.append(f"line {node.lineno}: a shell")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="os" | "subprocess"), attr=name)) if name in SHELLS:
                found.append(f"line {node.lineno}: {name}()")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="yaml"), attr=name)) if name not in YAML:
                found.append(f"line {node.lineno}: yaml.{name}()")
    assert found == []


YAML = {"compose", "safe_load", "safe_load_all", "safe_dump"}


def test_page_s_libraries_are_pinned_by_their_content() -> None:
    locked = json.loads((ROOT / "web/package-lock.json").read_text(encoding="utf-8"))["packages"]
    wanted = json.loads((ROOT / "web/package.json").read_text(encoding="utf-8"))
    assert all(re.fullmatch(r"[0-9.]+", version) for kind in ("dependencies", "devDependencies")
               for version in wanted[kind].values())  # fmt: skip
    assert [name for name, entry in locked.items() if name and "integrity" not in entry] == []


UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}


def test_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", [".ci/run", ".ci/setup", ".ci/services", ".ci/unpack-timescaledb"])
def test_script_may_be_run(script: str) -> None:
    assert (ROOT / script).stat().st_mode & 0o100
