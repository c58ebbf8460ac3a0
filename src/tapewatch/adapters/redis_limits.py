"""Windows of rate limits on Redis, so that many processes count together. Keys begin with ``limits``.

It waits a quarter of a second at most: a limit that cannot be asked holds nobody up.
"""

from typing import Any

from limits.aio.storage import RedisClusterStorage, RedisSentinelStorage, RedisStorage, Storage

from tapewatch.adapters.redis_address import parsed

_WAIT_S = 0.25


def limits_storage(url: str) -> Storage:
    """At the address of the bus; it connects when it is first asked."""
    address = parsed(url)
    common: dict[str, Any] = {"wrap_exceptions": True, "implementation": "redispy", "key_prefix": "limits"}
    patience: dict[str, Any] = {"socket_timeout": _WAIT_S, "socket_connect_timeout": _WAIT_S}
    settings = address.settings | patience
    places = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in address.hosts)
    match address.kind:
        case "server":
            # The driver reads the rest of the address itself.
            return RedisStorage(f"async+{url}", **common, **patience)
        case "sentinel":
            return RedisSentinelStorage(
                f"async+redis+sentinel://{places}/{address.master}",
                sentinel_kwargs=address.sentinel_settings,
                **common,
                **settings,
            )
        case "cluster":
            settings.pop("db", None)
            return RedisClusterStorage(f"async+redis+cluster://{places}", **common, **settings)


async def close_limits(storage: Storage) -> None:
    """The driver's connections; the library has no call for that."""
    bridge: Any = getattr(storage, "bridge", None)
    if bridge is None:
        return
    await bridge.storage.aclose()
    for one in getattr(getattr(bridge, "sentinel", None), "sentinels", ()):
        await one.aclose()
