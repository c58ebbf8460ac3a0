"""docs/channels.md: its example verifies what is sent, and what it lists is what there is."""

import json
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from tapewatch.channels.apprise_channel import HOSTED, ON_A_HOST
from tapewatch.channels.webhook import signature
from tapewatch.delivery_documents import RATE_PER_MINUTE, ChannelDraft, SubscriptionDraft
from tapewatch.strict import parse_document

GUIDE = (Path(__file__).parents[2] / "docs" / "channels.md").read_text(encoding="utf-8")
SECRET = "a secret of at least 24 characters"  # noqa: S105  # of nobody
AT_S = 1_741_000_000
BODY = '{"type":"alert","text":"ß"}'.encode()


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Any:
    (example,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    path = tmp_path_factory.mktemp("guide") / "verification.py"
    path.write_text(example)
    spec = spec_from_file_location("verification", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.verified


def test_example_takes_what_is_sent(verified: Any) -> None:
    assert verified(SECRET, signature(SECRET, BODY, at_s=AT_S), BODY, AT_S + 3.5)


@pytest.mark.parametrize(
    ("secret", "header", "body", "now_s"),
    [
        (SECRET + "x", signature(SECRET, BODY, at_s=AT_S), BODY, AT_S),
        (SECRET, signature(SECRET, BODY, at_s=AT_S), BODY + b" ", AT_S),
        (SECRET, signature(SECRET, BODY, at_s=AT_S), BODY, AT_S + 301),
        (SECRET, signature(SECRET, BODY, at_s=AT_S + 400), BODY, AT_S),
        (SECRET, signature(SECRET, BODY, at_s=AT_S).replace(str(AT_S), str(AT_S + 1)), BODY, AT_S),
        (SECRET, f"t={AT_S},v1=", BODY, AT_S),
        (SECRET, f"t={AT_S},v1=ü", BODY, AT_S),
        (SECRET, "t=x,v1=y", BODY, AT_S),
        (SECRET, "", BODY, AT_S),
    ],
)
def test_example_refuses_what_is_forged_changed_or_old(
    verified: Any, secret: str, header: str, body: bytes, now_s: int
) -> None:
    assert not verified(secret, header, body, now_s)


def test_documents_of_the_guide_can_be_saved() -> None:
    channel, subscription = re.findall(r"-d '(\{.*?\n\})'", GUIDE, re.DOTALL)
    parse_document(ChannelDraft, json.loads(channel))
    parse_document(SubscriptionDraft, json.loads(subscription))


def test_kinds_and_services_of_the_guide_are_those_that_there_are() -> None:
    kinds = dict(re.findall(r"^\| `([a-z]+)` \|.*\| ([0-9]+) \|$", GUIDE, re.MULTILINE))
    assert {kind: int(rate) for kind, rate in kinds.items()} == RATE_PER_MINUTE
    (services,) = re.findall(r"^Apprise: `([^`]+)`", GUIDE, re.MULTILINE)
    assert services.split() == sorted({*HOSTED, *ON_A_HOST})
