"""A signed model: only what the named key signed is loaded. The signatures are made by OpenSSF's own command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from runtime.watched import put_scan

from petseg_runtime import ModelError, Segmenter, UsageError


def make_key(folder: Path, name: str) -> tuple[Path, Path]:
    private = ec.generate_private_key(ec.SECP256R1())
    secret, public = folder / f"{name}.key", folder / f"{name}.pub"
    secret.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return secret, public


def sign(model: Path, secret: Path) -> None:
    command = [Path(sys.executable).with_name("model_signing"), "sign", "key", model, "--private_key", secret]
    subprocess.run([*command, "--signature", f"{model}.sig"], check=True, capture_output=True)


@pytest.fixture
def signed(tmp_path: Path, known_model: Path) -> tuple[Path, Path]:
    """A model, and the key that signed it."""
    secret, public = make_key(tmp_path, "ours")
    shutil.copy(known_model, tmp_path / "model.onnx")
    sign(tmp_path / "model.onnx", secret)
    return tmp_path / "model.onnx", public


def test_a_signed_model_is_loaded(signed: tuple[Path, Path]) -> None:
    model, key = signed
    assert Segmenter(model, key=key).manifest.name


def test_a_changed_model_is_refused(signed: tuple[Path, Path]) -> None:
    model, key = signed
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with pytest.raises(ModelError, match="not the signature"):
        Segmenter(model, key=key)


def test_a_model_that_another_signed_is_refused(signed: tuple[Path, Path], tmp_path: Path) -> None:
    model, _ = signed
    with pytest.raises(ModelError, match="not the signature"):
        Segmenter(model, key=make_key(tmp_path, "theirs")[1])


def test_a_damaged_signature_is_refused(signed: tuple[Path, Path]) -> None:
    model, key = signed
    Path(f"{model}.sig").write_bytes(b"{}")
    with pytest.raises(ModelError, match="not the signature"):
        Segmenter(model, key=key)


def test_a_model_without_a_signature_is_refused(signed: tuple[Path, Path], known_model: Path) -> None:
    with pytest.raises(ModelError, match="no signature"):
        Segmenter(known_model, key=signed[1])
    with pytest.raises(ModelError, match="no signature"):
        Segmenter(key=signed[1])  # the bundled one


@pytest.mark.parametrize("content", [None, b"no key"])
def test_what_is_no_key_is_refused(content: bytes | None, signed: tuple[Path, Path], tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(UsageError, match="public key"):
        Segmenter(signed[0], key=tmp_path / "key")


def test_the_command_asks_for_the_signature(signed: tuple[Path, Path], tmp_path: Path) -> None:
    model, key = signed
    Path(f"{model}.sig").unlink()
    put_scan(tmp_path / "scan.nii.gz")
    command = [Path(sys.executable).with_name("petseg-run"), tmp_path, "-q", "-m", model, "--model-key", key]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == ModelError.exit_code
    assert len(done.stderr.splitlines()) == 1
