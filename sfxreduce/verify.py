"""An output against its source: every file by its checksum, every kept event bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.decide import Decision, Decisions
from sfxreduce.errors import RunNotFound, SfxReduceError
from sfxreduce.io.files import sha256_file
from sfxreduce.io.readers.zarr import ZarrFrames, open_table, read_manifest
from sfxreduce.io.schema import AUDIT_GROUP, LEDGER_GROUP, MANIFEST_GROUP
from sfxreduce.ledger import read_ledger
from sfxreduce.manifest import Manifest
from sfxreduce.progress import Progress, silent, tracked
from sfxreduce.run import FrameSource, Run

__all__ = ["Verification", "verify_reduced"]

EVENTS_PER_TASK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a comparison of an output with its source found.

    Parameters
    ----------
    checked : int
        Events that were compared: those kept, and the sample of the rejected.
    mismatched : int
        Of these, the events that differ or could not be compared.
    damaged_files : tuple of str
        Files that do not match the manifest, are missing, or are not in it.
    problems : tuple of str
        One sentence for each thing that is wrong, the first event of all mismatches included.
    """

    checked: int
    mismatched: int
    damaged_files: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the output can be trusted."""
        return not (self.mismatched or self.damaged_files or self.problems)

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return {**asdict(self), "ok": self.ok}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareJob:
    """Kept events to compare.

    Parameters
    ----------
    kept, source : FrameSource
    first : int
        Position in the output of the first of these events; the others follow it.
    source_index : tuple of int
        Their positions in the source.
    """

    kept: FrameSource
    source: FrameSource
    first: int
    source_index: tuple[int, ...]


def verify_reduced(
    path: Path, *, against: Run, pool: Pool, progress: Progress = silent
) -> Verification:
    """Read an output and its source whole, and compare.

    Parameters
    ----------
    path : Path
        Of the reduced store.
    against : Run
        Its source.
    pool : Pool
    progress : Progress

    Returns
    -------
    Verification
        Whatever is wrong with the output is reported in it, not raised.

    Raises
    ------
    RunNotFound
        If nothing lies at the path.
    """
    if not path.exists():
        raise RunNotFound(f"{path}: no such file or folder; check the path given to --in")
    problems: list[str] = []
    damaged: list[str] = []
    checked, mismatched = 0, 0
    with _noted(problems):
        manifest = read_manifest(path)
        damaged = _damaged_files(path, manifest)
        if manifest.source_events != against.n_events:
            problems.append(
                f"{path}: made of {manifest.source_events} events, but {against.path} has "
                f"{against.n_events}; is it the right run?"
            )
    with _noted(problems):
        decisions = read_ledger(open_table(path, LEDGER_GROUP), where=str(path))
        _check_ledger(path, decisions, against, problems)
        parts = {path: decisions.kept}
        if decisions.sample.size or (path / AUDIT_GROUP).exists():
            parts[path / AUDIT_GROUP] = decisions.sample
        for part, index in parts.items():
            checked += index.size
            with _noted(problems):
                _check_columns(part, index, problems)
                work = _compare(ZarrFrames(path=str(part)), against.source, index, pool=pool)
                total = -(-index.size // EVENTS_PER_TASK)
                done = tracked(work, stage="verify", total=total, progress=progress)
                wrong = [place for _, found in done for place in found]
                mismatched += len(wrong)
                if wrong:
                    problems.append(
                        f"{part}: event {min(wrong)} of the output differs from event "
                        f"{int(index[min(wrong)])} of {against.path}"
                    )
    return Verification(
        checked=checked,
        mismatched=mismatched,
        damaged_files=tuple(damaged),
        problems=tuple(problems),
    )


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Take down what is wrong with the output instead of stopping at it."""
    try:
        yield
    except SfxReduceError as error:
        problems.append(str(error))


def _check_ledger(path: Path, decisions: Decisions, against: Run, problems: list[str]) -> None:
    """Compare the ledger with the source's number of events, and with its own sample."""
    if decisions.score.size != against.n_events:
        problems.append(
            f"{path}/ledger: {decisions.score.size} rows for {against.n_events} source events"
        )
    if np.any(decisions.decision[decisions.sample] != Decision.REJECT):
        problems.append(f"{path}/ledger: its audit sample holds events that were not rejected")


def _check_columns(part: Path, index: NDArray[np.int64], problems: list[str]) -> None:
    """Compare the events of a store with those that its ledger puts there."""
    with _noted(problems):
        if not np.array_equal(open_table(part).get("source_index", ()), index):
            problems.append(f"{part}: its events are not those that its ledger keeps")
    if ZarrFrames(path=str(part)).n_events != index.size:
        problems.append(f"{part}: its frames are not as many as its ledger keeps")


def _compare(
    kept: FrameSource, source: FrameSource, index: NDArray[np.int64], *, pool: Pool
) -> Iterator[tuple[int, list[int]]]:
    """Compare events on the pool, a few at a time."""
    jobs = [
        CompareJob(
            kept=kept,
            source=source,
            first=start,
            source_index=tuple(index[start : start + EVENTS_PER_TASK].tolist()),
        )
        for start in range(0, index.size, EVENTS_PER_TASK)
    ]
    return pool.map("verify", differing_events, jobs)


def differing_events(job: CompareJob) -> list[int]:
    """Positions in the output of events that are not bit for bit those of the source."""
    differing = []
    for place, source_index in enumerate(job.source_index, start=job.first):
        if place >= job.kept.n_events or source_index >= job.source.n_events:
            differing.append(place)
            continue
        ours, theirs = job.kept.read([place]), job.source.read([source_index])
        if ours.reasons[0] or theirs.reasons[0]:
            same = _same_holes(job, place, source_index)
        else:
            same = (
                ours.pixels.dtype == theirs.pixels.dtype
                and ours.pixels.shape == theirs.pixels.shape
                and ours.pixels.tobytes() == theirs.pixels.tobytes()
            )
        if not same:
            differing.append(place)
    return differing


def _same_holes(job: CompareJob, place: int, source_index: int) -> bool:
    """Whether what the source cannot deliver, and nothing else, is a hole in the output."""
    kept, source = job.kept, job.source
    if (
        isinstance(kept, ZarrFrames)
        and isinstance(source, ZarrFrames)
        and kept.layout is not None
        and kept.layout == source.layout
    ):
        return next(kept.encoded([place])) == next(source.encoded([source_index]))
    return bool(kept.read([place]).reasons[0] and source.read([source_index]).reasons[0])


def _damaged_files(path: Path, manifest: Manifest) -> list[str]:
    """Files that the manifest does not know, or knows otherwise."""
    known = {file.path: file for file in manifest.files}
    there = {str(p.relative_to(path)) for p in path.rglob("*") if not p.is_dir()}
    there.discard(f"{MANIFEST_GROUP}/zarr.json")
    damaged = sorted(there ^ set(known))
    for name in sorted(there & set(known)):
        try:
            found = sha256_file(path / name)
        except OSError:
            found = ""
        if found != known[name].sha256:
            damaged.append(name)
    return damaged
