"""Errors of the artifact store as errors of the service, with its place and its reason."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from app.domain.errors import StoreUnavailableError
from app.settings.store_endpoints import allows_http, endpoint_variable, own_endpoint
from app.telemetry.outages import OUTAGES, STORE
from intraslice_core.errors import ConfigurationError

_SETTING = "INTRASLICE_ARTIFACT_STORE"
_METADATA_SERVICE = "http://169.254.169.254/"
"""Server that the client asks for credentials when it has none."""
_MISSING = re.compile(r"NoSuchBucket|no such directory")
_REJECTED = re.compile(r"InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|40[13] [FU]")


def lacks_bucket(error: BaseException) -> bool:
    """Return True if the bucket, not an object in it, does not exist."""
    return _MISSING.search(str(error)) is not None


def unavailable(error: BaseException, place: str, key: str) -> StoreUnavailableError:
    """Report a failed request for an object and return the error of the service."""
    text, reason = str(error), _reason(error)
    rejected = True
    if _METADATA_SERVICE in text:
        message = f"The artifact store {place} needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    elif lacks_bucket(error):
        message = (
            f"The artifact store {place} does not exist ({reason}):"
            f" create it, or correct {_SETTING}"
        )
    elif _REJECTED.search(text):
        message = f"The artifact store {place} rejected the credentials of the service: {reason}"
    else:
        rejected, message = False, f"The artifact store {place} failed on {key}: {reason}"
    OUTAGES.note_failure(STORE, message)
    return StoreUnavailableError(message, rejected=rejected)


def unusable(error: BaseException, url: str) -> ConfigurationError:
    """Return the error of a store that cannot be opened; its URL may hold credentials."""
    place = urlsplit(url)._replace(netloc=urlsplit(url).netloc.rpartition("@")[2]).geturl()
    return ConfigurationError(
        f"{place} cannot be used: {_reason(error)}",
        field=_SETTING,
        hint="write s3://BUCKET/PREFIX or a directory that this user may create",
    )


def check_endpoint(url: str) -> None:
    """Raise if the environment names an endpoint of S3 that the client cannot use.

    The client itself panics at a malformed one.

    Raises:
        ConfigurationError: naming the variable.
    """
    endpoint = own_endpoint(url)
    if not endpoint or urlsplit(url).scheme not in {"s3", "s3a"}:
        return
    parts, name = urlsplit(endpoint), endpoint_variable(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigurationError(
            f"{endpoint!r} is not an HTTP URL", field=name, hint="write http://HOST:PORT"
        )
    if parts.scheme == "http" and not allows_http():
        raise ConfigurationError(
            f"{endpoint!r} is not encrypted",
            field=name,
            hint="set AWS_ALLOW_HTTP=true to accept that, or write https://",
        )


def _reason(error: BaseException) -> str:
    """Return the server's answer, or the client's innermost reason, in one line."""
    text = str(error)
    answer = re.search(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>", text, re.DOTALL)
    if answer:
        return f"{answer[1]}: {answer[2]}"
    details = re.findall(r'(?:message|error): "([^"]+)"', text)
    if details:
        return str(details[-1])
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return text.partition("\n")[0] or type(error).__name__
