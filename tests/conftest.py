"""What all tests share: coroutine tests run on asyncio, and the suites inside the package explain their failures."""

import pytest

pytest.register_assert_rewrite("tapewatch.contracts")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
