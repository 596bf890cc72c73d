"""Certificates: who may talk to a cluster beyond this machine.

A scheduler runs whatever it is sent. Dask knows no passwords; with certificates, each side shows
the other that it was let in by the same authority.
"""

from __future__ import annotations

import ssl
import stat
import tomllib
from pathlib import Path

from distributed.security import Security

from sfxreduce.errors import RefusedError, UsageError

__all__ = ["HOW_TO_GET_CERTIFICATES", "check_private_key", "read_security"]

FILES = {"ca": "tls-ca.pem", "cert": "tls-cert.pem", "key": "tls-key.pem"}

HOW_TO_GET_CERTIFICATES = (
    "start scheduler and workers with --tls-ca-file, --tls-cert and --tls-key, and give the same "
    "files to --security; 'openssl req -x509' makes them"
)


def read_security(path: Path) -> Security:
    """Take certificates from a folder or a TOML file.

    Parameters
    ----------
    path : Path
        A folder with ``tls-ca.pem``, ``tls-cert.pem`` and ``tls-key.pem``, or a TOML file with the
        paths ``ca``, ``cert`` and ``key``, relative to its own folder.

    Raises
    ------
    UsageError
        If a file is missing or is none of the kind.
    RefusedError
        If others can read the key.
    """
    files = _files(path)
    for name, file in files.items():
        if not file.is_file():
            raise UsageError(
                f"--security {path}: expected the {name} in {file}, found no such file; a folder "
                f"needs {', '.join(FILES.values())}, a TOML file the paths {', '.join(FILES)}"
            )
    check_private_key(files["key"])
    _check(path, files)
    mine = {
        f"tls_{role}_{kind}": str(files[kind])
        for role in ("client", "worker", "scheduler")
        for kind in ("cert", "key")
    }
    return Security(require_encryption=True, tls_ca_file=str(files["ca"]), **mine)


def _files(path: Path) -> dict[str, Path]:
    if path.is_dir():
        return {kind: path / name for kind, name in FILES.items()}
    try:
        named = tomllib.loads(path.read_text())
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"--security {path}: expected a folder with {', '.join(FILES.values())}, or a TOML "
            f"file with the paths {', '.join(FILES)} ({error})"
        ) from error
    if set(named) != set(FILES) or not all(isinstance(value, str) for value in named.values()):
        raise UsageError(
            f"--security {path}: expected the paths {', '.join(FILES)} and nothing else, found "
            f"{sorted(named)}"
        )
    return {kind: path.parent / named[kind] for kind in FILES}


def _check(path: Path, files: dict[str, Path]) -> None:
    """Load them once: Dask would fail later, in many lines, or ask for a passphrase."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(files["ca"])
        context.load_cert_chain(files["cert"], files["key"], password=lambda: b"")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--security {path}: these are no certificates that fit one another, in PEM and "
            f"without a passphrase ({error})"
        ) from error


def check_private_key(key: Path) -> None:
    """Refuse a private key that others can read.

    Raises
    ------
    RefusedError
        If its mode lets anybody but its owner do anything with it.
    """
    mode = stat.S_IMODE(key.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise RefusedError(
            f"{key}: a private key must be its owner's alone, found mode {mode:04o}; run "
            f"'chmod 600 {key}', and make a new one if others may have read it"
        )
