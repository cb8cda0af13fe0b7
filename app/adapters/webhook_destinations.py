"""Check of webhook destinations: only public addresses, in whatever notation they are given.

The check is made on addresses and not on names, on every one a name has, at the moment of
sending, and the connection then goes to an address that was checked.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import httpx

from app.domain.errors import DestinationRejectedError

Resolver = Callable[[str, int], Sequence[str]]
"""Resolver from a host and a port to the host's addresses; OSError if it has none."""

_MAX_URL = 2048
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_-]+)*\.?")
_AUTHORITY = re.compile(r"[^:/?#]*://([^/?#]*).*")
_HTTP, _HTTPS, _FIRST_USER_PORT, _LAST_PORT = 80, 443, 1024, 65_535

# Mapped IPv4, and what a NAT64 gateway makes of the last 32 bits: judged as that IPv4 address.
_EMBEDDING = tuple(map(ip_network, ("::ffff:0:0/96", "64:ff9b::/96")))
# Not global in the registries, or leading elsewhere; older Pythons take some for global.
_BLOCKED = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",
            "100.64.0.0/10",  # carrier-grade NAT; a cloud's metadata server, too
            "168.63.129.16/32",  # Azure's host, in public space
            "192.0.0.0/24",
            "192.88.99.0/24",  # 6to4 relays
            "198.18.0.0/15",
            "240.0.0.0/4",
            "::/96",  # IPv4-compatible
            "64:ff9b:1::/48",  # NAT64 of the local network
            "100::/64",
            "2001::/23",  # Teredo, ORCHID and other special purposes
            "2002::/16",  # 6to4
            "fec0::/10",  # site-local
        ),
    )
)


@dataclass(frozen=True, kw_only=True)
class Destination:
    """A parsed URL; it is parsed once, so that requests go where the check allowed."""

    secure: bool
    host: str
    port: int
    target: str


class DestinationGuard:
    """Check of URLs, and of the addresses that their hosts resolve to."""

    def __init__(self, *, allow_loopback: bool, resolve: Resolver | None = None) -> None:
        self._allow_loopback = allow_loopback
        self._resolve = resolve or _system_resolver

    def parse(self, url: str) -> Destination:
        """Parse a URL.

        Raises:
            DestinationRejectedError: if no webhook may have it, whatever its host resolves to.
        """
        parsed = _parsed(url)
        schemes = ("https", "http") if self._allow_loopback else ("https",)
        if parsed.scheme not in schemes:
            raise DestinationRejectedError("url_scheme", "The URL must begin with https")
        if "#" in url or "@" in _AUTHORITY.sub(r"\1", url):
            raise DestinationRejectedError("url_parts", "No user, password or fragment is allowed")
        secure = parsed.scheme == "https"
        port = parsed.port if parsed.port is not None else _HTTPS if secure else _HTTP
        if port != _HTTPS and not _FIRST_USER_PORT <= port <= _LAST_PORT:
            raise DestinationRejectedError("url_port", "The port must be 443 or above 1023")
        return Destination(
            secure=secure,
            host=parsed.raw_host.decode("ascii"),
            port=port,
            target=parsed.raw_path.decode("ascii"),
        )

    def addresses(self, destination: Destination) -> Sequence[str]:
        """Resolve the host once and check every address.

        Raises:
            DestinationRejectedError: if it has none, or a single one that is not allowed.
        """
        try:
            resolved = self._resolve(destination.host, destination.port)
        except (OSError, UnicodeError) as error:
            raise DestinationRejectedError(
                "host_unknown", "The host has no address; check its spelling"
            ) from error
        permitted = (self._permits(address, secure=destination.secure) for address in resolved)
        if not resolved or not all(permitted):
            # The address is not in the message: it would reveal names of the internal network.
            raise DestinationRejectedError(
                "address_refused", "The host is not on the public internet"
            )
        return resolved

    def _permits(self, address: str, *, secure: bool) -> bool:
        meant = _meant(address)
        if meant.is_loopback:
            return self._allow_loopback
        return secure and _is_public(meant)


def _parsed(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
        host = parsed.raw_host.decode("ascii")
    except (httpx.InvalidURL, UnicodeError) as error:
        raise DestinationRejectedError("url_form", "This is not a URL") from error
    strange = "\\" in url or any(ord(letter) <= 32 or ord(letter) == 127 for letter in url)
    if strange or len(url) > _MAX_URL or not (_HOST.fullmatch(host) or _is_address(host)):
        raise DestinationRejectedError("url_form", "This is not a URL with a host")
    return parsed


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _meant(address: str) -> IPv4Address | IPv6Address:
    """Return the address that a packet goes to."""
    # The zone after "%" chooses an interface; only link-local addresses need one.
    parsed = ip_address(address.partition("%")[0])
    if any(parsed in network for network in _EMBEDDING if network.version == parsed.version):
        return IPv4Address(int(parsed) & 0xFFFF_FFFF)
    return parsed


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    blocked = (network for network in _BLOCKED if network.version == address.version)
    special = address.is_multicast or address.is_reserved or address.is_unspecified
    return address.is_global and not special and not any(address in network for network in blocked)


def _system_resolver(host: str, port: int) -> Sequence[str]:
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))
