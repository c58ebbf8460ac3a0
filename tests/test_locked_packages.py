"""What is installed is named by the lock files, each package with its version and the content that it must have."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
RUN, DEVELOP = "requirements.txt", "requirements-dev.txt"

# One entry on one line: name, version, perhaps a marker, contents. No address, folder or option has room in it.
ENTRY = re.compile(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)(?: ; ([^\\#@]+?))?((?: --hash=sha256:[0-9a-f]{64})+)")


@dataclass(frozen=True)
class Locked:
    version: Version
    applies: bool  # to the Python and the system of this process
    contents: frozenset[str]


def entries(text: str) -> dict[str, Locked]:
    """Raises ValueError with the line that is no entry, or the name that comes twice."""
    found: dict[str, Locked] = {}
    for line in re.sub(r" *\\\n *", " ", text).splitlines():
        if line.lstrip().startswith("#"):
            continue
        entry = ENTRY.fullmatch(line)
        if entry is None or entry[1] in found:
            raise ValueError(line)
        marker = Requirement(f"{entry[1]}; {entry[3]}").marker if entry[3] else None
        found[entry[1]] = Locked(
            version=Version(entry[2]),
            applies=marker is None or marker.evaluate(),
            contents=frozenset(entry[4].split()),
        )
    return found


@cache
def locked(file: str) -> dict[str, Locked]:
    return entries((ROOT / file).read_text(encoding="utf-8"))


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def wanted(*groups: str) -> list[Requirement]:
    """What pyproject.toml asks for: the groups named, and with "run" the dependencies of the package."""
    asked = {"run": project()["project"]["dependencies"], **project()["dependency-groups"]}
    return [Requirement(text) for group in groups for text in asked[group]]


def missing(wanted: Iterable[Requirement], lock: dict[str, Locked]) -> list[str]:
    """What is not in the lock, or not as it must be."""
    return [
        f"{requirement}"
        for requirement in wanted
        if (entry := lock.get(canonicalize_name(requirement.name))) is None
        or not requirement.specifier.contains(entry.version)
    ]


def needed(requirements: Iterable[Requirement]) -> set[str]:
    """The names of these and of all that they need here, as the packages that are installed say."""
    names: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(requirement, frozenset({""})) for requirement in requirements]
    while waiting:
        requirement, extras = waiting.pop()
        if requirement.marker is not None and not any(requirement.marker.evaluate({"extra": e}) for e in extras):
            continue
        name, asked = canonicalize_name(requirement.name), frozenset({"", *requirement.extras})
        names.add(name)
        if (name, asked) not in seen:
            seen.add((name, asked))
            try:
                waiting += [(Requirement(text), asked) for text in distribution(name).requires or []]
            except PackageNotFoundError:
                continue  # told by those who compare names with versions
    return names


def installed(name: str) -> Version | None:
    try:
        return Version(distribution(name).version)
    except PackageNotFoundError:
        return None


def differs(names: Iterable[str], lock: dict[str, Locked]) -> list[str]:
    return [
        f"{name}: {installed(name)} is installed, {lock[name].version if name in lock else 'nothing'} is locked"
        for name in sorted(names)
        if name not in lock or installed(name) != lock[name].version
    ]


@pytest.mark.parametrize("file", [RUN, DEVELOP])
def test_each_package_of_a_lock_file_has_one_version_and_its_contents(file: str) -> None:
    assert len(locked(file)) > 50
    assert "://" not in (ROOT / file).read_text(encoding="utf-8")


GOOD = f"lark==1.3.1 \\\n    --hash=sha256:{'0a' * 32} \\\n    --hash=sha256:{'1b' * 32}\n    # via tapewatch"


@pytest.mark.parametrize(
    "planted",
    [
        "lark==1.3.1",
        GOOD.replace("==", ">="),
        GOOD.replace("1.3.1", "1.*"),
        GOOD.replace("sha256", "md5"),
        GOOD.replace("0a", "0", 1),
        GOOD.replace("lark==1.3.1", "lark @ file:///tmp/lark.whl"),
        "-e .",
        "--editable .",
        "./lark",
        "--index-url https://example.com/simple",
        "--extra-index-url https://example.com/simple",
        "--trusted-host example.com",
        "--find-links wheels",
        "-r other.txt",
        GOOD,  # a second time
    ],
)
def test_lock_file_with_anything_else_is_refused(planted: str) -> None:
    assert set(entries(GOOD)) == {"lark"}
    with pytest.raises(ValueError, match=re.escape(planted.split(maxsplit=1)[0])):
        entries(f"{GOOD}\n{planted}\n")


def test_lock_files_hold_what_the_project_asks_for() -> None:
    assert missing(wanted("run", "build"), locked(RUN)) == []
    assert missing(wanted("run", "build", "dev"), locked(DEVELOP)) == []
    planted = [Requirement("lark>=99"), Requirement("nobody-asked"), Requirement("lark")]
    assert missing(planted, locked(RUN)) == ["lark>=99", "nobody-asked"]


def test_what_runs_is_what_was_tested() -> None:
    assert {name: locked(DEVELOP).get(name) for name in locked(RUN)} == locked(RUN)


def test_what_builds_the_package_is_locked() -> None:
    assert set(project()["build-system"]["requires"]) <= {str(requirement) for requirement in wanted("build")}


def test_what_is_installed_here_is_what_is_locked() -> None:
    assert differs(needed(wanted("run", "build", "dev")), locked(DEVELOP)) == []
    assert differs(needed(wanted("run", "build")), locked(RUN)) == []
    assert differs(["lark", "nobody-asked"], {"lark": locked(RUN)["redis"]}) != []


def test_lock_files_hold_nothing_that_nobody_needs() -> None:
    applies = {name for name, entry in locked(RUN).items() if entry.applies}
    assert applies == needed(wanted("run", "build"))


def imports(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_package_imports_only_what_is_locked_for_running() -> None:
    package = ROOT / "src/tapewatch"
    sources = [path for path in package.rglob("*.py") if package / "contracts" not in path.parents]  # suites of tests
    others = {module for source in sources for module in imports(source)} - sys.stdlib_module_names - {"tapewatch"}
    brought_by = packages_distributions()
    assert others >= {"numpy", "redis", "yaml"}
    assert {
        module: brought_by.get(module)
        for module in others
        if not {canonicalize_name(name) for name in brought_by.get(module, [])} & set(locked(RUN))
    } == {}


def test_redis_client_is_not_one_that_mixes_replies_up() -> None:
    # CVE-2023-28858 and CVE-2023-28859: a cancelled command left its reply to the next one on the connection.
    assert locked(RUN)["redis"].version >= Version("4.5.4")


INSTALLING = re.compile(
    r"\bpip3? install\b|\buv pip (?:install|sync)\b|\buv add\b|\bnpx\b|\bnpm(?: --\S+(?: \S+)?)* (?:install|i|ci|add)\b"
)
BY_CONTENT = re.compile(r"--require-hashes|--no-index|\bci\b")


def installing(script: str) -> list[str]:
    lines = map(str.strip, script.replace("\\\n", " ").splitlines())
    return [line for line in lines if INSTALLING.search(line) and not line.startswith("#")]


@pytest.mark.parametrize("script", ["Makefile", ".ci/run", ".ci/setup", ".ci/services", ".ci/unpack-timescaledb"])
def test_script_installs_only_what_a_lock_file_knows(script: str) -> None:
    text = (ROOT / script).read_text(encoding="utf-8")
    assert [line for line in installing(text) if not BY_CONTENT.search(line)] == []


def test_lines_that_install_are_found() -> None:
    lines = ["python -m pip install uv", "npm i x", "npm --prefix web --silent install", "uv pip install a", "npx vite"]
    assert installing("\n".join(["say pip", *lines, "apt-get install npm"])) == lines
    assert not any(BY_CONTENT.search(line) for line in lines)
    assert len(installing((ROOT / ".ci/setup").read_text(encoding="utf-8"))) == 5


def test_bill_of_materials_names_what_runs_and_the_page(tmp_path: Path) -> None:
    path = tmp_path / "dist/sbom.json"
    subprocess.run([sys.executable, ROOT / ".ci/sbom.py", path], check=True)
    bill = json.loads(path.read_text(encoding="utf-8"))
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "tapewatch"

    bought = {(part["purl"].split("/")[0], part["name"], part["version"]) for part in bill["components"]}
    assert {(name, version) for kind, name, version in bought if kind == "pkg:pypi"} == {
        (name, str(locked(RUN)[name].version)) for name in needed(wanted("run"))
    }
    page = json.loads((ROOT / "web/package-lock.json").read_text(encoding="utf-8"))["packages"]
    locked_for_page = {
        ("pkg:npm", place.rpartition("node_modules/")[2], entry["version"]) for place, entry in page.items() if place
    }
    assert len(locked_for_page) > 50
    assert locked_for_page <= bought

    drawn = {part["bom-ref"] for part in [bill["metadata"]["component"], *bill["components"]]}
    assert {ref for needs in bill["dependencies"] for ref in [needs["ref"], *needs.get("dependsOn", [])]} == drawn
