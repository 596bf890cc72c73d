"""A journal: what was done, one line for each step, every line bound to all lines before it.

Each line is canonical JSON and holds the sha256 of the line before it, so that a line which was
changed, removed or put in later breaks the chain. What was cut off by a crash is the last line
without its end, and only that; it was never acknowledged and does not count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sfxreduce.errors import VerificationError

__all__ = ["Entry", "chain_line", "complete_lines", "read_chain"]

START = hashlib.sha256(b"sfxreduce journal 1\n").hexdigest()
"""What the first line names as the line before it."""

LINE_BYTES = 1 << 20
"""Longest line that is read."""


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
