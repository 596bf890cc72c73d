"""The reduced store: kept events bit for bit, the ledger of all events, the manifest last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.columns import plain_text, select_events
from sfxreduce.conditions import Conditions
from sfxreduce.conditions_table import conditions_table
from sfxreduce.decide import Decision, Decisions
from sfxreduce.io.files import PublishJob, publish_file, sweep_partial
from sfxreduce.io.layout import Layout
from sfxreduce.io.schema import AUDIT_GROUP, CONDITIONS_GROUP, LEDGER_GROUP
from sfxreduce.io.writers.shard_rescue import shard_rescue
from sfxreduce.io.writers.shards import ShardJob, ShardWritten, copy_shard, encode_shard
from sfxreduce.io.writers.zarr import create_store, write_manifest, write_table
from sfxreduce.ledger import ledger_table
from sfxreduce.manifest import Manifest
from sfxreduce.plan import ReductionPlan
from sfxreduce.progress import Progress, silent, tracked
from sfxreduce.report import Method
from sfxreduce.run import Run

__all__ = ["FilterPlan", "audit_columns", "kept_columns", "write_reduced"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FilterPlan:
    """Everything that is decided before a byte is written.

    Parameters
    ----------
    run : Run
    method : Method
        How the events were judged.
    decisions : Decisions
    layout : Layout
        Of the reduced store.
    reduction : ReductionPlan
        Which event goes where.
    audit : ReductionPlan
        The same for the sample of rejected events.
    conditions : Conditions or None
        What the run said about its detector; None if the scorer did not ask.
    """

    run: Run
    method: Method
    decisions: Decisions
    layout: Layout
    reduction: ReductionPlan
    audit: ReductionPlan
    conditions: Conditions | None = None

    @property
    def n_shards(self) -> int:
        """Number of shards of the reduced store, those of the sample included."""
        return self.reduction.n_shards + self.audit.n_shards

    def jobs(self, store: Path) -> Iterator[ShardJob]:
        """One job for each shard of the reduced store, those of the sample last.

        Made one after the other: Python's integers take some forty bytes for each position.
        """
        for group, part in (("", self.reduction), (AUDIT_GROUP, self.audit)):
            for shard in part.shards():
                yield ShardJob(
                    source=self.run.source,
                    store=str(store),
                    layout=self.layout,
                    shard=shard.shard,
                    events=shard.source_index,
                    group=group,
                )


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
    plan: FilterPlan, store: Path, *, pool: Pool, progress: Progress = silent
) -> Decisions:
    """Write the kept events, the ledger, the run's conditions, and the manifest last.

    Parameters
    ----------
    plan : FilterPlan
    store : Path
        Where to write; to be published under its final name by the caller.
    pool : Pool
        Writes shards, and reads them back.
    progress : Progress

    Returns
    -------
    Decisions
        As the ledger has them: with a reason on every kept event that could not be copied whole.

    Raises
    ------
    OutputError
        If the disk is full or the path cannot be written.
    VerificationError
        If a file does not read back as it was written.
    """
    _create(plan, store, columns=kept_columns(plan), events=plan.reduction.kept)
    if plan.audit.kept.size:
        _create(plan, store / AUDIT_GROUP, columns=audit_columns(plan), events=plan.audit.kept)
    write = copy_shard if plan.reduction.copies_tiles else encode_shard
    work = pool.map("reduce", write, plan.jobs(store), rescue=shard_rescue(write))
    written = [
        shard for _, shard in tracked(work, stage="reduce", total=plan.n_shards, progress=progress)
    ]
    holes = sorted(event for shard in written for event in shard.holes)
    decisions = plan.decisions.with_damage(np.array(holes, np.int64))
    write_table(store, LEDGER_GROUP, ledger_table(decisions))
    if plan.conditions is not None:
        write_table(store, CONDITIONS_GROUP, conditions_table(plan.conditions))
    write_manifest(store, _manifest(plan, store, written, pool=pool, progress=progress))
    return decisions


def _create(
    plan: FilterPlan, store: Path, *, columns: xr.Dataset, events: NDArray[np.int64]
) -> None:
    """Write all of a store but its frames; the sample is a run store within the store."""
    truth = None if plan.run.truth is None else select_events(plan.run.truth, events)
    create_store(store, run=plan.run, layout=plan.layout, columns=columns, truth=truth)


def _manifest(
    plan: FilterPlan, store: Path, written: list[ShardWritten], *, pool: Pool, progress: Progress
) -> Manifest:
    """Read every staged file back and take down what the output consists of."""
    sweep_partial(store)
    expected = {shard.path: shard.sha256 for shard in written}
    files = sorted(str(p.relative_to(store)) for p in store.rglob("*") if p.is_file())
    jobs = [
        PublishJob(store=str(store), path=path, sha256=expected.get(path, "")) for path in files
    ]
    work = pool.map("publish", publish_file, jobs)
    records = [
        record for _, record in tracked(work, stage="publish", total=len(jobs), progress=progress)
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
        hits=plan.decisions.count(Decision.HIT),
        undecided=plan.decisions.count(Decision.UNDECIDED),
        rejected=plan.decisions.count(Decision.REJECT),
        files=tuple(sorted(records, key=lambda record: record.path)),
    )
