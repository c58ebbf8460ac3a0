"""Who asks."""

from starlette.requests import Request

from tapewatch.accounts.roles import LOCAL, Principal


def who(request: Request) -> Principal:
    """The one who asks, as it was found before the endpoint runs."""
    principal: Principal = getattr(request.state, "principal", LOCAL)
    return principal
