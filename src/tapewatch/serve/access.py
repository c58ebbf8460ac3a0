"""Who asks."""

from fastapi import Request

from tapewatch.accounts.roles import LOCAL, Principal


def who(request: Request) -> Principal:
    principal: Principal = getattr(request.state, "principal", LOCAL)
    return principal
