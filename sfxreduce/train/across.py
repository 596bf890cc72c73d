"""Every experiment judged by a model that has not seen it, and the model that learns from all.

A model that ships must do well on experiments nobody simulated. The nearest thing to it that can be
measured: leave one experiment out, learn from the others, fix the threshold on the others, and
count what is lost of the one left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfxreduce.bounds import share_upper
from sfxreduce.calibrate import Promise, binomial_threshold
from sfxreduce.drift import envelope_of, usual_shape
from sfxreduce.geometry import Window
from sfxreduce.level import level_rule
from sfxreduce.probability import ReliabilityBin, calibrate_probability, reliability_bins
from sfxreduce.progress import Progress, silent
from sfxreduce.scorers.classes import event_features
from sfxreduce.scorers.patches import PatchNetwork, patch_logits
from sfxreduce.scorers.pooling import Pooling
from sfxreduce.scorers.unlike import event_traits
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
from sfxreduce.train.usual import fit_usual, table_of_unlike, with_usual
from sfxreduce.train.windows import CHOICES
from sfxreduce.window_choice import TileChoice, WindowLoss, smallest_window

__all__ = [
    "HIT",
    "Across",
    "LeftOut",
    "judge_left_out",
    "learn_across",
    "table_of",
]

HIT = f"a crystal with {HIT_PEAKS} or more true peaks of signal to noise 5 on the frame"
SHOWS = "a crystal with 2 or more true peaks of signal to noise 5 on the frame"
SPECIFICITY = 0.98
"""At which the weak hits lost through different windows are compared."""


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Across:
    """What leaving out one experiment at a time gave.

    Parameters
    ----------
    models : mapping of str to Model
        By the experiment it has not seen.
    judged : tuple of LeftOut
    windows : tuple of WindowLoss
        What fewer tiles would lose, the fewest first; the last one has all of them.
    confusions : tuple of ndarray
        What the class head says of each experiment, by a model that has not seen it.
    traits : mapping of str to ndarray
        What `sfxreduce.scorers.unlike.event_traits` says of each experiment's judged events.
    shipped : Model
        Learned from all experiments; its threshold rests on the scores of the left-out ones.
    """

    models: Mapping[str, Model]
    judged: tuple[LeftOut, ...]
    windows: tuple[WindowLoss, ...]
    confusions: tuple[NDArray[np.int64], ...]
    traits: Mapping[str, NDArray[np.float64]]
    shipped: Model

    @property
    def tables(self) -> str:
        """What was measured, in Markdown."""
        names = [one.experiment for one in self.judged]
        classes = table_of_confusions(names, self.confusions)
        return f"{table_of(self.judged)}\n\n{classes}\n\n{table_of_unlike(self.traits)}"

    def to_json(self) -> dict[str, Any]:
        """Everything but the numbers of the networks."""
        return {
            "experiments": [one.to_json() for one in self.judged],
            "mean_loss": float(np.mean([one.loss for one in self.judged])),
            "worst_loss": max(one.loss for one in self.judged),
            "least_specificity": min(one.specificity for one in self.judged),
            "window": self.shipped.config.window.name,
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
    columns = {
        one.name: {tried: tried.columns(one.detector) for tried in CHOICES} for one in material
    }

    def through(tried: TileChoice) -> dict[str, NDArray[np.float64]]:
        return {name: of[:, columns[name][tried]].sum(axis=1) for name, of in of_tiles.items()}

    tried = {window: _left_out(networks, material, through(window), window) for window in CHOICES}
    curve = tuple(
        _window_loss(window, judged, _weak_loss(models, material, through(window)))
        for window, (models, judged) in tried.items()
    )
    window = smallest_window(curve)
    models, judged = tried[window]
    shipped = _calibrated(everything, material, through(window), window=window)
    parts = {one.name: _Described.of(one, window) for one in material}
    heads = {
        one.name: _head(networks[one.name], [parts[m.name] for m in material if m is not one])
        for one in material
    }
    traits = {name: part.traits for name, part in parts.items()}
    shipped = replace(
        shipped,
        config=replace(
            shipped.config,
            curve=curve,
            shows=SHOWS,
            reliability=_reliability(models, material, through(window)),
        ),
    )
    return Across(
        models={
            name: with_usual(with_head(model, heads[name]), fit_usual(_others(traits, name)))
            for name, model in models.items()
        },
        judged=judged,
        windows=curve,
        confusions=tuple(
            confusion_of(
                heads[one.name],
                _features(networks[one.name], parts[one.name].judged, parts[one.name].window),
                classes_of_kinds(one.judged_kind),
            )
            for one in material
        ),
        traits=traits,
        shipped=with_usual(
            with_head(shipped, _head(everything, list(parts.values()))),
            fit_usual(list(traits.values())),
        ),
    )


def _window_loss(window: TileChoice, judged: Sequence[LeftOut], weak_loss: float) -> WindowLoss:
    """What is lost through a window over all experiments."""
    return WindowLoss(
        tiles=window,
        mean_loss=float(np.mean([one.loss for one in judged])),
        worst_loss=max(one.loss for one in judged),
        weak_loss=weak_loss,
        least_specificity=min(one.specificity for one in judged),
    )


def _weak_loss(
    models: Mapping[str, Model],
    material: Sequence[Material],
    evidence: Mapping[str, NDArray[np.float64]],
) -> float:
    """Share of the weak hits lost where as many blanks of all experiments pass for every window.

    At the windows' own thresholds they could not be compared: the lowest hit decides about these.
    """
    reduced = {one.name: _reduced(models[one.name], evidence[one.name]) for one in material}
    blanks = np.concatenate([reduced[one.name][one.is_blank] for one in material])
    weak = np.concatenate([reduced[one.name][one.is_weak] for one in material])
    return float(np.mean(weak <= np.quantile(blanks, SPECIFICITY))) if weak.size else 0.0


def _reduced(model: Model, evidence: NDArray[np.float64]) -> NDArray[np.float32]:
    """Scores of an experiment's events, less the level of its run."""
    config = model.config
    raw = config.pooling.probability(evidence)
    return config.level.reduced(raw, config.level.move(raw))


def _left_out(
    networks: Mapping[str, PatchNetwork],
    material: Sequence[Material],
    evidence: Mapping[str, NDArray[np.float64]],
    window: TileChoice,
) -> tuple[dict[str, Model], tuple[LeftOut, ...]]:
    """Models by the experiment they have not seen, and how each of these fared."""
    models = {}
    for one in material:
        others = [other for other in material if other is not one]
        models[one.name] = _calibrated(networks[one.name], others, evidence, window=window)
    judged = tuple(judge_left_out(models[m.name], m, evidence[m.name]) for m in material)
    return models, judged


def _reliability(
    models: Mapping[str, Model],
    material: Sequence[Material],
    evidence: Mapping[str, NDArray[np.float64]],
) -> tuple[ReliabilityBin, ...]:
    """Probabilities of every experiment, by a model and a calibration that have not seen it."""
    told, truth = [], []
    for one in material:
        calibration = models[one.name].probability
        if calibration is not None:
            told.append(calibration(_reduced(models[one.name], evidence[one.name])))
            truth.append(~one.is_blank)
    return tuple(
        b for b in reliability_bins(np.concatenate(told), np.concatenate(truth)) if b.n_events
    )


def judge_left_out(model: Model, one: Material, evidence: NDArray[np.float64]) -> LeftOut:
    """Count what a model loses of an experiment it has not seen.

    Parameters
    ----------
    model : Model
    one : Material
    evidence : ndarray
        Of the model's network, shape (event,).
    """
    low = _reduced(model, evidence) < model.config.threshold
    weak = one.is_weak
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


def with_head(model: Model, head: ClassHead) -> Model:
    """The same model with a class head."""
    arrays = {"class_weight": head.weight, "class_bias": head.bias}
    stored = {f"{CALIBRATION}{name}": array.astype(np.float32) for name, array in arrays.items()}
    return replace(model, weights={**model.weights, **stored})


class _Described(NamedTuple):
    """Events of an experiment within a window, and what they are."""

    window: Window
    learned: PatchSet
    judged: PatchSet
    learned_class: NDArray[np.uint8]

    @classmethod
    def of(cls, one: Material, choice: TileChoice) -> _Described:
        columns = choice.columns(one.detector)
        return cls(
            window=choice.window(one.detector),
            learned=one.learned[0].within(columns),
            judged=one.judged.within(columns),
            learned_class=classes_of_kinds(one.learned_kind),
        )

    @property
    def traits(self) -> NDArray[np.float64]:
        """Of the judged events, shape (event, trait)."""
        return event_traits(self.judged.found, self.window, n_events=self.judged.n_events)


def _others(traits: Mapping[str, NDArray[np.float64]], name: str) -> list[NDArray[np.float64]]:
    return [of for other, of in traits.items() if other != name]


def _head(network: PatchNetwork, parts: Sequence[_Described]) -> ClassHead:
    """Head that has learned from the events of some experiments as they are."""
    features = [_features(network, one.learned, one.window) for one in parts]
    return fit_head(np.concatenate(features), np.concatenate([one.learned_class for one in parts]))


def _features(network: PatchNetwork, events: PatchSet, window: Window) -> NDArray[np.float64]:
    logits = patch_logits(network, events.found)
    return event_features(logits, events.found, window, n_events=events.n_events)


def _trained(material: Sequence[Material]) -> PatchNetwork:
    return train_patches([s for one in material for s in one.learned], seed=SEED)


def _calibrated(
    network: PatchNetwork,
    material: Sequence[Material],
    evidence: Mapping[str, NDArray[np.float64]],
    *,
    window: TileChoice,
) -> Model:
    """A network with a threshold that keeps the promise on every experiment of the material."""
    hits = [evidence[one.name][one.is_hit] for one in material]
    blanks = [evidence[one.name][one.is_blank] for one in material]
    pooling = _fitted(Pooling(), np.concatenate(blanks), np.concatenate(hits))
    raw = {one.name: pooling.probability(evidence[one.name]) for one in material}
    rule = level_rule(list(raw.values()))
    seen = {name: rule.reduced(scores, rule.move(scores)) for name, scores in raw.items()}
    shown = np.concatenate([~one.is_blank for one in material])
    known = calibrate_probability(np.concatenate(list(seen.values())), shown)
    knots = [*zip(known.score, known.probability, strict=True), (known.hit_rate, 0.0)]
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
        "probability": np.array(knots, np.float32),
    }
    chosen = binomial_threshold(stored["hit_scores"], promise=Promise(), groups=groups)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    config = ModelConfig(
        architecture="patches",
        window=window,
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
