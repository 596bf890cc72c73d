"""Every experiment judged by a model that has not seen it, and the model that learns from all.

A model that ships must do well on experiments nobody simulated. The nearest thing to it that can be
measured: leave one experiment out, learn from the others, fix the threshold on the others, and
count what is lost of the one left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cluster.pool import Progress, silent
from sfxreduce.run.window import TileChoice
from sfxreduce.scorers.calibration.probability import ReliabilityBin, reliability_bins
from sfxreduce.scorers.calibration.windows import WindowLoss, smallest_window
from sfxreduce.scorers.cnn.model import USUAL_FIRST, Model
from sfxreduce.scorers.cnn.patches.network import PatchNetwork, patch_logits
from sfxreduce.scorers.cnn.patches.outliers import event_traits
from sfxreduce.scorers.cnn.patches.pooling import Pooling, event_features
from sfxreduce.train.patches.calibrate import calibrated, counted_tiles
from sfxreduce.train.patches.candidates import PatchSet
from sfxreduce.train.patches.classes import (
    ClassHead,
    classes_of_kinds,
    confusion_of,
    fit_head,
    table_of_confusions,
    with_head,
)
from sfxreduce.train.patches.left_out import LeftOut, judge_left_out, reduced_scores, table_of
from sfxreduce.train.patches.looks import ExpectedPeaks, first_look_through
from sfxreduce.train.patches.outliers import fit_usual, table_of_unlike, with_usual
from sfxreduce.train.patches.simulated import SEED, Material
from sfxreduce.train.patches.sizes import OfSize, judge_sizes, table_of_sizes, with_sizes
from sfxreduce.train.patches.train import train_patches
from sfxreduce.train.windows import CHOICES

__all__ = ["Across", "learn_across"]

SHOWS = "a crystal with 2 or more true peaks of signal to noise 5 on the frame"
SPECIFICITY = 0.98
"""At which the weak hits lost through different windows are compared."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Across:
    """What leaving out one experiment at a time gave.

    Parameters
    ----------
    models : mapping of str to Model
        By the experiment it has not seen.
    windows : tuple of WindowLoss
        What fewer tiles would lose, the fewest first; the last one has all of them.
    confusions : tuple of ndarray
        What the class head says of each experiment, by a model that has not seen it.
    sizes : tuple of OfSize
        How small pictures fared, by models that have not seen their experiments.
    traits : mapping of str to ndarray
        What `patches.outliers.event_traits` says of each experiment's judged events.
    shipped : Model
        Learned from all experiments; its threshold rests on the scores of the left-out ones.
    """

    models: Mapping[str, Model]
    judged: tuple[LeftOut, ...]
    windows: tuple[WindowLoss, ...]
    confusions: tuple[NDArray[np.int64], ...]
    sizes: tuple[OfSize, ...]
    traits: Mapping[str, NDArray[np.float64]]
    shipped: Model

    @property
    def tables(self) -> str:
        """What was measured, in Markdown."""
        names = [one.experiment for one in self.judged]
        classes = table_of_confusions(names, self.confusions)
        parts = (
            table_of(self.judged),
            table_of_sizes(self.sizes),
            classes,
            table_of_unlike(self.traits),
        )
        return "\n\n".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Everything but the numbers of the networks."""
        return {
            "experiments": [one.to_json() for one in self.judged],
            "mean_loss": float(np.mean([one.loss for one in self.judged])),
            "worst_loss": max(one.loss for one in self.judged),
            "least_specificity": min(one.specificity for one in self.judged),
            "window": self.shipped.config.window.name,
            "windows": [one.to_json() for one in self.windows],
            "sizes": [asdict(one) for one in self.sizes],
            "class_confusion": [table.tolist() for table in self.confusions],
            "threshold": self.shipped.config.threshold,
            "model_sha256": self.shipped.sha256,
        }


def learn_across(
    material: Sequence[Material], *, window: TileChoice | None = None, progress: Progress = silent
) -> Across:
    """Leave out each experiment in turn, then learn from all.

    Parameters
    ----------
    material : sequence of Material
        At least three: a threshold rests on the others of those learned from.
    window : TileChoice, optional
        The smallest of `CHOICES` that keeps the promise if not given.
    """
    networks, everything = _networks(material, progress)
    of_tiles = {one.name: one.judged.evidence(networks[one.name], Pooling()) for one in material}
    evidence = _evidence(networks, of_tiles, material)
    tried = {w: _left_out(networks, material, of, w) for w, of in evidence.items()}
    curve = tuple(
        _window_loss(window, judged, _weak_loss(models, material, evidence[window]))
        for window, (models, judged) in tried.items()
    )
    window = window or smallest_window(curve)
    models, _ = tried[window]
    whole = calibrated(everything, material, evidence[window], window=window)
    shipped = with_sizes(whole, material, of_tiles)
    parts = {one.name: _Described.of(one, window) for one in material}
    judged = tuple(
        judge_left_out(
            models[one.name], one, evidence[window][one.name], peaks=parts[one.name].peaks
        )
        for one in material
    )
    heads = {
        one.name: _head(networks[one.name], [parts[m.name] for m in material if m is not one])
        for one in material
    }
    traits = {name: part.traits for name, part in parts.items()}
    shown = _reliability(models, material, evidence[window])
    config = replace(shipped.config, curve=curve, shows=SHOWS, reliability=shown)
    head = _head(everything, list(parts.values()))
    shipped = with_head(replace(shipped, config=config), head)
    first = {name: part.first_traits for name, part in parts.items()}
    return Across(
        models={
            name: _with_usual(
                with_head(model, heads[name]), _others(traits, name), _others(first, name)
            )
            for name, model in models.items()
        },
        judged=judged,
        windows=curve,
        confusions=tuple(
            _confusion(heads[one.name], networks[one.name], parts[one.name], one)
            for one in material
        ),
        sizes=judge_sizes(models, material, of_tiles),
        traits=traits,
        shipped=_with_usual(shipped, list(traits.values()), list(first.values())),
    )


def _confusion(
    head: ClassHead, network: PatchNetwork, part: _Described, one: Material
) -> NDArray[np.int64]:
    """What a head says of an experiment that it has not seen."""
    return confusion_of(head, _features(network, part.judged), classes_of_kinds(one.judged_kind))


def _with_usual(
    model: Model, traits: Sequence[NDArray[np.float64]], first: Sequence[NDArray[np.float64]]
) -> Model:
    """The model with what is usual on all tiles, and on the first if these are looked at first."""
    known = with_usual(model, fit_usual(traits))
    if model.config.first_look is None:
        return known
    return with_usual(known, fit_usual(first), names=USUAL_FIRST)


def _networks(
    material: Sequence[Material], progress: Progress
) -> tuple[dict[str, PatchNetwork], PatchNetwork]:
    """Networks by the experiment they have not seen, and one that has seen them all."""
    networks: dict[str, PatchNetwork] = {}
    for done, one in enumerate(material):
        progress("leave out", done, len(material) + 1)
        networks[one.name] = _trained([other for other in material if other is not one])
    everything = _trained(material)
    progress("leave out", len(material) + 1, len(material) + 1)
    return networks, everything


def _evidence(
    networks: Mapping[str, PatchNetwork],
    of_tiles: Mapping[str, NDArray[np.float64]],
    material: Sequence[Material],
) -> dict[TileChoice, dict[str, ExpectedPeaks]]:
    """ExpectedPeaks of every experiment's events through each window."""

    def seen(one: Material, window: TileChoice) -> ExpectedPeaks:
        n_tiles, columns = of_tiles[one.name].shape[1], window.columns(one.detector)
        whole = Pooling().pooled(of_tiles[one.name][:, columns], n_tiles=n_tiles)
        look = first_look_through(window)
        if look is None:
            return ExpectedPeaks(whole)
        part = one.judged.within(columns[: look.tiles])
        first = part.evidence(networks[one.name], Pooling())
        return ExpectedPeaks(whole, Pooling().pooled(first, n_tiles=n_tiles))

    return {window: {one.name: seen(one, window) for one in material} for window in CHOICES}


def _window_loss(window: TileChoice, judged: Sequence[LeftOut], weak_loss: float) -> WindowLoss:
    """What is lost through a window over all experiments."""
    return WindowLoss(
        tiles=window,
        mean_loss=float(np.mean([one.loss for one in judged])),
        worst_loss=max(one.loss for one in judged),
        weak_loss=weak_loss,
        least_specificity=min(one.rejected / one.blanks for one in judged),
    )


def _weak_loss(
    models: Mapping[str, Model],
    material: Sequence[Material],
    evidence: Mapping[str, ExpectedPeaks],
) -> float:
    """Share of the weak hits lost where as many blanks of all experiments pass for every window.

    At the windows' own thresholds they could not be compared: the lowest hit decides about these.
    """
    reduced = {one.name: reduced_scores(models[one.name], evidence[one.name]) for one in material}
    blanks = np.concatenate([reduced[one.name][one.is_blank] for one in material])
    weak = np.concatenate([reduced[one.name][one.is_weak] for one in material])
    return float(np.mean(weak <= np.quantile(blanks, SPECIFICITY))) if weak.size else 0.0


def _left_out(
    networks: Mapping[str, PatchNetwork],
    material: Sequence[Material],
    evidence: Mapping[str, ExpectedPeaks],
    window: TileChoice,
) -> tuple[dict[str, Model], tuple[LeftOut, ...]]:
    """Models by the experiment they have not seen, and how each of these fared."""
    models = {}
    for one in material:
        others = [other for other in material if other is not one]
        models[one.name] = calibrated(networks[one.name], others, evidence, window=window)
    judged = tuple(judge_left_out(models[m.name], m, evidence[m.name]) for m in material)
    return models, judged


def _reliability(
    models: Mapping[str, Model],
    material: Sequence[Material],
    evidence: Mapping[str, ExpectedPeaks],
) -> tuple[ReliabilityBin, ...]:
    """Probabilities of every experiment, by a model and a calibration that have not seen it."""
    told, truth = [], []
    for one in material:
        calibration = models[one.name].probability
        if calibration is not None:
            told.append(calibration(reduced_scores(models[one.name], evidence[one.name])))
            truth.append(one.has_crystal)
    return tuple(
        b for b in reliability_bins(np.concatenate(told), np.concatenate(truth)) if b.n_events
    )


class _Described(NamedTuple):
    """Events of an experiment on the tiles that tell their class, and what they are."""

    learned: PatchSet
    judged: PatchSet
    learned_class: NDArray[np.uint8]
    traits: NDArray[np.float64]
    first_traits: NDArray[np.float64]

    @classmethod
    def of(cls, one: Material, choice: TileChoice) -> _Described:
        columns = counted_tiles(one, choice)
        judged = one.judged.within(columns)
        return cls(
            learned=one.learned[0].within(columns),
            judged=judged,
            learned_class=classes_of_kinds(one.learned_kind),
            traits=_traits(one.judged.within(choice.columns(one.detector))),
            first_traits=_traits(judged),
        )

    @property
    def peaks(self) -> NDArray[np.int16]:
        """Peaks of the judged events by the conventional rule, shape (event,)."""
        return self.judged.peaks.number


def _traits(events: PatchSet) -> NDArray[np.float64]:
    """Traits of events, shape (event, trait)."""
    found = events.found
    return event_traits(found.take(found.sharp), events.window, n_events=events.n_events)


def _others(traits: Mapping[str, NDArray[np.float64]], name: str) -> list[NDArray[np.float64]]:
    return [of for other, of in traits.items() if other != name]


def _head(network: PatchNetwork, parts: Sequence[_Described]) -> ClassHead:
    """Head that has learned from the events of some experiments as they are."""
    features = [_features(network, one.learned) for one in parts]
    return fit_head(np.concatenate(features), np.concatenate([one.learned_class for one in parts]))


def _features(network: PatchNetwork, events: PatchSet) -> NDArray[np.float64]:
    logits = patch_logits(network, events.found)
    return event_features(logits, events.found, events.window, n_events=events.n_events)


def _trained(material: Sequence[Material]) -> PatchNetwork:
    return train_patches([s for one in material for s in one.learned], seed=SEED)
