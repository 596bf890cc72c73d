"""An output by itself, every byte by its checksum; or against its source, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cluster import IN_PROCESS, Pool
from sfxreduce.cluster.pool import Progress, silent, tracked
from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.decisions.ledger import read_ledger
from sfxreduce.errors import RunNotFound, SfxReduceError, VerificationError
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import (
    ZarrFrames,
    count_incomplete,
    open_table,
    read_manifest,
)
from sfxreduce.io.store.damage import (
    MANIFEST_FILE,
    Damage,
    check_file,
    file_jobs,
    irregular_files,
    shard_of,
    strangers,
    written_by_zarr,
)
from sfxreduce.io.store.manifest import Manifest
from sfxreduce.io.store.names import AUDIT_GROUP, LEDGER_GROUP
from sfxreduce.pipeline.verify.findings import Findings, FirstDamage
from sfxreduce.pipeline.verify.frames import compare_events
from sfxreduce.run.columns import plain_text
from sfxreduce.run.run import Run

__all__ = ["Verification", "open_source", "verify_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was found out about an output.

    Parameters
    ----------
    mode : str
        "quick": every byte by its checksum, and the counts. "deep": the same, and every kept event
        against the source.
    checked, mismatched : int
        Kept events that were looked at; of these, those that differ or could not be compared.
    audit_checked, audit_mismatched : int
        The same of the sample of rejected events.
    kept_without_pixels, kept_with_holes : int
        Kept events of which the output has no pixel, and those of which it lacks whole panels or
        parts of them: they equal their source where that could be read.
    damaged_files : tuple of str
        Files that do not match the manifest, are missing, or are not in it.
    problems : tuple of str
        One sentence for each thing that is wrong, the first damage included.
    """

    mode: str
    checked: int
    mismatched: int
    audit_checked: int
    audit_mismatched: int
    kept_without_pixels: int
    kept_with_holes: int
    damaged_files: tuple[str, ...]
    problems: tuple[str, ...]
    first: FirstDamage | None

    @property
    def ok(self) -> bool:
        """Whether the output can be trusted."""
        wrong = self.mismatched or self.audit_mismatched or self.damaged_files or self.problems
        return not wrong

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return {**asdict(self), "ok": self.ok}


def verify_run(
    path: Path, *, against: Run | None = None, pool: Pool = IN_PROCESS, progress: Progress = silent
) -> Verification:
    """Compare an output with its manifest, and with its source if that is given.

    Parameters
    ----------
    path : Path
        Of the reduced store.
    against : Run, optional
        Its source. Without it no pixel is unpacked: every byte is compared by its checksum, and the
        ledger, the manifest and the frames have to agree on how many events there are.

    Returns
    -------
    Verification
        Whatever is wrong with the output is reported in it, not raised.

    Raises
    ------
    RunNotFound
        If nothing lies at the path.
    """
    _look_for(path)
    # Workers elsewhere have folders of their own.
    found = Findings(path=path.absolute())
    with found.noted():
        _check_files(found, pool=pool, progress=progress)
    if not found.irregular:
        with found.noted():
            _check_events(found, against=against, pool=pool, progress=progress)
    first = found.first_damage()
    if found.damages and first:
        found.problems.insert(0, found.told(first))
    return Verification(
        mode="quick" if against is None else "deep",
        checked=found.checked.get("", 0),
        mismatched=_n_mismatched(found, "", deep=against is not None),
        audit_checked=found.checked.get(AUDIT_GROUP, 0),
        audit_mismatched=_n_mismatched(found, AUDIT_GROUP, deep=against is not None),
        kept_without_pixels=found.incomplete[0],
        kept_with_holes=found.incomplete[1],
        damaged_files=tuple(sorted({plain_text(damage.path) for damage in found.damages})),
        problems=tuple(" ".join(plain_text(problem).split()) for problem in found.problems),
        first=first,
    )


def open_source(
    path: Path,
    *,
    data_path: str = "",
    roots: Sequence[Path] = (),
    untrusted: bool = False,
    source: str = "",
) -> Run | None:
    """Open the source that the manifest of an output names; None where the manifest is damaged.

    Parameters
    ----------
    path : Path
        Of the reduced store.
    data_path : str
        Where the frames lie inside an HDF5 file; found by convention if empty.
    roots, untrusted, source
        See `sfxreduce.io.open.open_run`.

    Raises
    ------
    RunNotFound
        If the output is not there, or its source is no longer where it was.
    SfxReduceError
        If the source cannot be opened.
    """
    _look_for(path)
    found = Findings(path=path)
    with found.noted():
        if path.is_dir() and not any(irregular_files(path)):
            found.manifest = read_manifest(path)
    if found.manifest is None:
        return None
    named = found.manifest.source  # an address, perhaps, which is no path
    try:
        return open_run(named, data_path=data_path, roots=roots, untrusted=untrusted, source=source)
    except RunNotFound as error:
        raise RunNotFound(
            f"{path}: its source {named} is not there; pass --against with where it lies now"
        ) from error


def _look_for(path: Path) -> None:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise RunNotFound(
            f"{path}: no such file or folder; check the path given to --in"
        ) from error
    except OSError:
        return  # Something lies there. That it cannot be read is found again, and reported.


def _check_files(found: Findings, *, pool: Pool, progress: Progress) -> None:
    """Compare every file with the manifest, on the pool."""
    path = found.path
    if not path.is_dir():
        raise VerificationError(
            f"{path}: expected the reduced store that 'filter' made, a folder, found a file; "
            "give the path of its --out"
        )
    found.damages += irregular_files(path)
    found.irregular = bool(found.damages)
    if found.irregular:
        return
    with found.noted():
        found.decisions = read_ledger(open_table(path, LEDGER_GROUP), where=str(path))
    as_written = Damage(path=MANIFEST_FILE, what="is not as it was written")
    try:
        found.manifest = manifest = read_manifest(path)
    except VerificationError:
        found.damages.append(as_written)
        raise
    if not written_by_zarr(path):
        found.damages.append(as_written)
    found.damages += strangers(path, manifest)
    found.checked[""] = manifest.hits + manifest.undecided
    with found.noted():
        found.layout = ZarrFrames(path=str(path)).layout
    jobs = file_jobs(path, manifest, layout=found.layout, payloads=found.payloads)
    work = pool.map("check", check_file, jobs)
    done = tracked(work, stage="check", total=len(manifest.files), progress=progress)
    damages = [damage for _, damage in done if damage]
    # The order in which workers are done does not matter.
    found.damages += sorted(damages, key=lambda damage: damage.path)


def _check_events(found: Findings, *, against: Run | None, pool: Pool, progress: Progress) -> None:
    """Compare ledger, manifest and frames in their counts; and events with their source."""
    path = found.path
    if found.decisions is None:
        return
    found.problems += _miscounted(path, found.decisions, found.manifest, against)
    found.checked = {part: index.size for part, index in found.parts.items()}
    with suppress(SfxReduceError):  # What is wrong with the store is told elsewhere.
        found.incomplete = count_incomplete(path)
    for part, index in found.parts.items():
        where = path / part
        with found.noted():
            if against is None and found.damages:
                continue  # What damaged files lead to says no more than they do.
            found.problems += _misplaced(where, index)
            found.problems += _unlisted(found, part, index.size)
            if against is None:
                continue
            ours = ZarrFrames(path=str(where))
            wrong = compare_events(ours, against.source, index, pool=pool, progress=progress)
            found.differing[part] = wrong
            if wrong:
                found.problems.append(
                    f"{where}: event {wrong[0]} of the output differs from event "
                    f"{int(index[wrong[0]])} of {against.path}"
                )


def _miscounted(
    path: Path, decisions: Decisions, manifest: Manifest | None, against: Run | None
) -> Iterator[str]:
    """Compare the ledger with the manifest, with the source, and with its own sample."""
    n_rows = decisions.score.size
    if against and manifest and manifest.source_events != against.n_events:
        yield (
            f"{path}: made of {manifest.source_events} events, but {against.path} has "
            f"{against.n_events}; is it the right run?"
        )
    if against and n_rows != against.n_events:
        yield f"{path}/ledger: {n_rows} rows for {against.n_events} source events"
    counts = tuple(map(decisions.count, (Decision.HIT, Decision.UNDECIDED, Decision.REJECT)))
    if manifest and (
        counts != (manifest.hits, manifest.undecided, manifest.rejected) or sum(counts) != n_rows
    ):
        yield (
            f"{path}/ledger: {n_rows} rows with {counts[0]} hits, {counts[1]} undecided and "
            f"{counts[2]} rejected, but the manifest says {manifest.hits}, {manifest.undecided} "
            f"and {manifest.rejected} of {manifest.source_events}"
        )
    if np.any(decisions.decision[decisions.sample] != Decision.REJECT):
        yield f"{path}/ledger: its audit sample holds events that were not rejected"


def _misplaced(where: Path, index: NDArray[np.int64]) -> Iterator[str]:
    """Compare the events of a store with those that its ledger puts there."""
    if not np.array_equal(open_table(where).get("source_index", ()), index):
        yield f"{where}: its events are not those that its ledger keeps"
    if ZarrFrames(path=str(where)).n_events != index.size:
        yield f"{where}: its frames are not as many as its ledger keeps"


def _unlisted(found: Findings, part: str, n_events: int) -> Iterator[str]:
    """Compare the shards of the manifest with those that so many events fill."""
    if found.manifest is None or found.layout is None:
        return
    folder = f"{part}/frames" if part else "frames"
    layout = found.layout
    expected = {f"{folder}/{layout.shard_key(n)}" for n in range(layout.n_shards(n_events))}
    listed = {
        file.path
        for file in found.manifest.files
        if (shard := shard_of(file.path)) and shard[0] == part
    }
    if listed != expected:
        yield (
            f"{found.path}: expected {len(expected)} shards for the {n_events} events in "
            f"{folder}, found {len(listed & expected)} of them and {len(listed - expected)} others "
            "in the manifest"
        )


def _n_mismatched(found: Findings, part: str, *, deep: bool) -> int:
    """Events of a part that differ from the source; without one, those in damaged tiles."""
    if deep:
        return len(found.differing.get(part, ()))
    shards = ((shard_of(damage.path), damage) for damage in found.damages)
    return sum(len(damage.events) for shard, damage in shards if shard and shard[0] == part)
