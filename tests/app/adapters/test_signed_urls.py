"""A signed link gives access to one file for a limited time."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from app.adapters.signed_urls import UrlSigner, kept_signing_key
from app.domain.errors import LinkRejectedError


def parts(url: str) -> tuple[str, str, int, str]:
    split = urlsplit(url)
    job_id, _, name = split.path.removeprefix("/v1/downloads/").partition("/")
    query = parse_qs(split.query)
    return job_id, unquote(name), int(query["expires"][0]), query["signature"][0]


def test_links_to_files_and_to_archives_are_not_interchangeable() -> None:
    signer = UrlSigner("key")
    query = parse_qs(urlsplit(signer.sign_archive("job_1", 60)).query)
    expires, signature = int(query["expires"][0]), query["signature"][0]
    signer.verify_archive("job_1", expires, signature)
    for job_id, name in (("job_1", "zip"), ("job_1", ".zip"), ("archives", "job_1/zip")):
        with pytest.raises(LinkRejectedError):
            signer.verify(job_id, name, expires, signature)
        with pytest.raises(LinkRejectedError):
            signer.verify_archive("job_1", *parts(signer.sign(job_id, name, 60))[2:])
    with pytest.raises(LinkRejectedError):
        signer.verify_archive("job_2", expires, signature)


@pytest.mark.parametrize("name", ["config.json", "a/b.py", "ü ?#%&.bin"])
def test_signed_link_verifies(name: str) -> None:
    signer = UrlSigner("key")
    job_id, read, expires, signature = parts(signer.sign("job_1", name, 60))
    assert read == name
    signer.verify(job_id, read, expires, signature)
    with pytest.raises(LinkRejectedError):
        UrlSigner("other").verify(job_id, read, expires, signature)
    with pytest.raises(LinkRejectedError):
        signer.verify(job_id, read, expires + 1, signature)
    with pytest.raises(LinkRejectedError):
        signer.verify("job_2", read, expires, signature)


def test_links_of_both_signing_keys_verify_while_the_key_is_replaced() -> None:
    """Neighbouring steps of docs/rotate-keys.md run at the same time, and follow each other."""
    old, new = "old-signing-key", "new-signing-key"
    steps = [UrlSigner(old), UrlSigner(old, new), UrlSigner(new, old)]
    for earlier, later in pairwise(steps):
        for signing, verifying in ((earlier, later), (later, earlier)):
            verifying.verify(*parts(signing.sign("job_1", "config.json", 60)))
    UrlSigner(new).verify(*parts(steps[-1].sign("job_1", "config.json", 60)))
    with pytest.raises(LinkRejectedError):
        UrlSigner(new).verify(*parts(UrlSigner(old).sign("job_1", "config.json", 60)))


def test_names_with_line_breaks_sign_different_texts() -> None:
    signer = UrlSigner("key")
    assert signer.sign("a\nb", "c", 60) != signer.sign("a", "b\nc", 60)


def test_key_is_made_once_and_private(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: kept_signing_key(tmp_path / "data"), range(16)))
    assert len(keys) == 1
    assert len(keys.pop()) > 40
    (file,) = (tmp_path / "data").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
