"""`intraslice verify` on intact, changed, missing and additional files."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from typer.testing import CliRunner, Result

from app.adapters.artifact_signatures import ArtifactSigner
from app.cli.main import app
from intraslice_core.checkpoints.manifest import MANIFEST, SIGNATURE, write_manifest
from intraslice_core.errors import ConfigurationError


def make_key(place: Path, name: str) -> tuple[Path, Path]:
    """Write the PEM files of a new key pair."""
    key = Ed25519PrivateKey.generate()
    private, public = place / f"{name}.pem", place / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Two files, one of them in a directory, with a manifest and its signature."""
    directory = tmp_path / "checkpoint"
    (directory / "more").mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(bytes(range(200)))
    (directory / "more" / "notes.txt").write_text("as they were")
    write_manifest(directory, {"model": "package:tiny"})
    private, _ = make_key(tmp_path, "ours")
    signature = ArtifactSigner(private).sign((directory / MANIFEST).read_bytes())
    (directory / SIGNATURE).write_text(signature)
    return directory


def verify(checkpoint: Path, key: str | None = None) -> Result:
    options = [] if key is None else ["--public-key", str(checkpoint.parent / f"{key}.pub")]
    return CliRunner().invoke(app, ["verify", str(checkpoint), *options])


def test_untouched_files_pass_with_and_without_the_key(checkpoint: Path) -> None:
    assert verify(checkpoint).exit_code == 0
    done = verify(checkpoint, "ours")
    assert done.exit_code == 0, done.output
    assert "2 files match manifest.json; the signature is valid" in done.output
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    assert manifest["model"] == "package:tiny"
    assert manifest["schema_version"] == 2
    assert manifest["versions"]["python"] == platform.python_version()


def flip_a_bit(directory: Path) -> None:
    content = bytearray((directory / "model.safetensors").read_bytes())
    content[7] ^= 1
    (directory / "model.safetensors").write_bytes(content)


def lose_a_file(directory: Path) -> None:
    (directory / "more" / "notes.txt").unlink()


def add_a_file(directory: Path) -> None:
    (directory / "modeling_evil.py").write_text("")


def lose_the_manifest(directory: Path) -> None:
    (directory / MANIFEST).unlink()


def break_the_manifest(directory: Path) -> None:
    (directory / MANIFEST).write_text('{"files": [{"name": 1}]}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, "model.safetensors is changed"),
        (lose_a_file, "more/notes.txt is missing"),
        (add_a_file, "modeling_evil.py is not in the manifest"),
        (lose_the_manifest, "has no manifest.json"),
        (break_the_manifest, "cannot be read"),
    ],
)
def test_differences_are_named(
    checkpoint: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(checkpoint)
    done = verify(checkpoint)
    assert done.exit_code == 1
    assert message in done.stderr


def test_a_manifest_made_anew_for_other_files_is_not_signed(checkpoint: Path) -> None:
    flip_a_bit(checkpoint)
    write_manifest(checkpoint, {"model": "package:tiny"})
    assert verify(checkpoint).exit_code == 0
    done = verify(checkpoint, "ours")
    assert done.exit_code == 1
    assert "not by this key" in done.stderr


def test_a_signature_by_another_key_is_rejected(checkpoint: Path) -> None:
    make_key(checkpoint.parent, "other")
    assert "not by this key" in verify(checkpoint, "other").stderr


@pytest.mark.parametrize("content", [b"", b"no base64 at all!", b"AAAA", b"\xff\xfe\x00"])
def test_malformed_signatures_are_rejected(checkpoint: Path, content: bytes) -> None:
    (checkpoint / SIGNATURE).write_bytes(content)
    assert "not by this key" in verify(checkpoint, "ours").stderr


def test_a_missing_signature_is_an_error(checkpoint: Path) -> None:
    (checkpoint / SIGNATURE).unlink()
    assert "has no manifest.json.sig" in verify(checkpoint, "ours").stderr


def test_a_file_that_holds_no_key_is_bad_input(checkpoint: Path) -> None:
    shutil.copyfile(checkpoint / SIGNATURE, checkpoint.parent / "wrong.pub")
    done = verify(checkpoint, "wrong")
    assert done.exit_code == 2
    assert "no ed25519 public key" in done.stderr


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN PRIVATE KEY-----\nQUJD\n"])
def test_a_signer_needs_a_key_and_does_not_reveal_the_file(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "key.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError) as rejected:
        ArtifactSigner(file)
    assert rejected.value.field == "INTRASLICE_ARTIFACT_SIGNING_KEY_FILE"
    assert "QUJD" not in str(rejected.value)
