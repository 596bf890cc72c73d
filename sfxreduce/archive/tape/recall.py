"""The recall test: files brought back from the archive at random, and hashed by us.

A receipt is what an archive says. That it can give a file back, and the right one, only a recall
shows.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from sfxreduce.archive.rules.refusals import Refusal, refuse
from sfxreduce.archive.tape.backends import Backend
from sfxreduce.decisions.threshold import share_upper
from sfxreduce.errors import ArchiveError, UsageError, VerificationError
from sfxreduce.io.files.durable import PARTIAL, FileRecord, output_errors, sha256_file

__all__ = [
    "CONFIDENCE",
    "RecallFailure",
    "RecallResult",
    "check_recall",
    "recall_file",
    "recall_test",
]

CONFIDENCE = 0.95

BUFFERED = " The archive does not say that it read the medium, and not a disk buffer before it."

Kind = Literal["lost", "size", "checksum"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallFailure:
    """One copy that did not come back as it should.

    Parameters
    ----------
    path, backend, pool : str
        Of the copy.
    kind : str
        ``lost`` if it did not come, ``size`` or ``checksum`` if it is another file.
    problem : str
        In words.
    """

    path: str
    backend: str
    pool: str
    kind: Kind
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallResult:
    """What a recall test found.

    Parameters
    ----------
    paths : tuple of str
        Of the files that were recalled from every copy, in the order drawn.
    tested, population : int
        How many they are, and how many they were drawn from.
    bad : int
        How many of them have a copy that did not come back as it should.
    statement : str
        What this proves, in words.
    """

    paths: tuple[str, ...]
    tested: int
    population: int
    bad: int
    failures: tuple[RecallFailure, ...]
    statement: str


def recall_test(
    copies: Sequence[tuple[Backend, str]],
    files: Sequence[FileRecord],
    *,
    n: int,
    seed: int,
    workdir: Path,
) -> RecallResult:
    """Recall random files from every copy, and compare each with its record.

    One file at a time is in the work folder, and removed from it once it was hashed.

    Parameters
    ----------
    copies : sequence of (Backend, str)
        Archive and pool of each.
    files : sequence of FileRecord
        What was put, by its path in the archive.
    n : int
        How many to draw; all, if there are fewer.
    seed : int
        Of the draw, at least 0. The same files and seed draw the same ones.
    workdir : Path
        Has to be there, with room for the largest file.

    Raises
    ------
    UsageError
        If nothing is to be drawn.
    OutputError
        If the work folder cannot be written.
    """
    if n < 1 or seed < 0 or not files:
        raise UsageError(
            f"recall test: expected files, and at least one to draw, found {len(files)} files and "
            f"n={n}, seed={seed}"
        )
    drawn = _draw(files, n, seed)
    failures = [
        failure
        for file in drawn
        for backend, pool in copies
        if (failure := _test_copy(backend, pool, file, workdir)) is not None
    ]
    bad = len({failure.path for failure in failures})
    buffered = not all(backend.capabilities().recalls_from_medium for backend, _ in copies)
    return RecallResult(
        paths=tuple(file.path for file in drawn),
        tested=len(drawn),
        population=len(files),
        bad=bad,
        failures=tuple(failures),
        statement=_statement(len(drawn), len(files), bad) + (BUFFERED if buffered else ""),
    )


def check_recall(result: RecallResult, files: Sequence[FileRecord], *, n: int) -> list[Refusal]:
    """Say why a recall test is not enough to let go of the disk copies.

    Parameters
    ----------
    files : sequence of FileRecord
        What was put.
    n : int
        How many files the policy asks for.

    Returns
    -------
    list of Refusal
        R08 if it was not passed, and R06 for each copy that is another file.
    """
    refusals = [
        refuse("R06", f"{failure.path} in {failure.backend}: {failure.problem}")
        for failure in result.failures
        if failure.kind != "lost"
    ]
    if result.bad or result.failures:
        refusals.append(refuse("R08", result.statement))
    known = {file.path for file in files}
    tested = set(result.paths) & known
    if result.population != len(known) or len(tested) < min(n, len(known)):
        refusals.append(
            refuse(
                "R08", f"expected {min(n, len(known))} of {len(known)} files, found {len(tested)}"
            )
        )
    return refusals


def recall_file(backend: Backend, pool: str, file: FileRecord, into: Path) -> RecallFailure | None:
    """Recall one copy and compare it with its record; another file is not left behind.

    Parameters
    ----------
    file : FileRecord
        By its path in the archive.
    into : Path
        Of the new file; nothing may lie there.

    Returns
    -------
    RecallFailure or None
        None if the file is there, and is the one that was recorded.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    good = False
    try:
        with output_errors(into):
            backend.recall(file.path, into, pool=pool)
            kind, problem = _compare(into, file)
        good = not problem
    except (ArchiveError, VerificationError) as error:
        kind, problem = "lost", str(error)
    finally:
        if not good:
            into.unlink(missing_ok=True)
    if good:
        return None
    return RecallFailure(
        path=file.path, backend=backend.name, pool=pool, kind=kind, problem=problem
    )


def _compare(into: Path, file: FileRecord) -> tuple[Kind, str]:
    """What is wrong with a recalled file; no words if nothing is."""
    size = into.stat().st_size
    if size != file.size:
        return "size", f"{size} bytes came back, not {file.size}"
    found = sha256_file(into)
    if found != file.sha256:
        return "checksum", f"sha256 {found[:16]} came back, not {file.sha256[:16]}"
    return "checksum", ""


def _draw(files: Sequence[FileRecord], n: int, seed: int) -> list[FileRecord]:
    """Files at random, each at most once; in which order they were given does not matter."""
    ordered = sorted(files, key=lambda file: file.path)
    chosen = np.random.default_rng(seed).permutation(len(ordered))[:n]
    return [ordered[int(place)] for place in chosen]


def _test_copy(
    backend: Backend, pool: str, file: FileRecord, workdir: Path
) -> RecallFailure | None:
    """Recall one copy into the work folder, and remove it."""
    into = workdir / f".recall-{uuid.uuid4().hex[:12]}{PARTIAL}"
    try:
        return recall_file(backend, pool, file, into)
    finally:
        into.unlink(missing_ok=True)


def _statement(tested: int, of: int, bad: int) -> str:
    """What the test proves; nothing else may be said of it."""
    how = "recalled from every pool and hashed"
    if bad:
        return f"{tested} of {of} files were {how}, {bad} of them are bad: nothing may be released."
    if tested == of:
        return f"All {of} files were {how}, none of them is bad."
    # Rounded up to a tenth of a per cent.
    share = math.ceil(round(share_upper(0, tested, confidence=CONFIDENCE) * 1000, 6)) / 10
    return (
        f"{tested} of {of} files, drawn at random, were {how}, none of them is bad: at most "
        f"{share:g} % of the files are bad, at {100 * CONFIDENCE:g} % confidence."
    )
