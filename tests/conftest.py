"""What all tests share: coroutine tests run on asyncio, and the suites inside the package explain their failures."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("tapewatch.contracts")
settings.register_profile("tapewatch", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("tapewatch")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def market_data() -> Path:
    """The folder of real trades and bars. Without it tests are skipped on a desk and fail in continuous integration."""
    beside = Path(__file__).parent.parent.parent / "shared" / "market-data"
    folder = Path(os.environ.get("TAPEWATCH_MARKET_DATA") or beside)
    if not folder.is_dir():
        reason = f"no market data at {folder}; TAPEWATCH_MARKET_DATA names the folder"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
