"""The Dockerfile as data."""

import re
from itertools import pairwise
from pathlib import Path

DOCKERFILE = Path(__file__).parent.parent.parent / "deploy" / "image" / "Dockerfile"


def instructions(text: str) -> list[tuple[str, str]]:
    lines = re.sub(r"\\\n\s*", "", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [(word.upper(), rest) for word, _, rest in (line.partition(" ") for line in lines.splitlines() if line)]


def stages(text: str) -> list[list[tuple[str, str]]]:
    found = instructions(text)
    begins = [i for i, (word, _) in enumerate(found) if word == "FROM"]
    return [found[i:j] for i, j in pairwise([*begins, len(found)])]


def image_user() -> int:
    (user,) = [rest for word, rest in stages(DOCKERFILE.read_text(encoding="utf-8"))[-1] if word == "USER"]
    return int(user.partition(":")[0])
