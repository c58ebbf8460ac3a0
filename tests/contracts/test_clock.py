"""The real clock under the contract."""

import pytest

from tapewatch.clock import SystemClock
from tapewatch.contracts.clock import ClockContract
from tapewatch.ports import Clock


class TestSystemClock(ClockContract):
    @pytest.fixture
    def clock(self) -> Clock:
        return SystemClock()
