"""Files, folders and archives for the tests of the archive."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import strategies as st

from sfxreduce.io.files.durable import FileRecord

Call = Callable[..., tuple[int, Any, str]]
"""Runs a command: exit status, what it printed, and the rest; see the fixture `call`."""

SAFE_PARTS = st.text(
    st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="/"),
    min_size=1,
    max_size=12,
).filter(lambda part: part == part.strip() and part not in (".", ".."))
SAFE_PATHS = st.lists(SAFE_PARTS, min_size=1, max_size=4).map("/".join)


def record(path: str, data: bytes) -> FileRecord:
    return FileRecord(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def make_files(folder: Path, contents: Mapping[str, bytes]) -> list[FileRecord]:
    """Write files below a folder, and take them down."""
    for path, data in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return [record(path, data) for path, data in contents.items()]


def records_of(folder: Path) -> tuple[FileRecord, ...]:
    """All files below a folder, taken down."""
    return tuple(
        record(str(path.relative_to(folder)), path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


def snapshot(folder: Path) -> dict[str, tuple[bytes, int, int, int]]:
    """What a source must still be afterwards: bytes, time of change, inode and links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            facts = path.stat()
            found[str(path.relative_to(folder))] = (
                path.read_bytes(),
                facts.st_mtime_ns,
                facts.st_ino,
                facts.st_nlink,
            )
    return found


def write_keys(private: Path, public: Path) -> tuple[Path, Path]:
    """Write a private key of its owner's alone, and its public part."""
    key = Ed25519PrivateKey.generate()
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o600)
    spki = PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, spki))
    return private, public
