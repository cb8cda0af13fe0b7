"""Downloads through links that leave the application, which its test client cannot follow."""

from __future__ import annotations

import httpx
from fastapi.testclient import TestClient


def fetch(
    client: TestClient, url: str, method: str = "GET", headers: dict[str, str] | None = None
) -> httpx.Response:
    """Return the response behind a link, from the application or from the store."""
    answer = client.request(method, url, headers=headers, follow_redirects=False)
    if not answer.is_redirect:
        return answer
    location = answer.headers["location"]
    return httpx.request(method, location, headers=headers, timeout=30, trust_env=False)
