"""Files that are acted on: believed if nobody but the caller or root could have changed them."""

from __future__ import annotations

import os
import stat
from collections import deque
from pathlib import Path

from sfxreduce.archive.rules.policy import POLICY_BYTES, Policy, policy_of
from sfxreduce.errors import RefusedError, RunNotFound
from sfxreduce.io.files.safe_read import open_regular

__all__ = ["open_trusted", "read_own_policy"]

MOST_LINKS = 40
"""Links on one way, as many as Linux itself follows."""


def open_trusted(path: Path) -> int:
    """Open a file that nobody but the caller or root can change or replace.

    It and every folder up to ``/`` have to belong to the caller or to root, and nobody else may
    write to them; to a folder with the sticky bit others may, since they cannot replace there what
    is not theirs. Links on the way are followed if they are such entries themselves.

    Returns
    -------
    int
        Descriptor of what was checked; the caller closes it.

    Raises
    ------
    RefusedError
        If somebody else could change it.
    OSError
        If it is no regular file, or cannot be opened.
    """
    descriptor = open_regular(_checked_way(path), follow=False)
    try:
        _check(path, os.fstat(descriptor))
    except RefusedError:
        os.close(descriptor)
        raise
    return descriptor


def read_own_policy(path: Path) -> Policy:
    """Read a policy that archives are named by, or a ticket is signed by; see `open_trusted`.

    Raises
    ------
    RefusedError
        If somebody else could change it.
    RunNotFound
        If nothing lies at the path.
    ArchiveRefused, SchemaError
        If it is no policy.
    """
    try:
        with os.fdopen(open_trusted(path), "rb") as file:
            data = file.read(POLICY_BYTES + 1)
    except OSError as error:
        raise RunNotFound(f"{path}: cannot be read ({error.strerror}); check --policy") from error
    return policy_of(data, where=str(path))


def _checked_way(path: Path) -> Path:
    """Path without links, every folder of which was checked from ``/`` down."""
    way, links = Path("/"), 0
    _check(way, way.lstat())
    names = deque(path.absolute().parts[1:])
    while names:
        name = names.popleft()
        if name == "..":
            way = way.parent
            continue
        entry = way / name
        facts = entry.lstat()
        if stat.S_ISLNK(facts.st_mode) and links < MOST_LINKS:
            _check_owner(entry, facts)
            target = entry.readlink()
            way, links = (Path("/") if target.is_absolute() else way), links + 1
            names.extendleft(reversed([part for part in target.parts if part != "/"]))
            continue
        if names:
            _check(entry, facts)
        way = entry
    return way


def _check(entry: Path, facts: os.stat_result) -> None:
    _check_owner(entry, facts)
    sticky = stat.S_ISDIR(facts.st_mode) and facts.st_mode & stat.S_ISVTX
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
        raise RefusedError(
            f"{entry}: others may change it (mode {stat.S_IMODE(facts.st_mode):04o}), and what it "
            "leads to is acted on in your name; run 'chmod go-w' on it, or use another folder"
        )


def _check_owner(entry: Path, facts: os.stat_result) -> None:
    if facts.st_uid not in (0, os.geteuid()):
        raise RefusedError(
            f"{entry}: belongs to the account number {facts.st_uid}, and what it leads to is acted "
            "on in your name; keep a copy of your own in a folder of your own"
        )
