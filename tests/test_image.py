"""The image holds to the rules that docs/security.md names. They are also shown Dockerfiles that break them."""

import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from dockerfile import DOCKERFILE, instructions, stages

ROOT = Path(__file__).parent.parent
TELLING = re.compile(r"pass|secret|token|key|credential|auth", re.IGNORECASE)
TOOLS = re.compile(r"\b(apt|apt-get|pip|npm|curl|wget|gcc|make|chmod)\b")
GIVEN_TO_THE_BUILD = {"pyproject.toml", "requirements.txt", "README.md", "LICENSE", "src", "web"}


def image_is_confined(text: str) -> Iterator[str]:
    every, last = instructions(text), stages(text)[-1]
    given = dict(rest.split("=", 1) for word, rest in every if word == "ARG" and "=" in rest)
    for word, rest in every:
        if word == "ADD":
            yield f"ADD {rest}"
        if word in {"ARG", "ENV"}:
            names = re.findall(r"([A-Za-z_]\w*)=", rest) or [rest]
            yield from (f"{word} {name} looks like a secret" for name in names if TELLING.search(name))
        if word == "FROM":
            base = rest.split()[0]
            base = given.get(base.strip("${}"), base)
            if not re.search(r":[0-9][^/]*$", base):
                yield f"FROM {base} has no version"
        if word == "RUN" and re.search(r"https?://|--mount=type=secret", rest):
            yield f"RUN {rest} fetches by hand"
        for command in re.split(r"&&|;", rest) if word == "RUN" else ():
            if re.search(r"\bpip (install|wheel)\b", command):
                if "--no-cache-dir" not in command:
                    yield f"{command.strip()} leaves a cache"
                if "--require-hashes -r requirements.txt" not in command and "--no-deps" not in command:
                    yield f"{command.strip()} installs what nobody has checked"
    if (users := [rest for word, rest in last if word == "USER"]) != ["10001:10001"]:
        yield f"USER {users}"
    if last[-1] != ("ENTRYPOINT", '["tapewatch"]'):
        yield f"ends with {last[-1]}"
    for word, rest in last:
        if word in {"COPY", "ADD"} and not rest.startswith("--from=package /opt/tapewatch "):
            yield f"{word} {rest} into what runs"
        if word == "RUN" and TOOLS.search(rest):
            yield f"RUN {rest} in what runs"
        if word not in {"FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "EXPOSE", "ENTRYPOINT"}:
            yield f"{word} {rest}"
        if word in {"COPY", "RUN"} and last.index((word, rest)) > last.index(("USER", users[0])) if users else False:
            yield f"{word} {rest} as the image's own user"


def test_image_is_confined() -> None:
    assert list(image_is_confined(DOCKERFILE.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("text", "other", "says"),
    [
        ("USER 10001:10001", "USER root", "USER ['root']"),
        ("USER 10001:10001", "USER tapewatch", "USER ['tapewatch']"),
        ("USER 10001:10001\n", "", "USER []"),
        ("USER 10001:10001", "USER 10001:10001\nUSER 0", "USER ['10001:10001', '0']"),
        ("BASE=python:3.11-slim-bookworm", "BASE=python:latest", "FROM python:latest has no version"),
        ("BASE=python:3.11-slim-bookworm", "BASE=python", "FROM python has no version"),
        ("COPY requirements.txt ./", "ADD https://example.com/requirements.txt ./", "ADD https"),
        ("COPY src src", "ARG DATABASE_PASSWORD\nCOPY src src", "DATABASE_PASSWORD looks like a secret"),
        ("TAPEWATCH_DATA_DIR=/data", "TAPEWATCH_DATA_DIR=/data TAPEWATCH_SECRET=x", "TAPEWATCH_SECRET looks like"),
        ("--require-hashes -r", "-r", "installs what nobody has checked"),
        ("--no-deps wheels", "wheels", "installs what nobody has checked"),
        ("install --no-cache-dir --require", "install --require", "leaves a cache"),
        ("COPY --from=package /opt/tapewatch /opt/tapewatch", "COPY . /opt/tapewatch", "into what runs"),
        ("&& install -d", "&& apt-get install -y gcc && install -d", "in what runs"),
        ("WORKDIR /data\n", "WORKDIR /data\nCOPY --from=package /opt/tapewatch x\n", "as the image's own user"),
        ('ENTRYPOINT ["tapewatch"]', "ENTRYPOINT tapewatch", "ends with"),
        ("EXPOSE 8000", "VOLUME /data", "VOLUME /data"),
    ],
)
def test_image_that_breaks_a_rule_is_found(text: str, other: str, says: str) -> None:
    whole = DOCKERFILE.read_text(encoding="utf-8")
    assert text in whole
    complaints = list(image_is_confined(whole.replace(text, other)))
    assert any(says in complaint for complaint in complaints), complaints


def test_image_is_given_only_what_is_named() -> None:
    lines = [
        line
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == GIVEN_TO_THE_BUILD
    assert all(line.startswith("!") for line in lines[1 : 1 + len(GIVEN_TO_THE_BUILD)])  # what follows takes away again
    for left_out in ("src/tapewatch/serve/ui", "web/node_modules", "web/.env", "src/data.db"):
        assert any(fnmatch(left_out, line.replace("**", "*")) for line in lines[1 + len(GIVEN_TO_THE_BUILD) :])


def test_what_the_image_is_made_of_is_there() -> None:
    copied = [rest for word, rest in instructions(DOCKERFILE.read_text(encoding="utf-8")) if word == "COPY"]
    sources = {name for rest in copied if not rest.startswith("--from") for name in shlex.split(rest)[:-1]}
    assert {name for name in sources if not (ROOT / name).exists()} == set()
    assert {name.partition("/")[0] for name in sources} == GIVEN_TO_THE_BUILD
