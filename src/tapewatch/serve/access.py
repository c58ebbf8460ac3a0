"""Who asks."""

from fastapi import Request

from tapewatch.accounts.roles import LOCAL, Principal


def who(request: Request) -> Principal:
    return getattr(request.state, "principal", LOCAL)
