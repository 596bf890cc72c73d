"""Another threshold for an output, by the scores in its ledger: no pixel is read for those."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.audit.sample import AUDIT_SHARE
from sfxreduce.cluster import Pool
from sfxreduce.cluster.checkpoints import NO_NOTES, Notes
from sfxreduce.cluster.progress import Progress, silent
from sfxreduce.decisions.method import closed_from
from sfxreduce.decisions.threshold import Promise
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.io.store.manifest import manifest_to_json
from sfxreduce.io.store.schema import AUDIT_GROUP
from sfxreduce.pipeline.filter import plan_scored
from sfxreduce.pipeline.stages.conditions import as_seen
from sfxreduce.pipeline.stages.early_stop import rechecked, reopened
from sfxreduce.pipeline.stages.outputs import Outputs
from sfxreduce.pipeline.stages.overlay import ReusedFrames
from sfxreduce.pipeline.stages.plan import FilterPlan
from sfxreduce.pipeline.stages.publish import make_outputs, pins_of
from sfxreduce.pipeline.stages.reduced import Reduced
from sfxreduce.pipeline.stages.score import collect_scores
from sfxreduce.pipeline.stages.settings import Wanted
from sfxreduce.quality.conditions import Conditioned
from sfxreduce.report.report import Report
from sfxreduce.run.run import Run
from sfxreduce.run.select import select_run
from sfxreduce.scorers.protocol import Scorer

__all__ = ["Reread", "plan_redecide", "redecide_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reread:
    """What had to be read of the source, because the output does not hold it.

    Parameters
    ----------
    events_reopened : int
        Events that were closed early as sure hits, and whose score no longer decides.
    events_rechecked : int
        Events that were seen whole, and that the new threshold may close early as sure hits.
    tiles_read : int
        Tiles that the new scores of both rest on.
    frames_read : int
        Frames in the new output that are not in the old one.
    frames_taken_over : int
        Frames that are: they are copied from there as they are stored.
    """

    events_reopened: int
    events_rechecked: int
    tiles_read: int
    frames_read: int
    frames_taken_over: int

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return asdict(self)


def plan_redecide(
    old: Reduced,
    *,
    against: Run,
    scorer: Scorer,
    pool: Pool,
    threshold: float | None = None,
    promise: Promise | None = None,
    drift: bool = True,
    audit_share: float = AUDIT_SHARE,
    outputs: Outputs | None = None,
    notes: Notes = NO_NOTES,
    progress: Progress = silent,
) -> tuple[FilterPlan, Reread]:
    """Decide on every event of an output's source anew; write nothing.

    What is planned is what `sfxreduce.plan_filter` would plan. Scores come from the output's
    ledger. Pixels are looked at only where a filter run with this threshold would look at more, or
    at fewer, tiles of an event than the ledger's score rests on; and, for a promise, the drift gate
    looks at its few frames again.

    Parameters
    ----------
    against : Run
        Its source.
    scorer : Scorer
        By which it was judged, see `Reduced.scorer`.
    threshold, promise, drift, audit_share
        See `sfxreduce.plan_filter`.
    outputs : Outputs, optional
        Where the results will go.
    notes : Notes
        Scores that are known already, and where to note new ones.

    Raises
    ------
    RefusedError
        If the run is not the output's source, or the scorer not the one that judged it.
    UsageError
        If the threshold or the share is no such number, or outputs and inputs overlap.
    SfxReduceError
        If the pool fails.
    """
    _check(old, against, scorer, outputs)
    wanted = Wanted(
        threshold=threshold, promise=promise or Promise(), drift=drift, audit_share=audit_share
    )
    seen = _as_seen(old, against, scorer, pool)
    closed = closed_from(scorer, wanted.threshold, wanted.promise)
    rows = old.rows()
    opened = reopened(rows, scorer, against.detector, closed_from=closed)
    checked = rechecked(rows, scorer, against.detector, closed_from=closed)
    events = np.flatnonzero(opened | checked)
    if events.size:
        some = select_run(against, events)
        if isinstance(seen.source, Conditioned):
            some = replace(some, source=replace(seen.source, source=some.source))
        # By a name of its own: what is noted of these events is not of the run's batches.
        rows[events] = collect_scores(
            some,
            scorer,
            pool=pool,
            closed_from=closed,
            stage="reopen",
            notes=notes,
            progress=progress,
        )
    plan = plan_scored(
        against,
        rows,
        seen=seen,
        scorer=scorer,
        wanted=wanted,
        pool=pool,
        notes=notes,
        progress=progress,
    )
    planned = np.concatenate([plan.reduction.kept, plan.audit.kept])
    there = np.isin(planned, _events_there(old, plan))
    reread = Reread(
        events_reopened=int(np.count_nonzero(opened)),
        events_rechecked=int(np.count_nonzero(checked)),
        tiles_read=int(rows["tiles"][events].sum()),
        frames_read=int(np.count_nonzero(~there)),
        frames_taken_over=int(np.count_nonzero(there)),
    )
    return _taken_over(old, plan), reread


def redecide_run(
    old: Reduced,
    *,
    against: Run,
    outputs: Outputs,
    scorer: Scorer,
    pool: Pool,
    threshold: float | None = None,
    promise: Promise | None = None,
    drift: bool = True,
    audit_share: float = AUDIT_SHARE,
    progress: Progress = silent,
) -> tuple[Report, Reread]:
    """Make the output that `sfxreduce.filter_run` would make with another threshold.

    Frames that the old output holds are taken over as they are stored; only those of events that
    are kept now and were not before are read from the source. The stores come out the same to the
    byte.

    Parameters
    ----------
    against : Run
        Its source.
    scorer : Scorer
        By which it was judged, see `Reduced.scorer`.
    threshold, promise, drift, audit_share
        See `sfxreduce.filter_run`.

    Raises
    ------
    RefusedError
        If the run is not the output's source, or the scorer not the one that judged it.
    OutputExists
        If an output is already there.
    OutputError
        If an output cannot be written.
    SfxReduceError
        If the pool fails.
    """
    _check(old, against, scorer, outputs)
    wanted = Wanted(
        threshold=threshold, promise=promise or Promise(), drift=drift, audit_share=audit_share
    )
    told: list[Reread] = []

    def plan(notes: Notes) -> FilterPlan:
        made, reread = plan_redecide(
            old,
            against=against,
            scorer=scorer,
            pool=pool,
            threshold=threshold,
            promise=promise,
            drift=drift,
            audit_share=audit_share,
            notes=notes,
            progress=progress,
        )
        told.append(reread)
        return made

    pins = pins_of(against, scorer, wanted) | {"taken over from": _stamp(old)}
    report = make_outputs(against, plan, outputs=outputs, pins=pins, pool=pool, progress=progress)
    return report, told[0]


def _check(old: Reduced, against: Run, scorer: Scorer, outputs: Outputs | None) -> None:
    if outputs is not None:
        outputs.check(against, old.path)
    old.check_source(against)
    old.check_scorer(scorer)


def _as_seen(old: Reduced, run: Run, scorer: Scorer, pool: Pool) -> Run:
    """The run as its scorer saw it: as is stored, or measured again where not all of it is."""
    found = old.conditions() if scorer.adapts else None
    if found is None:
        return as_seen(run, scorer, pool=pool)
    return replace(run, source=Conditioned(source=run.source, found=found))


def _events_there(old: Reduced, plan: FilterPlan) -> NDArray[np.int64]:
    """Events whose frames the old output holds, tiled as the new one will be."""
    if ZarrFrames(path=str(old.path)).layout != plan.layout:
        return np.zeros(0, np.int64)
    there = np.concatenate([old.decisions.kept, old.decisions.sample])
    return there[~np.isin(there, _doubted(old, plan))]


def _doubted(old: Reduced, plan: FilterPlan) -> NDArray[np.int64]:
    """Events that the run is asked for again, because it may say something else each time.

    Of sampled rejects nobody wrote down whether it did.
    """
    if plan.reduction.copies_tiles:
        return old.unstable
    return np.union1d(old.unstable, np.intersect1d(old.decisions.sample, plan.reduction.kept))


def _taken_over(old: Reduced, plan: FilterPlan) -> FilterPlan:
    """The same plan, with tiles from the old output where it has them."""
    stores = [old.path]
    if old.decisions.sample.size:
        stores.append(old.path / AUDIT_GROUP)
    source = ReusedFrames(
        source=plan.run.source,
        stores=tuple(map(str, stores)),
        stamp=_stamp(old),
        layout=plan.layout,
        copies_tiles=plan.reduction.copies_tiles,
        doubted=tuple(_doubted(old, plan).tolist()),
    )
    return replace(
        plan,
        run=replace(plan.run, source=source),
        reduction=replace(plan.reduction, copies_tiles=True),
        audit=replace(plan.audit, copies_tiles=True),
    )


def _stamp(old: Reduced) -> str:
    """Tell one state of an output from another."""
    return str(manifest_to_json(old.manifest)["sha256"])
