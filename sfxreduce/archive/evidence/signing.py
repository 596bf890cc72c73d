"""Signatures of release tickets: Ed25519, in a file beside the ticket, so that its source is known.

A signature is 64 bytes, as ``openssl pkeyutl -verify -rawin`` takes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfxreduce.cluster.security import check_private_key
from sfxreduce.errors import RunNotFound, UsageError
from sfxreduce.io.files.safe_read import read_small

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["SIGNATURE_SUFFIX", "is_signed", "read_signing_key"]

SIGNATURE_SUFFIX = ".sig"
KEY_BYTES = 1 << 14

MAKE_ONE = (
    "'openssl genpkey -algorithm ed25519 -out key.pem' makes one, 'openssl pkey -in key.pem "
    "-pubout' its public part"
)


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key.

    Parameters
    ----------
    path : Path
        PEM, not encrypted, and its owner's alone.

    Raises
    ------
    RefusedError
        If others can read it.
    RunNotFound
        If it cannot be read.
    UsageError
        If it is no such key, or signing is not installed.
    """
    key: Ed25519PrivateKey = _load_key(path, private=True)
    return key


def is_signed(data: bytes, signature: bytes, *, key: Path) -> bool:
    """Whether a signature is that of some bytes, made with the private part of a public key.

    Parameters
    ----------
    key : Path
        PEM.

    Raises
    ------
    RunNotFound
        If the key cannot be read.
    UsageError
        If it is no such key, or signing is not installed.
    """
    public = _load_key(key, private=False)
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def _load_key(path: Path, *, private: bool) -> Any:
    """Ed25519 key of a PEM file."""
    data = _read(path)
    if private:
        check_private_key(path)
    try:
        import cryptography  # noqa: F401 - whether it is there
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise UsageError(
            "tickets are signed with the package cryptography, which is not installed; run "
            "\"pip install 'sfxreduce[sign]'\""
        ) from error
    try:
        if private:
            key: object = serialization.load_pem_private_key(data, password=None)
        else:
            key = serialization.load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        kind = "private" if private else "public"
        raise UsageError(f"{path}: expected a {kind} Ed25519 key in PEM; {MAKE_ONE}") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey if private else ed25519.Ed25519PublicKey):
        raise UsageError(f"{path}: expected an Ed25519 key, found another kind; {MAKE_ONE}")
    return key


def _read(path: Path) -> bytes:
    try:
        return read_small(path, most_bytes=KEY_BYTES)
    except OSError as error:
        raise RunNotFound(f"{path}: the key cannot be read ({error.strerror or error})") from error
