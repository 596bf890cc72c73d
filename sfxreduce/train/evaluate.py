"""How good a scorer is on runs it has not seen: integer counts first, ratios from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from sfxreduce.cluster import IN_PROCESS, Pool
from sfxreduce.cluster.pool import Progress, silent
from sfxreduce.decisions.decide import Decision
from sfxreduce.decisions.method import Method, threshold_rule
from sfxreduce.errors import LabelError
from sfxreduce.pipeline.filter import decide_run
from sfxreduce.pipeline.stages.conditions import with_conditions
from sfxreduce.pipeline.stages.score import collect_scores, highest_scores
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.run.labels import Label
from sfxreduce.run.run import Run
from sfxreduce.scorers.protocol import Scorer, own_threshold
from sfxreduce.simulate.truth import HIT_PEAKS
from sfxreduce.train.labelling import Labelling, PeakLabelling, true_hits, true_kinds, true_peaks
from sfxreduce.train.metrics import Confusion, confusion, roc_auc

__all__ = ["AXES", "Evaluation", "Figures", "evaluate_model"]

AXES = "rows are the truth (hit, miss), columns the decision (kept, rejected)"
"""How to read every table of this module."""

_RATIOS = (
    "recall",
    "specificity",
    "precision",
    "npv",
    "accuracy",
    "hit_loss",
    "hit_loss_upper95",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Counts of events by truth and decision, and how well scores rank.

    Parameters
    ----------
    roc_auc : float
        NaN without hits or without misses.
    """

    counts: Confusion
    roc_auc: float

    def to_json(self) -> dict[str, Any]:
        """Flat mapping of names to counts and ratios; a ratio without a base is None."""
        ratios = {name: getattr(self.counts, name) for name in _RATIOS} | {"roc_auc": self.roc_auc}
        counts = {name: getattr(self.counts, name) for name in ("tp", "fn", "fp", "tn")}
        # JSON has no NaN.
        return counts | {n: None if math.isnan(x) else x for n, x in ratios.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A scorer judged by labels, and by the truth where it is known.

    Parameters
    ----------
    labelled : Figures
        On the labelled events: the clear cases.
    all_events : Figures, optional
        On every event of the runs whose truth is known; a hit has at least one crystal.
    true_hits : Figures, optional
        Of the same runs, on events with at least `hit_min_peaks` true peaks, which are hits, and
        on those without a crystal. Crystals with fewer peaks are left out.
    by_kind : mapping
        Numbers of events kept and rejected by their true kind.
    n_events, n_unlabelled : int
        All events, and those the labels leave open.
    labels : str
        How events were labelled, in one sentence.
    methods : tuple of Method
        How each run was decided on, and what is promised for it.
    """

    labelled: Figures
    all_events: Figures | None
    true_hits: Figures | None = None
    hit_min_peaks: int = HIT_PEAKS
    by_kind: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    threshold: float
    n_events: int
    n_unlabelled: int
    labels: str
    methods: tuple[Method, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the figures on the labelled events, and below them those on all events."""
        everything = None
        if self.all_events is not None:
            kinds = {
                k: {"kept": kept, "rejected": lost} for k, (kept, lost) in self.by_kind.items()
            }
            everything = self.all_events.to_json() | {"by_kind": kinds}
        claims = [method.claims for method in self.methods]
        return self.labelled.to_json() | {
            "certified": all(claim["certified"] for claim in claims),
            "assurance": claims[0]["assurance"] if len(claims) == 1 else None,
            "runs": claims,
            "threshold": self.threshold,
            "events": self.n_events,
            "labelled": self.n_events - self.n_unlabelled,
            "unlabelled": self.n_unlabelled,
            "labels": self.labels,
            "axes": AXES,
            "all_events": everything,
            "hit_min_peaks": self.hit_min_peaks,
            "true_hits": None if self.true_hits is None else self.true_hits.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Columns:
    """One run's events: score, label, truth."""

    score: NDArray[np.float32]
    label: NDArray[np.int8]
    is_hit: NDArray[np.bool_] | None
    kind: NDArray[np.str_] | None
    n_peaks: NDArray[np.integer] | None


def evaluate_model(
    scorer: Scorer,
    runs: Sequence[Run],
    *,
    threshold: float | None = None,
    hit_min_peaks: int = HIT_PEAKS,
    labelling: Labelling | None = None,
    pool: Pool = IN_PROCESS,
    progress: Progress = silent,
) -> Evaluation:
    """Judge a scorer on runs as `filter` would decide: what is not safe is kept.

    Parameters
    ----------
    scorer : Scorer
        `sfxreduce.scorers.cnn.scorer.CnnScorer` of a model folder, or any other.
    runs : sequence of Run
        None of which the model has learned from.
    threshold : float, optional
        Smallest score of a hit; the scorer's own if not given.
    hit_min_peaks : int
        Fewest true peaks of a hit, where the truth lists them.
    labelling : Labelling, optional
        The peak finder's rule if not given: `sfxreduce.train.labelling.PeakLabelling`.
    pool : Pool
        Where events are scored; in this process if not given.

    Raises
    ------
    LabelError
        If there are no runs, or one whose events cannot be told into hits and misses.
    """
    if not runs:
        raise LabelError("evaluate: expected at least one run, found none; pass --in RUN")
    rule = PeakLabelling() if labelling is None else labelling
    limit = own_threshold(scorer) if threshold is None else threshold
    settings = FilterSettings(scorer=scorer, threshold=threshold)
    columns, methods = [], []
    for run in runs:
        scores, method = _scores(run, settings, limit=limit, pool=pool, progress=progress)
        methods.append(method)
        labels = rule(run, pool=pool, progress=progress)
        columns.append(_with_truth(run, score=scores, label=labels.label))
    score = np.concatenate([c.score for c in columns])
    label = np.concatenate([c.label for c in columns])
    clear = label != Label.MAYBE
    return Evaluation(
        labelled=_figures(score[clear], label[clear] == Label.HIT, limit),
        all_events=_on_all_events(columns, limit),
        true_hits=_on_true_hits(columns, limit, hit_min_peaks),
        hit_min_peaks=hit_min_peaks,
        by_kind=_by_kind(columns, limit),
        threshold=limit,
        n_events=score.size,
        n_unlabelled=int(np.count_nonzero(~clear)),
        labels=rule.sentence,
        methods=tuple(methods),
    )


def _scores(
    run: Run, settings: FilterSettings, *, limit: float, pool: Pool, progress: Progress
) -> tuple[NDArray[np.float32], Method]:
    """Scores of a run, moved so that its own threshold is the limit; NaN where it would be kept."""
    scorer = settings.scorer
    measured = with_conditions(run, scorer, pool=pool)
    rows = collect_scores(measured, scorer, pool=pool, stage="score", progress=progress)
    rule = threshold_rule(
        scorer, threshold=settings.threshold, promise=settings.promise, detector=run.detector
    )
    highest = highest_scores(rows, rule.calibration.first_look)
    chosen = rule.for_run(highest, max_blanks=settings.max_blanks_kept)
    method, decided = decide_run(
        measured, settings, rule, chosen, rows, pool=pool, progress=progress
    )
    own, scores = method.threshold, rows["score"]
    if 0.0 < own < 1.0 and 0.0 < limit < 1.0:
        scores = rule.calibration.level.reduced(scores, float(logit(own) - logit(limit)))
    kept = (decided.decision == Decision.UNDECIDED) | (own <= 0.0)
    return np.where(kept, np.float32(np.nan), scores), method


def _with_truth(run: Run, *, score: NDArray[np.float32], label: NDArray[np.int8]) -> _Columns:
    return _Columns(
        score=score,
        label=label,
        is_hit=true_hits(run),
        kind=true_kinds(run),
        n_peaks=true_peaks(run),
    )


def _figures(score: NDArray[np.float32], is_hit: NDArray[np.bool_], threshold: float) -> Figures:
    """Counts and ranking of some events."""
    return Figures(
        counts=confusion(score, is_hit, threshold=threshold), roc_auc=roc_auc(score, is_hit)
    )


def _on_all_events(columns: Sequence[_Columns], threshold: float) -> Figures | None:
    """Figures over the runs that come with their truth, if there are any."""
    known = [(c.score, c.is_hit) for c in columns if c.is_hit is not None]
    if not known:
        return None
    score, is_hit = (np.concatenate(parts) for parts in zip(*known, strict=True))
    return _figures(score, is_hit, threshold)


def _on_true_hits(columns: Sequence[_Columns], threshold: float, least: int) -> Figures | None:
    """Figures on clear hits and blanks by the truth, if any run lists its peaks."""
    score, is_hit = [], []
    for column in columns:
        if column.is_hit is None or column.n_peaks is None:
            continue
        clear = ~column.is_hit | (column.n_peaks >= least)
        score.append(column.score[clear])
        is_hit.append(column.is_hit[clear])
    return _figures(np.concatenate(score), np.concatenate(is_hit), threshold) if score else None


def _by_kind(columns: Sequence[_Columns], threshold: float) -> dict[str, tuple[int, int]]:
    """Events kept and rejected by their true kind."""
    known = [(c.kind, c.score < threshold) for c in columns if c.kind is not None]
    if not known:
        return {}
    kind, lost = (np.concatenate(parts) for parts in zip(*known, strict=True))
    return {
        name: (
            int(np.count_nonzero((kind == name) & ~lost)),
            int(np.count_nonzero(lost[kind == name])),
        )
        for name in np.unique(kind).tolist()
    }
