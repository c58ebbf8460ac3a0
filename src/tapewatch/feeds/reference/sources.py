"""A provider's name to its source of reference data."""

from pathlib import Path
from typing import Any

from tapewatch.credentials import load_credentials
from tapewatch.errors import ConfigError
from tapewatch.feeds.reference.alpaca_rest import AlpacaReference, AlpacaRestSettings
from tapewatch.feeds.reference.massive_rest import MassiveReference, MassiveRestSettings
from tapewatch.ports import Clock


def rest_source(
    provider: str,
    clock: Clock,
    *,
    secrets: Path | None = None,
    requests_per_minute: float | None = None,
    address: str | None = None,
    trading_address: str | None = None,
) -> AlpacaReference | MassiveReference:
    """With the provider's own defaults for what is None. `ConfigError` for what cannot be, and for missing keys."""
    if provider not in {"alpaca", "massive"}:
        raise ConfigError(f"{provider!r} has no reference data; there are: alpaca, massive")
    given: dict[str, Any] = {"requests_per_minute": requests_per_minute}
    credentials = load_credentials(provider, secrets=secrets)
    if provider == "massive":
        if trading_address is not None:
            raise ConfigError("--trading-address goes with alpaca")
        given["address"] = address
        return MassiveReference(MassiveRestSettings(credentials=credentials, **_known(given)), clock)
    given |= {"data_address": address, "trading_address": trading_address}
    return AlpacaReference(AlpacaRestSettings(credentials=credentials, **_known(given)), clock)


def _known(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}
