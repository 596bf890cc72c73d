"""From scores to a plan: the threshold, decisions, the drift gate, and which event goes where."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sfxreduce.audit_sample import AUDIT_SHARE, check_share, draw_sample
from sfxreduce.calibrate import Promise
from sfxreduce.cluster import Pool
from sfxreduce.conditions import Conditioned
from sfxreduce.decide import Reason, decide
from sfxreduce.errors import UsageError
from sfxreduce.gate import check_drift, fall_back
from sfxreduce.geometry import Window
from sfxreduce.io.layout import choose_layout
from sfxreduce.io.readers.zarr import ZarrFrames
from sfxreduce.judging import closed_from, method_for
from sfxreduce.notes import NO_NOTES, Notes
from sfxreduce.plan import plan_reduction
from sfxreduce.progress import Progress, silent
from sfxreduce.reduce import FilterPlan
from sfxreduce.run import Run
from sfxreduce.scorer import Scorer
from sfxreduce.seen import odd_events

__all__ = ["Wanted", "plan_scored"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the decisions depend on besides the run and its scorer; see `run_filter`.

    Parameters
    ----------
    threshold : float or None
    promise : Promise
    drift : bool
    audit_share : float

    Raises
    ------
    UsageError
        If the threshold or the share is no such number.
    """

    threshold: float | None = None
    promise: Promise = field(default_factory=Promise)
    drift: bool = True
    audit_share: float = AUDIT_SHARE

    def __post_init__(self) -> None:
        check_share(self.audit_share)
        given = self.threshold
        if given is not None and not abs(given) <= float(np.finfo(np.float32).max):
            raise UsageError(f"expected --threshold to be a finite number, found {given}")


def plan_scored(
    run: Run,
    rows: NDArray[np.void],
    *,
    seen: Run,
    scorer: Scorer,
    wanted: Wanted,
    pool: Pool,
    notes: Notes = NO_NOTES,
    progress: Progress = silent,
) -> FilterPlan:
    """Decide on events that are scored, and plan the output.

    Parameters
    ----------
    run : Run
    rows : ndarray
        Shape (event,), dtype `sfxreduce.look.SCORE_DTYPE`.
    seen : Run
        The run as the scorer sees it.
    scorer : Scorer
    wanted : Wanted
    pool : Pool
        Looks for drift.
    notes : Notes
        What was seen already, and where to note more.
    progress : Progress
    """
    closed = closed_from(scorer, wanted.threshold, wanted.promise)
    method = method_for(seen, scorer, wanted.threshold, wanted.promise, scores=rows["score"])
    odd = odd_events(seen, scorer)
    # Of an event without an image there is nothing that could be a hole.
    holes = np.where(odd & Reason.NO_IMAGE, np.uint32(Reason.DATA_HOLE), np.uint32(0))
    decisions = replace(
        decide(rows["score"], (rows["reason"] & ~holes) | odd, threshold=method.threshold),
        event_class=rows["class"],
        tiles=rows["tiles"],
    )
    if wanted.drift:
        found = check_drift(seen, scorer, decisions, closed_from=closed, pool=pool)
        method = replace(method, drift=found)
    if method.drift.alarms:
        decisions = fall_back(seen, decisions, pool=pool, notes=notes, progress=progress)
    judge = method.model_sha256 or f"{method.scorer}, {scorer.settings}"
    sample = draw_sample(decisions, share=wanted.audit_share, judge=judge)
    own = run.source.layout if isinstance(run.source, ZarrFrames) else None
    layout = own or choose_layout(
        run.detector.frame_shape,
        dtype=np.dtype(run.source.dtype),
        boxes=Window.centre(run.detector).boxes(run.detector),
    )
    reduction, audit = (
        plan_reduction(
            events,
            n_events=run.n_events,
            events_per_shard=layout.events_per_shard,
            copies_tiles=own is not None,
        )
        for events in (decisions.kept, sample)
    )
    return FilterPlan(
        run=run,
        method=method,
        decisions=decisions.with_sample(sample),
        layout=layout,
        reduction=reduction,
        audit=audit,
        conditions=seen.source.found if isinstance(seen.source, Conditioned) else None,
    )
