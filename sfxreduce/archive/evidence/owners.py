"""Whose a paper is: people are told apart by the accounts that own their papers, not by names.

A name can be typed by anybody; who owns a file, the system says.
"""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from sfxreduce.errors import UsageError
from sfxreduce.io.files.durable import sync_folder, whole_file
from sfxreduce.io.files.safe_read import open_file

__all__ = [
    "SHARED_JOURNAL",
    "Owned",
    "account_name",
    "is_shared",
    "read_owned",
    "share_all",
    "share_folder",
    "write_owned",
]

SHARED_FOLDER = 0o3770
"""Of a group: new files become the group's, and nobody removes or replaces those of others."""

SHARED_FILE = 0o640
SHARED_JOURNAL = 0o660
PAPER = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """A file, and whose it is.

    Parameters
    ----------
    uid : int
        Account that owns it.
    changed_ns : int
        When its bytes, name or owner last changed, by the system's clock; nobody but the system
        can set that back.
    problem : str
        Why it is not believed to be its owner's word; empty if it is.
    """

    data: bytes
    uid: int
    changed_ns: int
    problem: str = ""


def read_owned(path: Path, *, most_bytes: int) -> Owned:
    """Read a paper without following a link.

    Raises
    ------
    OSError
        If it is no regular file, is longer, or cannot be read.
    """
    with open_file(path, follow=False) as file:
        facts = os.fstat(file.fileno())
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(f"expected at most {most_bytes} bytes, found more")
    others = facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    mode = stat.S_IMODE(facts.st_mode)
    return Owned(
        data=data,
        uid=facts.st_uid,
        changed_ns=facts.st_ctime_ns,
        problem=f"others than its owner may change it (mode {mode:04o})" if others else "",
    )


def account_name(uid: int) -> str:
    """Name of an account; its number where it has none here."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def write_owned(path: Path, data: bytes, *, below: Path, mode: int | None = None) -> None:
    """Write a paper that its owner alone can change, whatever the umask.

    Parameters
    ----------
    below : Path
        Folders between this one and the paper are made. If it is shared, so are they, and the group
        reads the paper.
    mode : int, optional
        Permission bits in place of those.

    Raises
    ------
    OSError
        If not every byte could be written.
    """
    shared = is_shared(below)
    for parent in reversed(path.relative_to(below).parents[:-1]):
        _make_folder(below / parent, shared=shared)
    with whole_file(path) as file:
        file.write(data)
        narrow = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & PAPER
        os.fchmod(file.fileno(), mode or (SHARED_FILE if shared else narrow))
    sync_folder(path.parent)


def is_shared(folder: Path) -> bool:
    """Whether a folder is one of a group."""
    try:
        mode = folder.stat().st_mode
    except OSError:
        return False
    return bool(mode & stat.S_ISGID and mode & stat.S_IWGRP)


def share_folder(folder: Path, gid: int) -> None:
    """Make a folder one of a group: its members add papers, and leave those of others alone.

    Raises
    ------
    UsageError
        If this account is no member of the group.
    OSError
        If the folder belongs to another account.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchown(descriptor, -1, gid)
        os.fchmod(descriptor, SHARED_FOLDER)
    except PermissionError as error:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise
        raise UsageError(f"--group: {account_name(os.geteuid())} is no member of it") from error
    finally:
        os.close(descriptor)


def share_all(folder: Path, gid: int, *, appended: frozenset[str]) -> None:
    """Share a folder and all of ours in it.

    Parameters
    ----------
    appended : set of str
        Names of files in the folder that every member of the group adds to.
    """
    for name, folders, files in os.walk(folder):
        share_folder(Path(name), gid)
        folders[:] = [f for f in folders if _is_ours(Path(name, f), stat.S_ISDIR)]
        for file in files:
            path = Path(name, file)
            if _is_ours(path, stat.S_ISREG):
                adds = path.parent == folder and file in appended
                os.chown(path, -1, gid, follow_symlinks=False)
                path.chmod(SHARED_JOURNAL if adds else SHARED_FILE)


def _is_ours(path: Path, kind: object) -> bool:
    facts = path.lstat()
    return facts.st_uid == os.geteuid() and bool(kind(facts.st_mode))  # type: ignore[operator]


def _make_folder(folder: Path, *, shared: bool) -> None:
    try:
        folder.mkdir()
    except FileExistsError:
        return
    if shared:
        share_folder(folder, folder.stat().st_gid)
