"""Whether a model file is what somebody who is trusted signed: a detached signature by OpenSSF model signing."""

from __future__ import annotations

from pathlib import Path

from petseg_runtime.errors import ModelError, UsageError

# The signature of model.onnx is model.onnx.sig.
SIGNATURE_SUFFIX = ".sig"


def check_signature(model: Path, key: Path) -> None:
    """Refuse a model without a signature by the key.

    Parameters
    ----------
    model : the file; its signature lies beside it.
    key : PEM file with the public key (elliptic curve) of whoever signs models.

    Raises
    ------
    ModelError : if there is no signature, it is by another key, or of another file.
    UsageError : if the extra is not installed, or the key cannot be read.
    """
    try:
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
        from model_signing.verifying import Config
    except ImportError as error:
        raise UsageError("Signatures need an extra: pip install 'petseg[sign]'.") from error
    try:
        load_pem_public_key(key.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{key.name} is not a public key in PEM form that can be read.") from error
    signature = model.with_name(f"{model.name}{SIGNATURE_SUFFIX}")
    if not signature.is_file():
        raise ModelError(f"{model.name} has no signature: {signature.name} is not beside it. Do not use it unsigned.")
    try:
        Config().use_elliptic_key_verifier(public_key=key).verify(model, signature)  # type: ignore[no-untyped-call]
    except Exception as error:  # the library raises what its parsers raise
        raise ModelError(
            f"{signature.name} is not the signature of {model.name} by this key. Do not use it."
        ) from error
