"""Paths in plans, bags and packages: relative, normalised, and safe to write below a folder."""

from __future__ import annotations

import re
from pathlib import Path

from sfxreduce.errors import SchemaError

__all__ = ["check_path", "encode_path", "folder_of"]

ESCAPES = {"%": "%25", "\n": "%0A", "\r": "%0D"}
"""What a manifest of a bag writes in place of these characters, and of no others (RFC 8493)."""

PATH_BYTES = 4096
NAME_BYTES = 255


def check_path(path: str, *, where: str) -> str:
    """Refuse a path that could leave its folder, or that a bag's manifest cannot hold.

    Parameters
    ----------
    path : str
        Of a file, below some folder, its parts divided by ``/``.
    where : str
        What names it, for the message.

    Returns
    -------
    str
        The same path.

    Raises
    ------
    SchemaError
        If it is absolute, not normalised, has a part ``..``, a zero byte, a line break, or white
        space at its ends, is too long, or is not UTF-8.

    Examples
    --------
    >>> check_path("frames/c/0/0/0", where="plan")
    'frames/c/0/0/0'
    """
    problem = _problem(path)
    if problem:
        raise SchemaError(
            f"{where}: expected a relative, normalised path, found {path[:200]!a} ({problem}); "
            "it is not used"
        )
    return path


def _problem(path: str) -> str:
    """What is wrong with a path; empty if nothing is."""
    parts = path.split("/")
    if any(character in path for character in "\0\n\r"):
        return "it holds a zero byte or a line break"
    if path != path.strip() or not path:
        return "it is empty, or begins or ends with white space"
    if "" in parts or "." in parts or ".." in parts:
        return "it is absolute, not normalised, or leaves its folder"
    try:
        sizes = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename the file first"
    if max(sizes) > NAME_BYTES or sum(sizes) + len(parts) > PATH_BYTES:
        return "it is too long"
    return ""


def folder_of(run: Path) -> Path:
    """Folder that the names of a run's files count from: the run, or what its file lies in."""
    return run if run.is_dir() else run.parent


def encode_path(path: str) -> str:
    """Path as a manifest of a bag writes it.

    Examples
    --------
    >>> encode_path("data/100%")
    'data/100%25'
    """
    return re.sub("[%\n\r]", lambda match: ESCAPES[match[0]], path)
