"""The OpenAPI document, and schemathesis attacking a running server with it: every check, and nothing found."""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tapewatch.adapters.sql import SqlStore
from tapewatch.documents import Alert, Rule
from tapewatch.engine.board import BoardRows
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.serve.board_view import BoardView

pytestmark = pytest.mark.anyio
HERE = Path(__file__).parent
DOCUMENT = "/api/v1/openapi.json"


async def test_schemathesis_finds_nothing(
    *,
    address: str,
    tmp_path: Path,
    store: SqlStore,
    board: BoardView,
    rule: Rule,
    make_alert: Callable[..., Alert],
    make_board: Callable[..., BoardRows],
) -> None:
    await store.save_rule(rule)
    await store.save_alerts([make_alert(n) for n in range(5)], reader="test")
    board.show(0, make_board("AAPL", "MSFT"))
    attack = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"http://{address}{DOCUMENT}"),
        *("--checks", "all", "--max-examples", "8", "--seed", "1", "--workers", "1", "--max-failures", "10"),
        *("--suppress-health-check", "all", "--no-color"),
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "attack_hooks", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(attack.communicate(), 120)
    assert attack.returncode == 0, said.decode()
    async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as api:
        assert (await api.get("/api/v1/rules", params={"limit": 500})).status_code == 200


async def test_document_describes_what_is_served(api: httpx.AsyncClient) -> None:
    document = (await api.get(DOCUMENT)).json()
    operations = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    rules = "/api/v1/rules"
    assert operations == {
        *(f"GET {rules}", f"POST {rules}", f"POST {rules}/validate"),
        *(f"{method} {rules}/{{rule_id}}" for method in ("GET", "PUT", "DELETE")),
        *("GET /api/v1/alerts", "GET /api/v1/alerts/{alert_id}"),
        *("GET /api/v1/symbols", "GET /api/v1/symbols/{symbol}"),
        *("GET /api/v1/toplists", "GET /api/v1/toplists/system/{toplist_id}"),
        *("GET /api/v1/metrics", "GET /api/v1/system/status", "GET /api/v1/health", "GET /api/v1/ready"),
    }
    for method, path in (("post", rules), ("put", f"{rules}/{{rule_id}}"), ("post", f"{rules}/validate")):
        body = document["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
        assert body["additionalProperties"] is False
        assert body["properties"]["conditions"]["items"]["properties"]["metric"]["enum"] == list(CATALOGUE)
    limit = document["paths"][rules]["get"]["parameters"][0]["schema"]
    assert (limit["type"], limit["minimum"], limit["maximum"], limit["default"]) == ("integer", 1, 500, 100)
