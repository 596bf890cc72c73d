"""Events brought back by their ids: from the run, the reduced store, or the archive."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfxreduce.archive.tape.events import find_events, open_archived
from sfxreduce.archive.tape.holding import Holding
from sfxreduce.cluster import Pool
from sfxreduce.cluster.pool import Progress, silent, tracked
from sfxreduce.errors import SfxReduceError, SourceError, UsageError, VerificationError
from sfxreduce.io.chunks.layout import Layout, choose_layout
from sfxreduce.io.files.durable import output_errors, sweep_partial
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.concatenate import join_runs
from sfxreduce.io.readers.zarr.run import ZarrFrames, open_zarr
from sfxreduce.io.store.names import AUDIT_GROUP
from sfxreduce.io.writers.publish import check_outputs, staged
from sfxreduce.io.writers.shards import ShardJob, encode_shard
from sfxreduce.io.writers.zarr import create_store, panels_missing, write_columns
from sfxreduce.pipeline.verify.frames import CompareJob, differing_events
from sfxreduce.run.columns import EVENT_COLUMNS
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window

__all__ = ["Places", "Restored", "restore_events"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where events of one run may be, in the order in which they are looked for.

    Parameters
    ----------
    run : tuple of Path
        The run on the disk: one path, or several files. It may be gone.
    hits : Path, optional
        The reduced store, with its sample of rejected events.
    data_path : str
        Of the frames in the run on the disk; see `sfxreduce.io.open.open_run`.
    """

    run: tuple[Path, ...] = ()
    hits: Path | None = None
    archive: Holding | None = None
    data_path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was brought back.

    Parameters
    ----------
    out : str
        Path of the run store.
    from_run, from_hits, from_archive : int
        Where they came from.
    bytes_recalled : int
        From the archive.
    """

    out: str
    events: int
    from_run: int
    from_hits: int
    from_archive: int
    bytes_recalled: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Located:
    """Events that were found in one place."""

    place: str
    run: Run
    positions: NDArray[np.int64]


@dataclass(slots=True, kw_only=True)
class _Search:
    """Events that are still to be found, and what became of the others."""

    missing: list[str]
    parts: list[_Located]
    problems: list[str]
    bytes_recalled: int = 0

    def look(self, place: str, opened: Callable[[], Run]) -> None:
        """Look for what is missing in one more place; one that cannot be read is told apart."""
        if not self.missing:
            return
        try:
            run = _with_source_index(opened())
            found = find_events(run, self.missing)
            readable = {
                name: position for name, position in found.items() if _is_readable(run, position)
            }
        except UsageError:
            raise
        except SfxReduceError as error:
            self.problems.append(str(error))
            return
        if set(found) - set(readable):
            self.problems.append(f"{run.path}: {len(found) - len(readable)} cannot be read there")
        if readable:
            positions = np.array(list(readable.values()), np.int64)
            self.parts.append(_Located(place=place, run=run, positions=positions))
        self.missing = [name for name in self.missing if name not in readable]


def _is_readable(run: Run, position: int) -> bool:
    """Whether an event can be read as it was written: whole, or but for panels that never were."""
    reading = run.source.read([position])
    never = bool(reading.reasons[0] == Reason.DATA_HOLE) and not reading.lost[0]
    return never or not reading.reasons[0]


def restore_events(
    events: Sequence[str],
    *,
    places: Places,
    out: Path,
    pool: Pool,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Restored:
    """Bring events back, bit for bit, as a small run store in source order.

    Each is taken from the first place that can deliver it whole. Only what is in no other place is
    recalled from the archive; recalled files lie beside `out` meanwhile, and are removed. Before
    the store appears under its name, its frames are compared with what they were made of.

    Parameters
    ----------
    events : sequence of str
        Their ids, or ``@N`` for position N of the source run.
    overwrite : bool
        Replace a run store that lies at `out`.

    Raises
    ------
    UsageError
        If no event is named, one is named twice, or several events have one id.
    SourceError
        If an event is in none of the places, or can be read in none.
    OutputExists, OutputError
        If `out` cannot be written.
    """
    if not events or len(set(events)) != len(events):
        raise UsageError(f"restore: expected events, each named once, found {list(events)[:5]}")
    inputs = [*places.run, *([places.hits] if places.hits else [])]
    check_outputs(stores=[out], inputs=inputs, overwrite=overwrite)
    with _recall_folder(out) as folder:
        search = _look_everywhere(events, places, folder)
        _write(search.parts, out=out, pool=pool, overwrite=overwrite, progress=progress)
    counts = {
        place: sum(part.positions.size for part in search.parts if part.place == place)
        for place in ("run", "hits", "archive")
    }
    return Restored(
        out=str(out),
        events=len(events),
        from_run=counts["run"],
        from_hits=counts["hits"],
        from_archive=counts["archive"],
        bytes_recalled=search.bytes_recalled,
    )


def _look_everywhere(events: Sequence[str], places: Places, folder: Path) -> _Search:
    search = _Search(missing=list(events), parts=[], problems=[])
    run, hits, archive = places.run, places.hits, places.archive
    if run:
        named = run[0] if len(run) == 1 else run
        search.look("run", lambda: open_run(named, data_path=places.data_path))
    if hits is not None:
        search.look("hits", lambda: open_zarr(hits))
        if (hits / AUDIT_GROUP).is_dir():
            search.look("hits", lambda: open_zarr(hits / AUDIT_GROUP))
    if archive is not None and search.missing:

        def recalled() -> Run:
            found, search.bytes_recalled = open_archived(
                archive, search.missing, into=folder / "run", tars=folder / "tars"
            )
            return found

        search.look("archive", recalled)
    if search.missing:
        why = "; ".join(search.problems) or "no place that was given has them"
        raise SourceError(
            f"restore: {len(search.missing)} of {len(events)} events cannot be restored, the first "
            f"is '{search.missing[0]}' ({why}){_position_hint(search.missing[0])}"
        )
    return search


def _position_hint(name: str) -> str:
    """What to type where a number was meant as a position and read as an identifier."""
    return f"; if it is a position in the run, write '@{name}'" if name.isdecimal() else ""


def _with_source_index(run: Run) -> Run:
    """The columns that all places have, and the position in the source run."""
    names = [column.name for column in EVENT_COLUMNS]
    columns = run.columns[names]
    index = run.columns.get("source_index", np.arange(run.n_events))
    attrs = {"long_name": "position in the source run", "units": "1"}
    columns["source_index"] = ("event", np.asarray(index, np.int64), attrs)
    return replace(run, columns=columns, truth=None)


def _write(
    parts: Sequence[_Located], *, out: Path, pool: Pool, overwrite: bool, progress: Progress
) -> None:
    """Write the events of all parts in source order, and compare before publishing."""
    joined = join_runs([part.run for part in parts])
    first = np.cumsum([0, *(part.run.n_events for part in parts)])
    positions = np.concatenate(
        [part.positions + start for part, start in zip(parts, first, strict=False)]
    )
    source_index = joined.columns["source_index"].values[positions]
    positions = positions[np.argsort(source_index, kind="stable")]
    layout = _layout(parts[0].run)
    restored = replace(joined, provenance=f"restored from {', '.join(p.run.path for p in parts)}")
    with staged(stores=[out], overwrite=overwrite) as paths:
        hidden = paths[out]
        columns = joined.columns.isel(event=positions)
        create_store(hidden, run=restored, layout=layout, columns=columns, truth=None)
        jobs = [
            ShardJob(
                source=joined.source,
                store=str(hidden),
                layout=layout,
                shard=shard,
                events=tuple(positions[start : start + layout.events_per_shard].tolist()),
            )
            for shard, start in enumerate(range(0, positions.size, layout.events_per_shard))
        ]
        work = pool.map("restore", encode_shard, jobs)
        done = tracked(work, stage="restore", total=len(jobs), progress=progress)
        holed = [shard for _, shard in done if shard.holes]
        write_columns(hidden, panels_missing(joined.source, holed, positions))
        sweep_partial(hidden)
        differing = differing_events(
            CompareJob(
                kept=ZarrFrames(path=str(hidden)),
                source=joined.source,
                first=0,
                source_index=tuple(positions.tolist()),
            )
        )
        if differing:
            raise VerificationError(
                f"{out}: event {differing[0]} does not read back as it was; nothing was written, "
                "check the disk"
            )


def _layout(run: Run) -> Layout:
    """The source's own tiles where it has them."""
    own = run.source.layout if isinstance(run.source, ZarrFrames) else None
    return own or choose_layout(
        run.detector.frame_shape,
        dtype=np.dtype(run.source.dtype),
        boxes=Window.centre(run.detector).boxes(run.detector),
    )


@contextmanager
def _recall_folder(out: Path) -> Iterator[Path]:
    """Folders beside the output, on the same disk, for what comes from the archive."""
    with output_errors(out):
        folder = tempfile.TemporaryDirectory(prefix=".sfxreduce-recall-", dir=out.parent.resolve())
    with folder as name:
        for part in ("run", "tars"):
            (Path(name) / part).mkdir()
        yield Path(name)
