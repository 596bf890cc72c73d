"""A journal on the disk: a line counts once it is there, and one program at a time adds to it.

Every line names the sha256 of the line before it, so that none can be changed, removed or put in
later. Beside the journal lies its head, the sha256 of the last line that was acknowledged: a
journal that lost its last lines no longer holds that line.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfxreduce.errors import OutputError, SourceError, VerificationError
from sfxreduce.io.files.durable import output_errors, sync_folder, whole_file
from sfxreduce.io.files.safe_read import read_small

__all__ = [
    "LINE_BYTES",
    "Entry",
    "Journal",
    "alone",
    "chain_line",
    "complete_lines",
    "open_journal",
    "read_chain",
    "read_journal",
]

START = hashlib.sha256(b"sfxreduce journal 1\n").hexdigest()
"""What the first line names as the line before it."""

JOURNAL_BYTES = 1 << 30
"""Longest journal that is read: a million events take some 15 MB (decision 12)."""

LINE_BYTES = 1 << 20
"""Longest line that is read, four times the `NOTE_BYTES` of `sfxreduce.io.writers.resume`."""

HEAD_BYTES = 64
"""Length of a sha256 in hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a journal.

    Parameters
    ----------
    number : int
        Of the line, from 0.
    body : mapping
        What was done; plain JSON.
    sha256 : str
        Of the line, in hexadecimal; the next line names it.
    """

    number: int
    body: Mapping[str, Any]
    sha256: str


class Journal:
    """A journal that this process alone adds to; made by `open_journal`.

    Parameters
    ----------
    descriptor : int
        Of the file, open for appending and locked.
    entries : list of Entry
        What it holds.
    mode : int, optional
        Permission bits of its head; the umask decides if not given.
    """

    def __init__(
        self, path: Path, descriptor: int, entries: list[Entry], mode: int | None = None
    ) -> None:
        self.path = path
        self._mode = mode
        self._descriptor = descriptor
        self._entries = entries
        self._failed = False

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Its lines so far."""
        return tuple(self._entries)

    def append(self, body: Mapping[str, Any]) -> Entry:
        """Add a line and bring it to the disk; once this returns, the line counts.

        Parameters
        ----------
        body : mapping
            Plain JSON.

        Raises
        ------
        OutputError
            If the line could not be brought to the disk. Nothing more is written after that: what
            the system kept of it is not known before the journal is opened again.
        """
        if self._failed:
            raise OutputError(f"{self.path}: an earlier line was not written; start again")
        line, entry = chain_line(body, after=self._entries[-1] if self._entries else None)
        self._failed = True
        with output_errors(self.path):
            _write_all(self._descriptor, line)
            os.fsync(self._descriptor)
            _write_head(_head(self.path), entry.sha256.encode(), self._mode)
        self._failed = False
        self._entries.append(entry)
        return entry


@contextmanager
def open_journal(path: Path, *, mode: int | None = None) -> Iterator[Journal]:
    """Open a journal to add to it; make it if it is not there. Its folder has to be.

    A last line without its end, which a crash left behind, is cut off.

    Parameters
    ----------
    mode : int, optional
        Permission bits, if it is made; the umask decides if not given.

    Raises
    ------
    OutputError
        If another process is adding to it, or it cannot be written.
    VerificationError
        If it was changed.
    """
    with alone(path, mode=mode) as descriptor:
        with output_errors(path):
            sync_folder(path.parent)
        entries = read_journal(path)
        with output_errors(path):
            whole = len(complete_lines(path.read_bytes()))
            if whole != path.stat().st_size:
                os.ftruncate(descriptor, whole)
                os.fsync(descriptor)
        yield Journal(path, descriptor, entries, mode)


@contextmanager
def alone(path: Path, *, mode: int | None = None) -> Iterator[int]:
    """Open a file that one program at a time may hold; made if it is not there.

    Parameters
    ----------
    mode : int, optional
        Permission bits, if it is made; the umask decides if not given.

    Raises
    ------
    OutputError
        If another process holds it, or it cannot be written.
    """
    with output_errors(path):
        descriptor = _open_or_make(path, mode)
    try:
        with output_errors(path):
            _lock(path, descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def _open_or_make(path: Path, mode: int | None) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        # Without O_CREAT: where fs.protected_regular is set, that is refused for a file of another
        # account in a sticky folder.
        return os.open(path, flags)
    if mode is not None:
        os.fchmod(descriptor, mode)
    return descriptor


def _lock(path: Path, descriptor: int) -> None:
    # The system lets go of it when the process ends, in whatever way it ends.
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"{path}: another process is at work on it; wait for it to end, or stop it"
        ) from error


def _write_all(descriptor: int, line: bytes) -> None:
    """Write every byte, however many calls the system needs for it."""
    left = memoryview(line)
    while left:
        left = left[os.write(descriptor, left) :]


def read_journal(path: Path) -> list[Entry]:
    """Lines of a journal, each checked against the one before it.

    Raises
    ------
    SourceError
        If it cannot be read.
    VerificationError
        If it was changed.
    """
    try:
        # The head first: a line that is added meanwhile must not look like one that was lost.
        head = _read_head(path)
        data = read_small(path, most_bytes=JOURNAL_BYTES)
        entries = read_chain(complete_lines(data), where=str(path))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    if head and head not in {entry.sha256 for entry in entries}:
        raise VerificationError(
            f"{path}: lines at its end were removed; the journal is not to be trusted"
        )
    return entries


def _head(path: Path) -> Path:
    return path.with_name(f"{path.name}.head")


def _write_head(head: Path, sha256: bytes, mode: int | None) -> None:
    try:
        with whole_file(head) as file:
            file.write(sha256)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
    except PermissionError:
        # In a sticky folder only its owner may replace a file. These bytes lie in one sector.
        descriptor = os.open(head, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            os.pwrite(descriptor, sha256, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read_head(path: Path) -> str:
    try:
        return read_small(_head(path), most_bytes=HEAD_BYTES).decode("ascii")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise VerificationError(
            f"{_head(path)}: is damaged; the journal is not to be trusted"
        ) from error


def chain_line(body: Mapping[str, Any], *, after: Entry | None) -> tuple[bytes, Entry]:
    r"""Make the line that follows another one.

    Parameters
    ----------
    body : mapping
        Plain JSON; no NaN.
    after : Entry or None
        The last line; None for the first.

    Returns
    -------
    tuple of bytes and Entry
        The line with its end, and what it will be read as.

    Examples
    --------
    >>> line, first = chain_line({"event": "begin"}, after=None)
    >>> line[:26], line[-1:]
    (b'{"body":{"event":"begin"},', b'\n')
    >>> read_chain(line, where="journal") == [first]
    True
    """
    number = 0 if after is None else after.number + 1
    facts = {"body": body, "number": number, "previous": START if after is None else after.sha256}
    line = _canonical(facts)
    entry = Entry(number=number, body=json.loads(line)["body"], sha256=_sha256(line))
    return line + b"\n", entry


def complete_lines(data: bytes) -> bytes:
    r"""Cut off a last line that has no end.

    Examples
    --------
    >>> complete_lines(b'{"a":1}\n{"b":'), complete_lines(b"")
    (b'{"a":1}\n', b'')
    """
    return data[: data.rfind(b"\n") + 1]


def read_chain(data: bytes, *, where: str) -> list[Entry]:
    """Read a journal and check that every line follows the one before it.

    Parameters
    ----------
    data : bytes
        Whole lines; see `complete_lines`.
    where : str
        Path of the journal, for the message.

    Raises
    ------
    VerificationError
        If a line was changed, removed, or put in later.
    """
    entries: list[Entry] = []
    for number, line in enumerate(data.splitlines()):
        entries.append(_read_line(line, number, entries, where=where))
    return entries


def _read_line(line: bytes, number: int, before: list[Entry], *, where: str) -> Entry:
    broken = f"{where}: line {number + 1} does not follow the line before it"
    advice = "the journal was changed and is not to be trusted"
    if len(line) > LINE_BYTES:
        raise VerificationError(f"{where}: line {number + 1} is too long; {advice}")
    try:
        facts = json.loads(line)
        body, previous, counted = facts["body"], facts["previous"], facts["number"]
        as_written = _canonical(facts) == line
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise VerificationError(f"{where}: line {number + 1} cannot be read; {advice}") from error
    expected = before[-1].sha256 if before else START
    if previous != expected or counted != number or not isinstance(body, dict):
        raise VerificationError(f"{broken}; {advice}")
    if not as_written:
        raise VerificationError(f"{where}: line {number + 1} is not as it was written; {advice}")
    return Entry(number=number, body=body, sha256=_sha256(line))


def _canonical(facts: Mapping[str, Any]) -> bytes:
    text = json.dumps(
        facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return text.encode()


def _sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
