"""Hosts that a user names: public ones are connected to, everything inside is refused."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from hooks import Names
from hypothesis import given
from hypothesis import strategies as st

from tapewatch.channels import addresses as addresses_module
from tapewatch.channels.addresses import Addresses, AddressRefused, AddressUnknown, Target, is_public, resolve

pytestmark = pytest.mark.anyio

PUBLIC, PUBLIC_6 = "93.184.216.34", "2606:2800:220:1::1"
NAMES = {
    "hooks.example.com": [[PUBLIC, PUBLIC_6]],
    "inside.example.com": [["10.0.0.7"]],
    "mixed.example.com": [[PUBLIC, "127.0.0.1"]],
    "six.example.com": [["::1"]],
    "mapped.example.com": [["::ffff:10.0.0.7"]],
    "redis": [["10.0.0.5"]],
    "db.internal": [[PUBLIC]],
}
REFUSED = [
    "http://hooks.example.com/",
    "http://169.254.169.254/",
    "file:///etc/passwd",
    "gopher://hooks.example.com/",
    "//hooks.example.com/",
    "hooks.example.com",
    "https://169.254.169.254/latest/meta-data",
    "https://127.0.0.1/",
    "https://[::1]/",
    "https://0.0.0.0/",
    "https://[::]/",
    "https://10.1.2.3/",
    "https://172.16.0.1/",
    "https://192.168.1.1/",
    "https://100.64.0.1/",
    "https://192.0.0.192/",
    "https://168.63.129.16/",
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    "https://[ff02::1]/",
    "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[fc00::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:93.184.216.34]/",
    "https://[::127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[2002:7f00:1::]/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.1/",
    "https://0177.0.0.1/",
    "https://127.1/",
    "https://127.0.0.1./",
    "https://1.1.1.1.1/",
    "https://redis:6379",
    "https://redis/",
    "https://localhost/",
    "https://sub.localhost/",
    "https://db.internal/",
    "https://inside.example.com/",
    "https://mixed.example.com/",
    "https://six.example.com/",
    "https://mapped.example.com/",
    "https://hooks.example.com:6379/",
    "https://hooks.example.com:80/",
    "https://hooks.example.com:0/",
    "https://hooks.example.com:99999/",
    "https://user:pass@hooks.example.com/",
    "https://hooks.example.com@127.0.0.1/",
    "https://hooks.example.com\\@127.0.0.1/",
    "https://hooks.example.com/#@127.0.0.1",
    "https:///path",
    "https://",
    "https://exa_mple..com/",
    "https://①②⑦.0.0.1/",
    "https://%31%32%37.0.0.1/",
]


@pytest.mark.parametrize("url", REFUSED)
async def test_url_that_leads_inside_is_refused(url: str) -> None:
    names = Names({name: list(answers) for name, answers in NAMES.items()})
    with pytest.raises(AddressRefused):
        await Addresses(resolve=names.resolve).target(url)


async def test_public_host_is_the_address_that_was_checked() -> None:
    names = Names({name: list(answers) for name, answers in NAMES.items()})
    target = await Addresses(resolve=names.resolve).target("https://HOOKS.example.com./a%20b?c=d")
    assert target == Target("hooks.example.com", 443, PUBLIC, "/a%20b?c=d")
    assert (target.url, target.host_header) == (f"https://{PUBLIC}:443/a%20b?c=d", "hooks.example.com")
    literal = await Addresses(resolve=names.resolve).target(f"https://[{PUBLIC_6}]")
    assert literal.url == f"https://[{PUBLIC_6}]:443/"
    assert names.asked == ["hooks.example.com"]


async def test_name_without_an_address_may_have_one_later() -> None:
    with pytest.raises(AddressUnknown):
        await Addresses(resolve=Names().resolve).target("https://nowhere.example.com/")


async def test_names_of_the_network_are_not_even_looked_up() -> None:
    names = Names()
    for url in ("https://redis/", "https://db.internal/", "https://x.local/"):
        with pytest.raises(AddressRefused):
            await Addresses(resolve=names.resolve).target(url)
    assert names.asked == []


async def test_operator_allows_a_network_with_its_names_and_ports_and_no_more() -> None:
    names = Names({name: list(answers) for name, answers in NAMES.items()})
    addresses = Addresses((ip_network("10.0.0.0/24"),), resolve=names.resolve)
    assert (await addresses.target("https://redis:6379/")).address == "10.0.0.5"
    assert (await addresses.target("https://inside.example.com/")).address == "10.0.0.7"
    assert (await addresses.target("https://10.0.0.9:8443/")).host_header == "10.0.0.9:8443"
    for url in (
        "https://10.0.1.1/",
        "https://mixed.example.com/",
        "https://mapped.example.com/",
        "https://db.internal/",
        "http://10.0.0.9/",
        "https://hooks.example.com:8443/",
    ):
        with pytest.raises(AddressRefused):
            await addresses.target(url)


async def test_operator_allows_other_ports_of_public_hosts() -> None:
    addresses = Addresses(ports=frozenset({8443}), resolve=Names({"hooks.example.com": [[PUBLIC]]}).resolve)
    assert (await addresses.target("https://hooks.example.com:8443/")).host_header == "hooks.example.com:8443"
    with pytest.raises(AddressRefused):
        await addresses.target("https://hooks.example.com/")


@given(st.ip_addresses(v=4))
def test_no_form_of_a_private_address_in_ipv6_is_public(address: object) -> None:
    for text in (f"::ffff:{address}", f"::{address}", f"64:ff9b::{address}"):
        assert not is_public(ip_address(text))


@pytest.fixture
def silent_servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Name servers of a stranger that never answer; the names that were asked for."""
    asked: list[str] = []
    ended = threading.Event()

    def getaddrinfo(host: str, *_: object, **__: object) -> list[object]:
        asked.append(host)
        ended.wait(30)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(addresses_module, "RESOLVE_S", 0.2)
    yield asked
    ended.set()
    for thread in threading.enumerate():
        if thread.name == "address of a channel":
            thread.join(5)


async def test_name_servers_that_never_answer_hold_up_nothing_else(silent_servers: list[str]) -> None:
    asking = [asyncio.create_task(resolve(f"n{n}.example.com", 443)) for n in range(100)]
    await asyncio.sleep(0)
    started = time.monotonic()
    assert await asyncio.to_thread(lambda: "a password is checked") == "a password is checked"
    assert time.monotonic() - started < 0.15
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(outcome, AddressUnknown) for outcome in outcomes)
    assert time.monotonic() - started < 5
    assert len(silent_servers) == 64
    assert sum("cannot be looked up now" in str(outcome) for outcome in outcomes) == 36


async def test_name_of_this_machine_is_found_and_one_of_nowhere_is_not() -> None:
    assert set(await resolve("localhost", 443)) <= {"127.0.0.1", "::1"}
    for nowhere in ("nowhere.invalid", "a" * 64 + ".example.com", "\ud800.example.com"):
        with pytest.raises(AddressUnknown):
            await resolve(nowhere, 443)
