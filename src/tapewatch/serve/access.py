"""Who asks."""

from fastapi import Request

from tapewatch.accounts.roles import LOCAL, Principal


def who(request: Request) -> Principal:
    """Whoever was let in with this request."""
    principal: Principal = getattr(request.state, "principal", LOCAL)
    return principal
