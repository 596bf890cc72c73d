"""Every experiment judged by a model that has not seen it, and the model that learns from all.

A model that ships must do well on experiments nobody simulated. The nearest thing to it that can be
measured: leave one experiment out, learn from the others, fix the threshold on the others, and
count what is lost of the one left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.bounds import share_upper
from sfxreduce.calibrate import Promise, binomial_threshold
from sfxreduce.drift import envelope_of, usual_shape
from sfxreduce.level import level_rule
from sfxreduce.progress import Progress, silent
from sfxreduce.scorers.classes import event_features
from sfxreduce.scorers.patches import PatchNetwork, patch_logits
from sfxreduce.scorers.pooling import Pooling
from sfxreduce.scorers.weights import (
    CALIBRATION,
    Model,
    ModelConfig,
    Provenance,
    TrainingRun,
)
from sfxreduce.simulate.truth import HIT_PEAKS
from sfxreduce.train.classes import (
    ClassHead,
    classes_of_kinds,
    confusion_of,
    fit_head,
    table_of_confusions,
)
from sfxreduce.train.material import SEED, Material
from sfxreduce.train.patch_loop import PATCHES, train_patches
from sfxreduce.train.patch_set import PatchSet

__all__ = [
    "HIT",
    "Across",
    "LeftOut",
    "WindowLoss",
    "judge_left_out",
    "learn_across",
    "table_of",
    "windows_table",
]

HIT = f"a crystal with {HIT_PEAKS} or more true peaks of signal to noise 5 on the frame"
WEAK_PEAKS = 5
"""Fewest true peaks of the weak hits that are counted apart."""

WINDOWS = (1, 5, 9, 25, 0)
"""Numbers of tiles that are tried; 0 for all."""

MEAN_LOSS, WORST_LOSS, LEAST_SPECIFICITY = 0.01, 0.03, 0.95
"""What a window must keep over the experiments. Few tiles show few peaks: the threshold that keeps
the hits then lets more blanks through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """How an experiment fared with a model that has not seen it.

    Parameters
    ----------
    experiment : str
    hits, lost : int
        Events with 10 or more true peaks, and those of them below the threshold.
    loss_upper95 : float
        One-sided upper bound on the share lost.
    weak, weak_lost : int
        The same of events with 5 to 9 true peaks.
    blanks, rejected : int
        Events without a crystal, and those of them below the threshold.
    """

    experiment: str
    hits: int
    lost: int
    loss_upper95: float
    weak: int
    weak_lost: int
    blanks: int
    rejected: int

    @property
    def loss(self) -> float:
        """Share of the hits that is lost."""
        return self.lost / self.hits

    @property
    def specificity(self) -> float:
        """Share of the blanks that is rejected."""
        return self.rejected / self.blanks

    def to_json(self) -> dict[str, Any]:
        """Counts and ratios by name."""
        return asdict(self) | {"loss": self.loss, "specificity": self.specificity}


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowLoss:
    """What is lost if only the tiles nearest to the centre are looked at.

    Parameters
    ----------
    tiles : int
        Of 350 x 350 pixels; 0 for all tiles of the picture.
    judged : tuple of LeftOut
        By models whose threshold was chosen for that window.
    """

    tiles: int
    judged: tuple[LeftOut, ...]

    @property
    def mean_loss(self) -> float:
        """Share of hits lost, averaged over the experiments."""
        return float(np.mean([one.loss for one in self.judged]))

    @property
    def worst_loss(self) -> float:
        """Share of hits lost of the experiment that fares worst."""
        return max(one.loss for one in self.judged)

    @property
    def least_specificity(self) -> float:
        """Share of blanks rejected of the experiment that fares worst."""
        return min(one.specificity for one in self.judged)

    @property
    def keeps_promise(self) -> bool:
        """Whether it loses little of every experiment and rejects blanks of every experiment."""
        return (
            self.mean_loss <= MEAN_LOSS
            and self.worst_loss <= WORST_LOSS
            and self.least_specificity >= LEAST_SPECIFICITY
        )

    def to_json(self) -> dict[str, Any]:
        """Ratios by name."""
        return {
            "tiles": self.tiles,
            "mean_loss": self.mean_loss,
            "worst_loss": self.worst_loss,
            "least_specificity": self.least_specificity,
            "keeps_promise": self.keeps_promise,
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Across:
    """What leaving out one experiment at a time gave.

    Parameters
    ----------
    models : mapping of str to Model
        By the experiment it has not seen.
    judged : tuple of LeftOut
    windows : tuple of WindowLoss
        The same with fewer tiles, the fewest first; the last one has all of them.
    confusions : tuple of ndarray
        What the class head says of each experiment, by a model that has not seen it.
    shipped : Model
        Learned from all experiments; its threshold rests on the scores of the left-out ones.
    """

    models: Mapping[str, Model]
    judged: tuple[LeftOut, ...]
    windows: tuple[WindowLoss, ...]
    confusions: tuple[NDArray[np.int64], ...]
    shipped: Model

    @property
    def tables(self) -> str:
        """What was measured, in Markdown."""
        names = [one.experiment for one in self.judged]
        classes = table_of_confusions(names, self.confusions)
        return f"{table_of(self.judged)}\n\n{windows_table(self.windows)}\n\n{classes}"

    def to_json(self) -> dict[str, Any]:
        """Everything but the numbers of the networks."""
        return {
            "experiments": [one.to_json() for one in self.judged],
            "mean_loss": self.windows[-1].mean_loss,
            "worst_loss": self.windows[-1].worst_loss,
            "least_specificity": self.windows[-1].least_specificity,
            "windows": [one.to_json() for one in self.windows],
            "class_confusion": [table.tolist() for table in self.confusions],
            "threshold": self.shipped.config.threshold,
            "model_sha256": self.shipped.sha256,
        }


def learn_across(material: Sequence[Material], *, progress: Progress = silent) -> Across:
    """Leave out each experiment in turn, then learn from all.

    Parameters
    ----------
    material : sequence of Material
        At least three: a threshold rests on the others of those learned from.
    progress : Progress
    """
    networks: dict[str, PatchNetwork] = {}
    for done, one in enumerate(material):
        progress("leave out", done, len(material) + 1)
        networks[one.name] = _trained([other for other in material if other is not one])
    everything = _trained(material)
    progress("leave out", len(material) + 1, len(material) + 1)
    of_tiles = {one.name: one.evidence(networks[one.name], Pooling()) for one in material}
    tried = {n: _left_out(networks, material, _sums(of_tiles, n), n) for n in WINDOWS}
    windows = tuple(WindowLoss(tiles=n, judged=judged) for n, (_, judged) in tried.items())
    heads = {
        one.name: _head(networks[one.name], [other for other in material if other is not one])
        for one in material
    }
    heads[""] = _head(everything, material)
    chosen = 1 if windows[0].keeps_promise else 0
    models, judged = tried[chosen]
    shipped = _calibrated(everything, material, _sums(of_tiles, chosen), tiles=chosen)
    return Across(
        models={name: with_head(model, heads[name]) for name, model in models.items()},
        judged=judged,
        windows=windows,
        confusions=tuple(
            confusion_of(
                heads[one.name],
                _features(networks[one.name], one.judged),
                classes_of_kinds(one.judged_kind),
            )
            for one in material
        ),
        shipped=with_head(shipped, heads[""]),
    )


def _sums(of_tiles: Mapping[str, NDArray[np.float64]], n: int) -> dict[str, NDArray[np.float64]]:
    """Evidence of events in the `n` tiles nearest to the centre; in all if `n` is 0."""
    return {name: of[:, : n or None].sum(axis=1) for name, of in of_tiles.items()}


def _left_out(
    networks: Mapping[str, PatchNetwork],
    material: Sequence[Material],
    evidence: Mapping[str, NDArray[np.float64]],
    tiles: int,
) -> tuple[dict[str, Model], tuple[LeftOut, ...]]:
    """Models by the experiment they have not seen, and how each of these fared."""
    models = {}
    for one in material:
        others = [other for other in material if other is not one]
        models[one.name] = _calibrated(networks[one.name], others, evidence, tiles=tiles)
    judged = tuple(judge_left_out(models[m.name], m, evidence[m.name]) for m in material)
    return models, judged


def judge_left_out(model: Model, one: Material, evidence: NDArray[np.float64]) -> LeftOut:
    """Count what a model loses of an experiment it has not seen.

    Parameters
    ----------
    model : Model
    one : Material
    evidence : ndarray
        Of the model's network, shape (event,).
    """
    config = model.config
    raw = config.pooling.probability(evidence)
    low = config.level.reduced(raw, config.level.move(raw)) < config.threshold
    weak = ~one.is_hit & ~one.is_blank & (one.n_peaks >= WEAK_PEAKS)
    lost, hits = int(np.count_nonzero(low & one.is_hit)), int(one.is_hit.sum())
    return LeftOut(
        experiment=one.name,
        hits=hits,
        lost=lost,
        loss_upper95=share_upper(lost, hits, confidence=0.95),
        weak=int(weak.sum()),
        weak_lost=int(np.count_nonzero(low & weak)),
        blanks=int(one.is_blank.sum()),
        rejected=int(np.count_nonzero(low & one.is_blank)),
    )


def table_of(judged: Sequence[LeftOut]) -> str:
    """Table in Markdown: one experiment a line."""
    rows = [
        f"| {one.experiment} | {one.hits} | {one.lost} | {one.loss_upper95:.1%} | "
        f"{one.weak_lost} of {one.weak} | {one.blanks} | {one.specificity:.3f} |"
        for one in judged
    ]
    head = (
        "Every experiment judged by a network and a threshold that have not seen it. Hits have\n"
        f"{HIT_PEAKS} or more true peaks of signal to noise 5; the bound on their loss is "
        "one-sided, 95 %.\n\n"
        "| experiment left out | hits | lost | loss below | lost of 5 to 9 peaks | blanks | "
        "specificity |\n|---|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(rows)


def windows_table(windows: Sequence[WindowLoss]) -> str:
    """Table in Markdown: what fewer tiles would lose."""
    rows = [
        f"| {one.tiles or 'all'} | {one.mean_loss:.1%} | {one.worst_loss:.1%} | "
        f"{one.least_specificity:.3f} | {'yes' if one.keeps_promise else 'no'} |"
        for one in windows
    ]
    head = (
        "The same with fewer tiles of 350 x 350 pixels, those nearest to the centre, and a\n"
        "threshold chosen for them; a model looks at one tile or at all. Wanted: on average at\n"
        f"most {MEAN_LOSS:.0%} of the hits lost, of no experiment more than {WORST_LOSS:.0%}, and "
        f"{LEAST_SPECIFICITY:.0%} of the blanks of each rejected.\n\n"
        "| tiles | hits lost | of the worst experiment | least specificity | kept |\n"
        "|---|---|---|---|---|\n"
    )
    return head + "\n".join(rows)


def with_head(model: Model, head: ClassHead) -> Model:
    """The same model with a class head."""
    arrays = {"class_weight": head.weight, "class_bias": head.bias}
    stored = {f"{CALIBRATION}{name}": array.astype(np.float32) for name, array in arrays.items()}
    return replace(model, weights={**model.weights, **stored})


def _head(network: PatchNetwork, material: Sequence[Material]) -> ClassHead:
    """Head that has learned from the events of a material as they are."""
    features = [_features(network, one.learned[0]) for one in material]
    classes = [classes_of_kinds(one.learned_kind) for one in material]
    return fit_head(np.concatenate(features), np.concatenate(classes))


def _features(network: PatchNetwork, events: PatchSet) -> NDArray[np.float64]:
    return event_features(
        patch_logits(network, events.found),
        events.found,
        n_events=events.n_events,
        n_tiles=events.n_tiles,
    )


def _trained(material: Sequence[Material]) -> PatchNetwork:
    return train_patches([s for one in material for s in one.learned], seed=SEED)


def _calibrated(
    network: PatchNetwork,
    material: Sequence[Material],
    evidence: Mapping[str, NDArray[np.float64]],
    *,
    tiles: int,
) -> Model:
    """A network with a threshold that keeps the promise on every experiment of the material."""
    hits = [evidence[one.name][one.is_hit] for one in material]
    blanks = [evidence[one.name][one.is_blank] for one in material]
    pooling = _fitted(Pooling(), np.concatenate(blanks), np.concatenate(hits))
    raw = {one.name: pooling.probability(evidence[one.name]) for one in material}
    rule = level_rule(list(raw.values()))
    seen = {name: rule.reduced(scores, rule.move(scores)) for name, scores in raw.items()}
    hit_scores = [seen[one.name][one.is_hit] for one in material]
    blank_scores = [seen[one.name][one.is_blank] for one in material]
    groups = np.repeat(np.arange(len(hits), dtype=np.int32), [len(scores) for scores in hits])
    envelope = envelope_of(np.concatenate([one.statistics for one in material]))
    stored: dict[str, NDArray[Any]] = {
        "hit_scores": np.concatenate(hit_scores),
        "hit_groups": groups,
        "blank_scores": np.concatenate(blank_scores),
        "usual_shape": np.array([usual_shape(hit_scores, blank_scores)], np.float32),
        "envelope": envelope.astype(np.float32),
    }
    chosen = binomial_threshold(stored["hit_scores"], promise=Promise(), groups=groups)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    config = ModelConfig(
        architecture="patches",
        window="centre" if tiles == 1 else "full",
        threshold=max(chosen.value, 0.0),
        hit=HIT,
        pooling=pooling,
        level=rule,
        provenance=_provenance(material, chosen.sentence(hit=HIT)),
    )
    return Model(
        config=config,
        weights=weights | {f"{CALIBRATION}{name}": value for name, value in stored.items()},
    )


def _provenance(material: Sequence[Material], threshold: str) -> Provenance:
    return Provenance(
        recipe=PATCHES.to_json(),
        seed=SEED,
        labels="every candidate is a Bragg peak or not by the simulator's truth",
        threshold=threshold
        + " Each of them was scored by a network that had not learned from its experiment",
        runs=tuple(
            TrainingRun(
                experiment=one.name,
                name=f"s{SEED}",
                role="training",
                events=one.learned[0].n_events,
                hits=int(one.is_hit.sum()),
                misses=int(one.is_blank.sum()),
                unlabelled=0,
            )
            for one in material
        ),
        versions={package: version(package) for package in ("numpy", "sfxreduce", "torch")},
    )


def _fitted(pooling: Pooling, blanks: NDArray[np.float64], hits: NDArray[np.float64]) -> Pooling:
    """Pooling whose probability is one half where as many blanks lie above as hits below."""
    both = np.sort(np.concatenate([blanks, hits]))
    wrong = [np.mean(hits < at) - np.mean(blanks >= at) for at in both]
    even = float(both[int(np.argmin(np.abs(wrong)))])
    spread = float(np.std(np.log(np.maximum(blanks, 0.01))))
    slope = 2.0 / max(spread, 0.1)
    return replace(pooling, slope=slope, offset=-slope * float(np.log(even)))
