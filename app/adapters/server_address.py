"""Addresses of servers as callers of the API may see them."""

from __future__ import annotations

from urllib.parse import urlsplit


def public_address(url: str) -> str:
    """Return the address of a server without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def without_password(text: str, url: str) -> str:
    """Return a text, such as an error, without the password in a server's address."""
    password = urlsplit(url).password
    return text.replace(password, "…") if password else text
