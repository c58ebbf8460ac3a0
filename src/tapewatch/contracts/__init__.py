"""One suite per port: what its prose promises, as tests that every adapter passes.

To check an adapter, write a test class that inherits the suite and gives it the fixtures that its docstring names:

    class TestMyBus(BusContract):
        @pytest.fixture
        async def bus(self) -> AsyncIterator[MyBus]: ...

The tests are coroutines marked `anyio`; they need pytest, anyio's plugin and a fixture `anyio_backend` that returns
"asyncio". For readable failures call `pytest.register_assert_rewrite("tapewatch.contracts")` in conftest.py before the
first import. Suites have no options: what an adapter cannot pass, it does not implement.
"""
