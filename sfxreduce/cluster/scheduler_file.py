"""The file in which ``dask scheduler --scheduler-file`` says where it is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sfxreduce.errors import RefusedError, UsageError
from sfxreduce.io.files.safe_read import open_regular, parse_json

__all__ = ["scheduler_in"]

MOST_BYTES = 1 << 20


def scheduler_in(path: Path) -> str:
    """Address of the scheduler that wrote a file.

    Whoever can write to the file sends tasks, and what they read, wherever he likes.

    Raises
    ------
    RefusedError
        If it belongs to somebody else, or others may write to it.
    UsageError
        If there is no such file, or no address in it.
    """
    try:
        descriptor = open_regular(path)
    except OSError as error:
        raise UsageError(
            f"--scheduler-file {path}: expected the file that 'dask scheduler --scheduler-file' "
            f"writes, found: {error.strerror}"
        ) from error
    # What was looked at is what is read: a name may lead elsewhere by then.
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(file.fileno())
        if facts.st_uid != os.geteuid():
            raise RefusedError(
                f"--scheduler-file {path}: expected a file of your own, found one of user "
                f"{facts.st_uid}; start a scheduler yourself, or name its address with --scheduler"
            )
        if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise RefusedError(
                f"--scheduler-file {path}: expected a file that only you may write to, found mode "
                f"{stat.S_IMODE(facts.st_mode):04o}; look who changed it, and run 'chmod go-w "
                f"{path}'"
            )
        data = file.read(MOST_BYTES)
    return _address(path, data)


def _address(path: Path, data: bytes) -> str:
    try:
        said = parse_json(data)
    except ValueError as error:
        raise UsageError(f"--scheduler-file {path}: expected JSON; {error}") from error
    address = said.get("address") if isinstance(said, dict) else None
    if not isinstance(address, str) or not address:
        raise UsageError(
            f"--scheduler-file {path}: expected the address of a scheduler under 'address', found "
            "none; 'dask scheduler --scheduler-file' writes it"
        )
    return address
