"""Signatures of manifests by the deployment's ed25519 key, which prove their origin."""

from __future__ import annotations

import base64
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from intraslice_core.errors import ConfigurationError, ManifestError

_KEY_HINT = "openssl genpkey -algorithm ed25519 -out key.pem makes one"


class ArtifactSigner:
    """Holds the private key.

    Args:
        file: PEM (PKCS 8), unencrypted.

    Raises:
        ConfigurationError: if the file is no such key; what it holds is not told.
    """

    def __init__(self, file: Path) -> None:
        field = "INTRASLICE_ARTIFACT_SIGNING_KEY_FILE"
        try:
            key = load_pem_private_key(file.read_bytes(), password=None)
        except OSError as error:
            raise ConfigurationError(
                f"{file} cannot be read: {error.strerror}", field=field, hint=_KEY_HINT
            ) from None
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigurationError(
                f"{file} holds no unencrypted ed25519 key", field=field, hint=_KEY_HINT
            )
        self._key = key

    def sign(self, content: bytes) -> str:
        """Return the signature in base64."""
        return base64.b64encode(self._key.sign(content)).decode()


def require_signature(content: bytes, signature: str, public_key: Path) -> None:
    """Check a signature.

    Args:
        content: the exact bytes that were signed.
        signature: in base64.
        public_key: PEM.

    Raises:
        ConfigurationError: if the file is no ed25519 public key.
        ManifestError: if the signature is not by its private half.
    """
    try:
        key = load_pem_public_key(public_key.read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"{public_key} cannot be read: {error.strerror}", field="--public-key"
        ) from None
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigurationError(
            f"{public_key} holds no ed25519 public key",
            field="--public-key",
            hint="openssl pkey -in key.pem -pubout gives it",
        )
    try:
        key.verify(base64.b64decode(signature, validate=True), content)
    except (InvalidSignature, ValueError):  # what is no base64 is a ValueError
        raise ManifestError("the manifest's signature is not by this key") from None
