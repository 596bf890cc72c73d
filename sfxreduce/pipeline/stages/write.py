"""The reduced store: begun or resumed, kept events bit for bit, ledger, manifest, published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from inspect import getsourcefile
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.cluster.pool import Progress, Rescue, halves_of, silent, tracked
from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.decisions.ledger import ledger_table, read_ledger
from sfxreduce.errors import SourceError
from sfxreduce.io.chunks.layout import Layout
from sfxreduce.io.files.durable import warn
from sfxreduce.io.files.safe_read import content_pin, file_identity, source_pin
from sfxreduce.io.readers.zarr.run import open_table
from sfxreduce.io.store.manifest import Manifest, PublishJob, made_here, publish_file
from sfxreduce.io.store.names import AUDIT_DIM, AUDIT_GROUP, CONDITIONS_GROUP, LEDGER_GROUP
from sfxreduce.io.writers.resume import IDENTITY, Unfinished, unfinished
from sfxreduce.io.writers.shards import (
    ShardJob,
    ShardWritten,
    TiledSource,
    copy_shard,
    encode_shard,
    marked_in,
    unread_panels,
)
from sfxreduce.io.writers.zarr import (
    consolidate,
    create_store,
    panels_missing,
    write_manifest,
    write_table,
)
from sfxreduce.pipeline.stages.plan import FilterPlan
from sfxreduce.pipeline.stages.reduced import Reduced
from sfxreduce.pipeline.stages.score import EVENTS_PER_BATCH, ScoredJob, differing_pixels
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs, pinned
from sfxreduce.quality.conditions import conditions_table
from sfxreduce.run.columns import plain_text, select_events
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Reading, Run, WrappedFrames, has_changed
from sfxreduce.run.window import Window
from sfxreduce.scorers.protocol import Scorer

__all__ = ["audit_columns", "kept_columns", "published_at_once", "shard_rescue", "write_reduced"]


def kept_columns(plan: FilterPlan) -> xr.Dataset:
    """Per-event columns of the kept events, with their score and where they came from."""
    return _columns(plan, plan.reduction.kept)


def audit_columns(plan: FilterPlan) -> xr.Dataset:
    """The same of the sampled rejects, with their chance to be in the sample."""
    sample = plan.audit.kept
    columns = _columns(plan, sample)
    chance = sample.size / max(plan.decisions.count(Decision.REJECT), 1)
    columns["probability"] = (
        "event",
        np.full(sample.size, chance),
        {"long_name": "chance of a rejected event to be in the sample", "units": "1"},
    )
    return columns


def _columns(plan: FilterPlan, events: NDArray[np.int64]) -> xr.Dataset:
    columns = select_events(plan.run.columns, events)
    columns["score"] = (
        "event",
        plan.decisions.score[events],
        {"long_name": "score of the event", "units": "1"},
    )
    columns["source_index"] = (
        "event",
        events,
        {"long_name": "position in the source run", "units": "1"},
    )
    return columns


def write_reduced(
    plan: FilterPlan,
    work: Unfinished,
    *,
    options: Mapping[str, Any] | None = None,
    pool: Pool,
    progress: Progress = silent,
) -> Decisions:
    """Write the kept events, the ledger, the run's conditions, and the manifest last.

    Shards that are there already are not written again.

    Parameters
    ----------
    work : Unfinished
        Where to write; its outputs appear under their names when the caller is done.
    options : mapping, optional
        See `sfxreduce.pipeline.stages.settings.Outputs`.
    pool : Pool
        Writes shards, and reads them back.

    Returns
    -------
    Decisions
        As the ledger has them: with a reason on every kept event that could not be copied whole,
        and with the hash of everything that was kept.

    Raises
    ------
    OutputError
        If the disk is full or the path cannot be written.
    VerificationError
        If a file does not read back as it was written.
    SourceError
        If the source's files are others by now, and hold other bytes.
    """
    if work.published:  # complete before a cut-off, which only had to let it appear
        return read_ledger(open_table(work.store, LEDGER_GROUP), where=str(work.store))
    store = work.hidden[work.store]
    shards = _write_shards(plan, work, pool=pool, progress=progress)
    decisions = _with_shards(plan, shards)
    changed = any(shard.changed for shard in shards)
    _check_same_bytes(plan, work, told=changed, pool=pool, progress=progress)
    _create(plan, store, kept_columns(plan), shards, events=plan.reduction.kept)
    if plan.audit.kept.size:
        sample, columns = store / AUDIT_GROUP, audit_columns(plan)
        _create(plan, sample, columns, shards, events=plan.audit.kept, event_dim=AUDIT_DIM)
    work.place_shards(shards)
    write_table(store, LEDGER_GROUP, ledger_table(decisions, plan.run.columns))
    if plan.conditions is not None:
        write_table(store, CONDITIONS_GROUP, conditions_table(plan.conditions))
    consolidate(store)
    manifest = _manifest(plan, work, decisions, shards, pool=pool, progress=progress)
    write_manifest(store, replace(manifest, options=dict(options or {})))
    return decisions


def _write_shards(
    plan: FilterPlan, work: Unfinished, *, pool: Pool, progress: Progress
) -> list[ShardWritten]:
    """Write those shards that are not there yet; all of them, in order of the plan."""
    there = work.shards
    for job in plan.jobs(work.shards_folder):
        before = there.get(job.path)
        # What could not be read when it was written may have been one worker's fault alone.
        if before and (before.event_list != job.event_list or before.holes):
            work.discard(before)
    there = work.shards
    left = (job for job in plan.jobs(work.shards_folder) if job.path not in there)
    write = copy_shard if plan.reduction.copies_tiles else encode_shard
    written = pool.map("reduce", write, left, rescue=shard_rescue(write))
    total = plan.n_shards - len(there)
    for _, shard in tracked(written, stage="reduce", total=total, progress=progress):
        work.keep(shard)
    work.acknowledge()
    done = work.shards
    return [done[job.path] for job in plan.jobs(work.shards_folder)]


def _with_shards(plan: FilterPlan, shards: Sequence[ShardWritten]) -> Decisions:
    """Decisions with what became of the events that were kept."""
    holes = sorted(event for shard in shards for event in shard.holes)
    hashes = [payload for shard in shards for payload in shard.payloads]
    events = np.concatenate([plan.reduction.kept, plan.audit.kept])
    unstable = sorted(event for shard in shards for event in shard.unstable)
    changed = sorted(event for shard in shards for event in shard.changed)
    decisions = plan.decisions.with_damage(np.array(holes, np.int64))
    decisions = decisions.with_doubt(Reason.UNSTABLE_READ, np.array(unstable, np.int64))
    decisions = decisions.with_doubt(Reason.CHANGED, np.array(changed, np.int64))
    return decisions.with_payloads(events, hashes)


def _create(
    plan: FilterPlan,
    store: Path,
    columns: xr.Dataset,
    shards: Sequence[ShardWritten],
    *,
    events: NDArray[np.int64],
    event_dim: str = "event",
) -> None:
    """Write all of a store but its frames; the sample is a run store within the store."""
    truth = None if plan.run.truth is None else select_events(plan.run.truth, events)
    columns = columns.assign(panels_missing(plan.run.source, shards, events))
    create_store(
        store,
        run=plan.run,
        layout=plan.layout,
        columns=columns,
        truth=truth,
        event_dim=event_dim,
    )


def _manifest(
    plan: FilterPlan,
    work: Unfinished,
    decisions: Decisions,
    shards: Sequence[ShardWritten],
    *,
    pool: Pool,
    progress: Progress,
) -> Manifest:
    """Read every staged file back and take down what the output consists of."""
    store = work.hidden[work.store]
    expected = {shard.path: shard.digest for shard in shards}
    files = sorted(str(p.relative_to(store)) for p in store.rglob("*") if p.is_file())
    jobs = [
        PublishJob(store=str(store), path=path, digest=expected.get(path, "")) for path in files
    ]
    read = pool.map("publish", publish_file, jobs)
    records = [
        record for _, record in tracked(read, stage="publish", total=len(jobs), progress=progress)
    ]
    return Manifest(
        software=f"sfxreduce {version('sfxreduce')}",
        source=plain_text(plan.run.path),
        source_events=plan.run.n_events,
        source_bytes=plan.run.source.n_bytes,
        scorer=plan.method.scorer,
        settings=plan.method.settings,
        threshold=plan.method.threshold,
        model_sha256=plan.method.model_sha256,
        hits=decisions.count(Decision.HIT),
        undecided=decisions.count(Decision.UNDECIDED),
        rejected=decisions.count(Decision.REJECT),
        files=tuple(sorted(records, key=lambda record: record.path)),
        assurance=plan.method.assurance.to_json(),
        # Workers of another make were given no task: see sfxreduce.cluster.roll_call.
        made_by=(made_here(),),
        incomplete=plan.run.incomplete,
    )


def shard_rescue(
    write: Callable[[ShardJob], ShardWritten],
) -> Rescue[ShardJob, ShardWritten]:
    """What becomes of a shard that ends its workers: the events that do it become holes.

    Parts are only read: a part of a shard must never lie where the whole one belongs.

    Parameters
    ----------
    write : callable
        `copy_shard` or `encode_shard`.
    """
    return Rescue(
        attempt=partial(_read, copies=write is copy_shard),
        halves=_halves,
        lost=_lost,
        joined=partial(_written, write=write),
        doubted=partial(_doubted, copies=write is copy_shard),
    )


def _doubted(job: ShardJob, written: ShardWritten, *, copies: bool) -> bool:
    """Whether this process reads a panel of which a worker says that it is not whole."""
    return any(
        set(panels) - set(unread_panels(job, event, copies=copies))
        for event, *panels in written.missing
    )


def _read(job: ShardJob, *, copies: bool) -> tuple[int, ...]:
    """Read what the job would; none of its events is lost."""
    if copies and isinstance(job.source, TiledSource):
        for _ in job.source.encoded(job.events):
            pass
    else:
        for event in job.events:
            job.source.read([event])
    return ()


def _halves(job: ShardJob) -> list[ShardJob]:
    return [replace(job, events=events) for events in halves_of(job.events)]


def _lost(job: ShardJob) -> tuple[int, ...]:
    return job.events


def _written(
    job: ShardJob,
    parts: Sequence[tuple[int, ...]],
    *,
    write: Callable[[ShardJob], ShardWritten],
) -> ShardWritten:
    """Write the shard, once, without the events that are lost."""
    lost = frozenset(event for part in parts for event in part)
    return write(replace(job, source=_Spared(source=job.source, lost=lost)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spared(WrappedFrames):
    """A source of frames some of which are never read. See `sfxreduce.run.run.FrameSource`."""

    lost: frozenset[int]

    @property
    def layout(self) -> Layout | None:
        """Layout of its stored tiles; None if there are none."""
        return self.source.layout if isinstance(self.source, TiledSource) else None

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """Read what is not lost; see `sfxreduce.run.run.FrameSource.read`."""
        there = np.array([event not in self.lost for event in events], np.bool_)
        reasons = np.full(len(events), Reason.WORKER_LOST, np.uint32)
        shape = self.detector.frame_shape if window is None else window.shape
        pixels = np.zeros((len(events), *shape), self.dtype)
        missing: dict[int, NDArray[np.bool_]] = {}
        if there.any():
            places = np.flatnonzero(there).tolist()
            reading = self.source.read([events[place] for place in places], window)
            pixels[there], reasons[there] = reading.pixels, reading.reasons
            missing = {places[place]: lost for place, lost in reading.missing.items()}
        return Reading(pixels=pixels, reasons=reasons, missing=missing)

    def missing_panels(self, event: int) -> NDArray[np.bool_]:
        """See `sfxreduce.io.writers.shards.MarksMissing`."""
        marked = np.zeros(len(self.detector.panels), np.bool_)
        marked[marked_in(self.source, [event]).get(event, [])] = True
        return marked

    def encoded(self, events: Sequence[int]) -> Iterator[list[bytes | None]]:
        """Stored tiles of events; none of those that are lost."""
        if not isinstance(self.source, TiledSource) or self.layout is None:
            return
        tiles = self.source.encoded([event for event in events if event not in self.lost])
        for event in events:
            yield [None] * self.layout.tiles_per_event if event in self.lost else next(tiles)


@contextmanager
def published_at_once(
    run: Run, settings: FilterSettings, outputs: Outputs, *, known: Reduced | None = None
) -> Iterator[Unfinished]:
    """Begin outputs, or go on with what is there of them; they appear when the block ends well.

    Parameters
    ----------
    known : Reduced, optional
        An earlier output of the run, from which scores and frames are taken.

    Raises
    ------
    RefusedError
        If an unfinished output is there that was begun with other settings.
    SourceError
        If the source changed meanwhile.
    OutputError
        If an output cannot be written.
    """
    pins = _pins(run, settings, outputs)
    if known is not None:
        pins["taken over from"] = known.stamp
    with unfinished(
        outputs.store, files=outputs.files, pins=pins, overwrite=outputs.overwrite
    ) as work:
        if 0 not in work.noted(IDENTITY):
            work.note(IDENTITY, 0, file_identity(run.source.inputs).encode())
        yield work
        _check_unchanged(run, work)


def _pins(run: Run, settings: FilterSettings, outputs: Outputs) -> dict[str, Any]:
    """Everything that the bytes of an output depend on, by the name people know it by."""
    return {
        "version": version("sfxreduce"),
        "code": _code(settings.scorer),
        "source": plain_text(run.path),
        "source files": source_pin(run.source.inputs),
        **pinned(run.source, "reader", by_content=False),
        # What is known of the truth comes from an object store only now.
        "columns": tokenize(run.columns, None if run.truth is None else run.truth.load()),
        **pinned(settings, by_content=True),
        "cxi-filter": outputs.cxi_filter,
        "cxi-layout": outputs.cxi_layout,
        "nxmx-codec": outputs.nxmx_codec,
        "sensor": outputs.sensor,
    }


def _code(scorer: Scorer) -> str:
    """Hash of the package's code, and of the file of a scorer from elsewhere."""
    package = made_here().code
    with suppress(TypeError, OSError):  # one that was typed into a prompt lies in no file
        if file := getsourcefile(type(scorer)):
            return tokenize(package, content_pin(Path(file)))
    return package


def _check_same_bytes(
    plan: FilterPlan, work: Unfinished, *, told: bool, pool: Pool, progress: Progress
) -> None:
    """Read what was scored once more, if the source's files are not the very ones any longer.

    A backup, a recall from tape or another mount changes inodes and times of change, and no byte.

    Parameters
    ----------
    told : bool
        Whether events that changed will be told of.
    """
    now = file_identity(plan.run.source.inputs)
    if plan.scored is None or work.noted(IDENTITY)[0] == now.encode():
        return
    jobs = [
        ScoredJob(
            source=plan.run.source,
            scored=plan.scored.of(range(first, min(first + EVENTS_PER_BATCH, plan.run.n_events))),
            first=first,
        )
        for first in range(0, plan.run.n_events, EVENTS_PER_BATCH)
    ]
    done = tracked(
        pool.map("compare", differing_pixels, jobs),
        stage="compare",
        total=len(jobs),
        progress=progress,
    )
    copied = {*plan.reduction.kept.tolist(), *plan.audit.kept.tolist()}
    differing = sorted({event for _, part in done for event in part} - copied)
    if differing:
        raise SourceError(
            f"{plan.run.path}: its files were replaced while they were read, and event "
            f"{differing[0]} and {len(differing) - 1} others have other pixels; nothing was "
            "published, start again with --overwrite once the run is complete"
        )
    if not told:
        warn(
            f"{plan.run.path}: its files were replaced or touched while they were read, and hold "
            "the same pixels where they were scored; the output is what it would have been"
        )


def _check_unchanged(run: Run, work: Unfinished) -> None:
    """Refuse to publish what was read from files that somebody changed meanwhile."""
    if source_pin(run.source.inputs) != work.pins["source files"] or has_changed(run.source):
        raise SourceError(
            f"{run.path}: its files changed while they were read; nothing was published, start "
            "again once the run is complete"
        )
