"""A model that goes on learning from one run, without anybody labelling a frame.

A sample of the run is labelled by the peak finder. Half of it is learned from, together with new
simulated events of the experiments the model knows, lest it forget what streaks and rings look
like. A quarter chooses how far to go from the old network to the new one, and the last quarter
judges: if it finds the new network worse, the old one stays. Either way the threshold must then
keep what is promised of the run's own hits too, and the run's frames belong to what the model was
calibrated on.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.cluster.pool import Progress, silent, tracked
from sfxreduce.decisions.threshold import Promise, binomial_threshold
from sfxreduce.errors import LabelError, ModelError, SchemaError
from sfxreduce.quality.frame_statistics import envelope_of
from sfxreduce.run.labels import Label
from sfxreduce.run.run import Run
from sfxreduce.scorers.cnn.model import CALIBRATION, USUAL, USUAL_FIRST, Model, TrainingRun
from sfxreduce.scorers.cnn.on_torch import load_network
from sfxreduce.scorers.cnn.patches.candidates import CandidateFinder
from sfxreduce.scorers.cnn.patches.network import PatchNetwork, patch_logits
from sfxreduce.simulate.experiments import EXPERIMENTS
from sfxreduce.simulate.run import simulate_run
from sfxreduce.train.card import model_card
from sfxreduce.train.patches.candidates import PatchSet, read_patches
from sfxreduce.train.patches.interpolate import Judged, Tried, best_between, margin_of
from sfxreduce.train.patches.peak_labels import HIT_AT_LEAST, MISS_AT_MOST, SeenEvents, see_events
from sfxreduce.train.patches.simulated import SEED, as_seen
from sfxreduce.train.patches.train import ADAPT, train_patches

__all__ = ["SAMPLE", "Adapted", "adapt", "needs"]

SAMPLE = 400
"""Events of the run that are looked at, unless the user says otherwise."""

_FEWEST = 3
"""Fewest hits, and misses, to choose by and to judge by; twice as many are learned from. So a run
of 100 events at a hit rate of 15 % has enough of both."""
FEWEST_CLEAR = 4 * _FEWEST
"""Fewest clear hits in the sample, and fewest clear misses."""
_REHEARSED = 24
# A peak of the peak finder is not learned if the old network gives it less than this logit.
_UNLIKELY = -2.0
_ENVELOPE_FRAMES = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapted:
    """The new model, and what became better.

    Parameters
    ----------
    share : float
        How far it went from the old network (0) to the one that learned from the run (1).
    cpu_seconds : float
        Of this process and the workers.
    """

    model: Model
    share: float
    before: Judged
    after: Judged
    cpu_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Everything but the numbers of the network."""
        sample = self.model.config.provenance.runs[-1]
        return {
            "adapted": self.share > 0,
            "share": self.share,
            "events_labelled": sample.hits + sample.misses,
            "hits": sample.hits,
            "misses": sample.misses,
            "maybe": sample.unlabelled,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "cpu_seconds": round(self.cpu_seconds, 1),
        }


def needs(run: Run, *, sample: int | None = None) -> str:
    """What `adapt` needs of a run, in one sentence to be read before it starts.

    Raises
    ------
    LabelError
        If the run or the sample is too small to have it.
    """
    n_seen = min(sample or SAMPLE, run.n_events)
    wanted = (
        f"{FEWEST_CLEAR} clear hits ({HIT_AT_LEAST} peaks or more) and {FEWEST_CLEAR} clear misses "
        f"({MISS_AT_MOST} or fewer) by the peak finder"
    )
    if n_seen < 2 * FEWEST_CLEAR:
        raise LabelError(
            f"{run.path}: expected {wanted}, found {n_seen} events; pass a larger --sample, or "
            "another run"
        )
    gain = run.detector.adu_per_photon
    return (
        f"needs {wanted} among {n_seen:,} of {run.n_events:,} whole frames, and the gain, "
        f"{f'{gain:g} ADU per photon' if _is_gain(gain) else 'to be measured on frames'}; refuses "
        "before it trains if they are not there"
    )


def adapt(
    run: Run,
    *,
    start: Model,
    sample: int | None = None,
    seed: int = 0,
    pool: Pool,
    progress: Progress = silent,
) -> Adapted:
    """Let a model go on learning from a run, and choose its threshold anew.

    Parameters
    ----------
    start : Model
        With the patch network.
    sample : int, optional
        Events to look at, spread evenly over the run; `SAMPLE` if not given.
    pool : Pool
        Where frames are looked at.

    Raises
    ------
    ModelError
        If the model has another network.
    LabelError
        If the sample has too few clear hits or misses.
    SchemaError
        If the gain is neither known nor can be measured.
    """
    _check(start)
    needs(run, sample=sample)
    started = time.process_time()
    seen = _sampled(run, start, sample or SAMPLE, pool=pool, progress=progress)
    parts = _parts(seen, run)
    network = cast("PatchNetwork", load_network(start))
    old = Tried.of(network, start.config.pooling, seen, start)
    agreed = _agreed(old, seen, start.config.threshold)
    known, elsewhere = _rehearsal(start, pool=pool, progress=progress)
    own = np.isin(agreed.event_of_candidate, parts["learn"])
    taught = np.where(own, agreed.patches.snr, np.float32(np.nan))
    sets = [replace(agreed.patches, snr=taught), *known]
    new = train_patches(sets, recipe=ADAPT, seed=seed, start=old.network, progress=progress)
    best = best_between(old, new, agreed, parts["choose"], start)
    judge = parts["judge"]
    rejected = int(np.count_nonzero(old.split(seen, judge)[1] < start.config.threshold))
    more_lost = best.lost_at(seen, judge, rejected) > old.lost_at(seen, judge, rejected)
    if more_lost or margin_of(best, seen, judge) < margin_of(old, seen, judge):
        best = old
    model = _recalibrated(start, best, seen, parts, run)
    return Adapted(
        model=model,
        share=best.share,
        before=old.judged(seen, judge, start.config.threshold, rejected),
        after=best.judged(seen, judge, model.config.threshold, rejected),
        cpu_seconds=time.process_time() - started + seen.worker_seconds + elsewhere,
    )


def _check(start: Model) -> None:
    """Refuse a model that cannot go on learning."""
    if start.config.architecture != "patches" or not start.hit_scores.size:
        raise ModelError(
            "train: expected a model with the patch network and its calibrated hits to start from, "
            f"found architecture '{start.config.architecture}' with {start.hit_scores.size} hits; "
            "pass --from default"
        )


def _sampled(run: Run, start: Model, sample: int, *, pool: Pool, progress: Progress) -> SeenEvents:
    """Candidates of events spread evenly over a run, through the window of a model."""
    own = as_seen(run)
    if not _is_gain(own.detector.adu_per_photon):
        raise SchemaError(
            f"{run.path}: expected the gain in ADU per photon, found none in the run, nor single "
            "photons to measure it by; store it with the run (in CXI: detector_1/adu_per_photon)"
        )
    events = np.unique(np.linspace(0, run.n_events - 1, min(sample, run.n_events)).astype(int))
    seen = see_events(
        own,
        events.tolist(),
        candidates=start.config.candidates,
        pooling=start.config.pooling,
        pool=pool,
        progress=progress,
    )
    return replace(seen, patches=seen.patches.within(start.config.window.columns(own.detector)))


def _parts(seen: SeenEvents, run: Run) -> dict[str, NDArray[np.int64]]:
    """Events to learn from, to choose by and to judge by; each with clear hits and misses."""
    parts: dict[str, list[NDArray[np.int64]]] = {"learn": [], "choose": [], "judge": []}
    for label in Label:
        own = np.flatnonzero(seen.label == label)
        if label is not Label.MAYBE and own.size < FEWEST_CLEAR:
            raise LabelError(
                f"{run.path}: expected at least {FEWEST_CLEAR} clear hits and as many misses by "
                f"the peak finder, found {np.count_nonzero(seen.label == Label.HIT)} and "
                f"{np.count_nonzero(seen.label == Label.MISS)} in {seen.label.size:,} of "
                f"{run.n_events:,} events; {_way_out(own.size, seen.label.size, run.n_events)}"
            )
        turn = np.arange(own.size) % 4
        parts["learn"].append(own[turn % 2 == 0])
        parts["choose"].append(own[turn == 1])
        parts["judge"].append(own[turn == 3])
    return {name: np.concatenate(of_label) for name, of_label in parts.items()}


def _way_out(n_clear: int, n_seen: int, n_events: int) -> str:
    """What to do about too few events with a label: how many to look at, if the run has so many."""
    # Twice as many as should do: at 24 expected the number varies by 5, and 12 are enough.
    wanted = -(-2 * FEWEST_CLEAR * n_seen // n_clear) if n_clear else math.inf
    if wanted <= n_events:
        return f"pass --sample {wanted}"
    return f"pass --sample {n_events}, or another run" if n_seen < n_events else "give another run"


def _is_gain(adu_per_photon: float) -> bool:
    return math.isfinite(adu_per_photon) and adu_per_photon > 0


def _agreed(old: Tried, seen: SeenEvents, threshold: float) -> SeenEvents:
    """Hits on which the peak finder and the old network agree, and whatever the network rejects.

    The peak finder takes rings for crystals. It must not teach that, and a new network that falls
    for what the old one rejects must not be chosen.
    """
    rejected = old.score < threshold
    label = np.where(rejected, Label.MISS, Label.MAYBE)
    label[~rejected & (seen.label == Label.HIT)] = Label.HIT
    snr = seen.patches.snr.copy()
    snr[(label != seen.label)[seen.event_of_candidate]] = np.nan
    doubtful = patch_logits(old.network, seen.patches.found) < _UNLIKELY
    snr[(snr > 0) & doubtful] = np.nan
    return replace(seen, patches=replace(seen.patches, snr=snr), label=label.astype(np.int8))


def _rehearsal(start: Model, *, pool: Pool, progress: Progress) -> tuple[list[PatchSet], float]:
    """Simulate new events of what a model has learned from; CPU seconds of other processes."""
    learned = {run.experiment for run in start.config.provenance.runs}
    names = [name for name in EXPERIMENTS if name in learned]
    look = partial(_rehearsed, finder=start.config.candidates)
    work = pool.map("rehearse", look, names)
    found = dict(tracked(work, stage="rehearse", total=len(names), progress=progress))
    seconds = sum(taken for _, taken, process in found.values() if process != os.getpid())
    return [found[number][0] for number in sorted(found)], seconds


def _rehearsed(name: str, *, finder: CandidateFinder) -> tuple[PatchSet, float, int]:
    """Candidates of one experiment, and what they took: CPU seconds, and of which process."""
    started = time.process_time()
    run = simulate_run(name, n_events=_REHEARSED, hit_rate=0.5, seed=SEED + 3)
    found = read_patches(as_seen(run), finder=finder)
    return found, time.process_time() - started, os.getpid()


def _and_own(groups: NDArray[np.int32], n_known: int, n_own: int) -> NDArray[np.int32]:
    """Experiments of known events, and those of the run as one more."""
    known = groups if groups.size == n_known else np.zeros(n_known, np.int32)
    return np.append(known, np.full(n_own, known.max(initial=-1) + 1, np.int32))


def _recalibrated(
    start: Model, best: Tried, seen: SeenEvents, parts: dict[str, NDArray[np.int64]], run: Run
) -> Model:
    """The model with the network that was chosen; the run's own hits count for its threshold."""
    hits, _ = best.split(seen, parts["judge"])
    hits_most, misses = best.split(seen, parts["judge"], most=True)
    hit_scores = np.concatenate([start.hit_scores, hits])
    own = np.full(hits.size, start.hit_groups.max() + 1, np.int32)
    groups = np.concatenate([start.hit_groups, own])
    reference = start.reference
    seen_range = envelope_of(seen.statistics[:: -(-len(seen.statistics) // _ENVELOPE_FRAMES)])
    envelope = np.stack(
        [
            np.fmin(reference.envelope[:, 0], seen_range[:, 0]),
            np.fmax(reference.envelope[:, 1], seen_range[:, 1]),
        ],
        axis=1,
    )
    stored: dict[str, NDArray[Any]] = {
        "hit_scores": hit_scores,
        "hit_most": np.concatenate([reference.hit_scores, hits_most]),
        "hit_groups": groups,
        "blank_scores": np.concatenate([reference.blank_scores, misses]),
        "blank_groups": _and_own(reference.blank_groups, reference.blank_scores.size, misses.size),
        "usual_shape": np.array([reference.usual_shape], np.float32),
        "envelope": envelope.astype(np.float32),
    }
    chosen = binomial_threshold(hit_scores, promise=Promise(), groups=groups)
    hit = (
        f"{start.config.hit}, or an event of {run.name} in which the peak finder counts "
        f"{HIT_AT_LEAST} peaks"
    )
    made = start.config.provenance
    config = replace(
        start.config,
        pooling=best.pooling,
        threshold=max(chosen.value, 0.0),
        hit=hit,
        reliability=(),  # measured on other scores
        provenance=replace(
            made,
            recipe=asdict(ADAPT) | {"share": best.share},
            labels=f"{made.labels}; in {run.name} the peak finder says: a hit from {HIT_AT_LEAST} "
            f"peaks on, a miss up to {MISS_AT_MOST}",
            threshold=chosen.sentence(hit=hit),
            runs=(*made.runs, TrainingRun.of(run, seen.label, "adaptation")),
        ),
    )
    weights = {name: value.numpy() for name, value in best.network.state_dict().items()}
    weights |= {f"{CALIBRATION}{name}": array for name, array in stored.items()}
    # What is usual lies in what stands out, which does not depend on the network.
    stays = ("class_weight", "class_bias", "peaks")
    kept = (*USUAL, *USUAL_FIRST, *(f"{CALIBRATION}{name}" for name in stays))
    weights |= {name: start.weights[name] for name in kept if name in start.weights}
    card = model_card(config, title=f"Hit finder that has seen {run.name}")
    return Model(config=config, weights=weights, card=card)
