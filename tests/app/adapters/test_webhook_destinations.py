"""Webhooks are sent to public addresses only, in whatever notation the URL is written."""

from __future__ import annotations

import pytest

from app.adapters.webhook_destinations import DestinationGuard
from app.domain.errors import DestinationRejectedError

PUBLIC = "93.184.216.34"


def guard(*addresses: str, allow_loopback: bool = False) -> DestinationGuard:
    """Return a guard that resolves every host to these addresses."""
    return DestinationGuard(
        allow_loopback=allow_loopback, resolve=lambda _host, _port: list(addresses)
    )


def rejection_code(url: str, *addresses: str, allow_loopback: bool = False) -> str | None:
    """Return the code of the error; None if the URL is accepted."""
    destinations = guard(*(addresses or (PUBLIC,)), allow_loopback=allow_loopback)
    try:
        destinations.addresses(destinations.parse(url))
    except DestinationRejectedError as error:
        (problem,) = error.fields
        assert problem.pointer == "/url"
        return problem.code
    return None


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com/hook?token=a%20b",
        "https://example.com:443/",
        "https://example.com:8443/",
        "https://bücher.example/",
        "https://my_host.example.com./x",
        f"https://{PUBLIC}/",
        "https://[2606:2800:220:1:248:1893:25c8:1946]/",
    ],
)
def test_ordinary_urls_are_accepted(url: str) -> None:
    assert rejection_code(url) is None


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://example.com/", "url_scheme"),
        ("ftp://example.com/", "url_scheme"),
        ("gopher://example.com/", "url_scheme"),
        ("file:///etc/passwd", "url_form"),
        ("//example.com/", "url_scheme"),
        ("example.com", "url_form"),
        ("", "url_form"),
        ("https://", "url_form"),
        ("https:/example.com", "url_form"),
        ("https://user@example.com/", "url_parts"),
        ("https://user:password@example.com/", "url_parts"),
        ("https://example.com@10.0.0.1/", "url_parts"),
        ("https://@example.com/", "url_parts"),
        ("https://example.com/#fragment", "url_parts"),
        ("https://example.com/#", "url_parts"),
        ("https://example.com:22/", "url_port"),
        ("https://example.com:25/", "url_port"),
        ("https://example.com:80/", "url_port"),
        ("https://example.com:0/", "url_port"),
        ("https://example.com:99999/", "url_port"),
        ("https://exa mple.com/", "url_form"),
        ("https://example.com\\@10.0.0.1/", "url_form"),
        ("https://example.com/\r\nHost: x", "url_form"),
        ("https://example.com/\0", "url_form"),
        ("https://exa%6dple.com/", "url_form"),
        ("https://a..b/", "url_form"),
        ("https://-a.example/", "url_form"),
        ("https://" + "a" * 300 + "/", "url_form"),
        ("https://example.com/" + "a" * 2048, "url_form"),
        ("https://[::1/", "url_form"),
    ],
)
def test_malformed_and_unsafe_urls_are_rejected(url: str, code: str) -> None:
    assert rejection_code(url) == code


NON_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", NON_PUBLIC)
def test_addresses_that_are_not_public_are_rejected(address: str) -> None:
    assert rejection_code("https://example.com/", address) == "address_refused"
    # A public address next to it makes no difference.
    assert rejection_code("https://example.com/", PUBLIC, address) == "address_refused"


@pytest.mark.parametrize(
    "address", [address for address in NON_PUBLIC if address.startswith(("10.", "169.", "fd"))]
)
def test_allowing_loopback_allows_nothing_else(address: str) -> None:
    for scheme in ("http", "https"):
        url = f"{scheme}://example.com:8080/"
        assert rejection_code(url, address, allow_loopback=True) == "address_refused"


def test_loopback_is_allowed_by_setting_and_is_the_only_target_of_plain_http() -> None:
    assert rejection_code("http://dev.example:8080/", "127.0.0.1", allow_loopback=True) is None
    assert rejection_code("http://dev.example:8080/", "::1", allow_loopback=True) is None
    assert (
        rejection_code("https://dev.example:8080/", "::ffff:127.0.0.1", allow_loopback=True) is None
    )
    assert (
        rejection_code("http://dev.example:8080/", PUBLIC, allow_loopback=True) == "address_refused"
    )
    assert rejection_code("https://dev.example:8080/", PUBLIC, allow_loopback=True) is None


def test_public_addresses_in_other_notations_are_accepted() -> None:
    assert rejection_code("https://example.com/", f"::ffff:{PUBLIC}") is None
    # A public IPv4 address as translated by a network that has only IPv6.
    assert rejection_code("https://example.com/", "64:ff9b::5db8:d822") is None


@pytest.mark.parametrize(
    "host", ["localhost", "localhost.", "127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "[::1]"]
)
def test_every_notation_of_this_machine_is_rejected(host: str) -> None:
    """Resolve with the system's own resolver."""
    destinations = DestinationGuard(allow_loopback=False)
    with pytest.raises(DestinationRejectedError):
        destinations.addresses(destinations.parse(f"https://{host}/"))


def test_a_host_without_an_address_is_rejected() -> None:
    def resolve(_host: str, _port: int) -> list[str]:
        raise OSError("no such host")

    unknown = DestinationGuard(allow_loopback=False, resolve=resolve)
    with pytest.raises(DestinationRejectedError) as caught:
        unknown.addresses(unknown.parse("https://nowhere.example/"))
    assert caught.value.fields[0].code == "host_unknown"
    with pytest.raises(DestinationRejectedError):
        guard().addresses(guard().parse("https://example.com/"))
