"""A run from anywhere, written as a run store: one task for each whole shard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfxreduce.cluster import IN_PROCESS, Pool
from sfxreduce.cluster.pool import Progress, silent, tracked
from sfxreduce.errors import UsageError
from sfxreduce.io.chunks.blosc import PACKINGS
from sfxreduce.io.chunks.layout import Layout, choose_layout
from sfxreduce.io.files.durable import disk_bytes, sweep_partial
from sfxreduce.io.placed import PlacedFrames
from sfxreduce.io.readers.hdf5.run import CxiFrames
from sfxreduce.io.store.names import PANEL_MISSING
from sfxreduce.io.writers.publish import check_outputs, staged
from sfxreduce.io.writers.shards import ShardJob, copy_shard, encode_shard
from sfxreduce.io.writers.zarr import (
    consolidate,
    create_store,
    panels_missing,
    write_columns,
)
from sfxreduce.pipeline.stages.write import shard_rescue
from sfxreduce.run.run import FrameSource, Run
from sfxreduce.run.window import Window

__all__ = ["IngestSummary", "WrittenStore", "ingest_run", "write_store"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSummary:
    """What was stored.

    Parameters
    ----------
    out : str
        Path of the run store.
    events, unreadable : int
        Events of the run, and how many of them could not be read whole; what is missing of them
        stays in the store as a hole.
    bytes_in, bytes_out : int
        Bytes of the source and of the store.
    rewrapped : bool
        Whether the source's chunks were taken over as they are; otherwise they were decoded, and
        encoded in tiles for the scorer's window.
    not_carried : tuple of str
        Per-event data of the source that the store does not have.
    incomplete : tuple of str
        Signs that the source was still being written; see `sfxreduce.run.run.Run.incomplete`.
    """

    out: str
    events: int
    unreadable: int
    bytes_in: int
    bytes_out: int
    rewrapped: bool
    not_carried: tuple[str, ...] = ()
    incomplete: tuple[str, ...] = ()


def ingest_run(
    run: Run,
    *,
    out: Path,
    pool: Pool = IN_PROCESS,
    retile: bool = False,
    packing: str = "fast",
    overwrite: bool = False,
    progress: Progress = silent,
) -> IngestSummary:
    """Write a run as a run store.

    Frames keep every bit. The store appears under its name complete, or not at all. One HDF5 file
    whose chunks are whole panels packed by Blosc alone is not decoded: its chunks become the tiles.
    Such a chunk without a header that fits is a hole; one damaged behind it is taken over.

    Parameters
    ----------
    pool : Pool
        Where shards are made.
    retile : bool
        Decode in any case: it pays where the centre window is a small part of the frame.
    packing : str
        "fast" for tiles that are read in less than half of the time, "small" for some fewer bytes
        (decision 24). Chunks that are taken over as they are keep theirs.
    overwrite : bool
        Replace what lies at `out`.

    Raises
    ------
    UsageError
        If there is no such packing.
    OutputExists
        If something lies at `out`.
    OutputError
        If the disk is full or the path cannot be written.
    """
    if packing not in PACKINGS:
        raise UsageError(
            f"--packing {packing}: expected {' or '.join(PACKINGS)}; leave it out for fast"
        )
    check_outputs(stores=[out], inputs=run.inputs, overwrite=overwrite)
    with staged(stores=[out], overwrite=overwrite) as paths:
        stored = write_store(
            run, paths[out], pool=pool, retile=retile, packing=packing, progress=progress
        )
    return IngestSummary(
        out=str(out),
        events=run.n_events,
        unreadable=stored.unreadable,
        bytes_in=run.source.n_bytes,
        bytes_out=disk_bytes(out),
        rewrapped=stored.rewrapped,
        not_carried=run.not_carried,
        incomplete=run.incomplete,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenStore:
    """What became of a run's frames; see `IngestSummary`."""

    unreadable: int
    rewrapped: bool


def write_store(
    run: Run,
    path: Path,
    *,
    pool: Pool,
    retile: bool = False,
    packing: str = "fast",
    progress: Progress = silent,
) -> WrittenStore:
    """Write a run store where nobody looks yet; see `ingest_run`.

    Parameters
    ----------
    path : Path
        Must not exist.

    Raises
    ------
    OutputError
        If the disk is full or the path cannot be written.
    """
    stored = None if retile else _stored_layout(run.source)
    layout = stored or choose_layout(
        run.detector.frame_shape,
        dtype=np.dtype(run.source.dtype),
        boxes=Window.centre(run.detector).boxes(run.detector),
        packing=PACKINGS[packing],
    )
    # Which panels are missing is found again, while they are read.
    columns = run.columns.drop_vars(PANEL_MISSING, errors="ignore")
    create_store(path, run=run, layout=layout, columns=columns, truth=run.truth)
    jobs = _shard_jobs(run, layout, store=path)
    write = copy_shard if stored else encode_shard
    written = pool.map("store", write, jobs, rescue=shard_rescue(write))
    done = tracked(written, stage="store", total=len(jobs), progress=progress)
    holed = [shard for _, shard in done if shard.holes]
    write_columns(path, panels_missing(run.source, holed, np.arange(run.n_events)))
    sweep_partial(path)
    consolidate(path)
    return WrittenStore(
        unreadable=sum(len(shard.holes) for shard in holed), rewrapped=stored is not None
    )


def _stored_layout(source: FrameSource) -> Layout | None:
    """Layout by which chunks are taken over as they are; None if they have to be decoded."""
    stored = source.source if isinstance(source, PlacedFrames) else source
    return stored.layout if isinstance(stored, CxiFrames) else None


def _shard_jobs(run: Run, layout: Layout, *, store: Path) -> list[ShardJob]:
    """One job for each shard of the store, in order."""
    events = range(run.n_events)
    size = layout.events_per_shard
    return [
        ShardJob(
            source=run.source,
            store=str(store),
            layout=layout,
            shard=shard,
            events=tuple(events[shard * size : (shard + 1) * size]),
        )
        for shard in range(layout.n_shards(run.n_events))
    ]
