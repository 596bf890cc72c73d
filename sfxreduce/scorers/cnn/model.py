"""A trained network as a value: what it is, its numbers, and what its threshold rests on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from sfxreduce.errors import ModelError
from sfxreduce.run.labels import Label
from sfxreduce.run.reasons import EventClass
from sfxreduce.run.run import Run
from sfxreduce.run.window import CENTRE, CENTRE_TILE, TileChoice
from sfxreduce.scorers.calibration.probability import ProbabilityMap, ReliabilityBin
from sfxreduce.scorers.calibration.record import FirstLook, LevelRule, Reference
from sfxreduce.scorers.calibration.windows import WindowLoss
from sfxreduce.scorers.cnn.patches.candidates import CandidateFinder
from sfxreduce.scorers.cnn.patches.outliers import Usual
from sfxreduce.scorers.cnn.patches.pooling import FEATURES, Pooling
from sfxreduce.scorers.cnn.poster.normalise import Normalisation

__all__ = [
    "ARCHITECTURES",
    "CALIBRATION",
    "USUAL",
    "USUAL_FIRST",
    "Model",
    "ModelConfig",
    "Provenance",
    "TrainingRun",
]

ARCHITECTURES = ("poster", "patches")
"""Networks by name."""

CALIBRATION = "calibration."
"""Beginning of the names of arrays that are no weights: what the threshold rests on."""

USUAL = tuple(f"{CALIBRATION}traits_{name}" for name in ("mean", "whitening", "limit"))
"""Names of the arrays of what is usual: see `sfxreduce.scorers.cnn.patches.outliers.Usual`."""

USUAL_FIRST = tuple(f"{CALIBRATION}first_traits_{name}" for name in ("mean", "whitening", "limit"))
"""The same of the first tiles alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """One run a model has learned from or was stopped by.

    Parameters
    ----------
    role : str
        "training", "stopping" or "threshold".
    events, hits, misses, unlabelled : int
        Numbers of events; the last three sum to the first.
    """

    experiment: str
    name: str
    role: str
    events: int
    hits: int
    misses: int
    unlabelled: int

    @classmethod
    def of(cls, run: Run, label: NDArray[np.int8], role: str) -> TrainingRun:
        """Count what events of a run were labelled: `Label` of each, shape (event,)."""
        return cls(
            experiment=run.experiment,
            name=run.name,
            role=role,
            events=label.size,
            hits=int(np.count_nonzero(label == Label.HIT)),
            misses=int(np.count_nonzero(label == Label.MISS)),
            unlabelled=int(np.count_nonzero(label == Label.MAYBE)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How a model came to be.

    Parameters
    ----------
    recipe : mapping
        Every setting of the recipe, its name included.
    labels : str
        In one sentence, how events were told into hits and misses.
    threshold : str
        In one sentence, how the threshold was chosen.
    versions : mapping of str to str
        Of the packages that made the numbers.
    """

    recipe: Mapping[str, bool | float | int | str] = field(default_factory=dict)
    seed: int = 0
    labels: str = ""
    threshold: str = ""
    runs: tuple[TrainingRun, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything about a model but its numbers.

    Parameters
    ----------
    architecture : str
        One of `ARCHITECTURES`.
    window : TileChoice
        Tiles of the assembled picture that the threshold was chosen for.
    curve : tuple of WindowLoss
        What was lost through other windows when this one was chosen.
    tile_shape : tuple of int
        (y, x) pixels of a tile of the window.
    threshold : float
        Smallest hit probability of a hit, in a run of the lowest level.
    hit : str
        What was a hit when the threshold was chosen: "an event with ...".
    covers : tuple of str
        What the calibrated runs were like, a range in each: the promise is about such runs.
    shows : str
        What shows diffraction, in the words of the calibrated probability.
    reliability : tuple of ReliabilityBin
        Calibrated probabilities against what became true, on experiments not learned from.
    normalisation : Normalisation
        For the poster's network.
    pooling : Pooling
        For the patch network.
    level : LevelRule
        How the threshold follows the level of a run's own scores.
    first_look : FirstLook, optional
        How events are judged by their first tiles; none where all of them are looked at.
    """

    architecture: str = "poster"
    window: TileChoice = CENTRE
    curve: tuple[WindowLoss, ...] = ()
    tile_shape: tuple[int, int] = CENTRE_TILE
    threshold: float = 0.5
    hit: str = "what the labels call one"
    covers: tuple[str, ...] = ()
    shows: str = ""
    reliability: tuple[ReliabilityBin, ...] = ()
    normalisation: Normalisation = field(default_factory=Normalisation)
    candidates: CandidateFinder = field(default_factory=CandidateFinder)
    pooling: Pooling = field(default_factory=Pooling)
    level: LevelRule = field(default_factory=LevelRule)
    first_look: FirstLook | None = None
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES or self.tile_shape != CENTRE_TILE:
            raise ModelError(
                f"model: expected an architecture of {ARCHITECTURES} and tiles of {CENTRE_TILE} "
                f"pixels, found {(self.architecture, self.tile_shape)}; a newer sfxreduce may know "
                "them"
            )
        if not 0.0 <= self.threshold <= 1.0:
            raise ModelError(
                f"model: expected a threshold between 0 and 1, found {self.threshold}; "
                "it is a probability"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """A trained network and what is known about it.

    Parameters
    ----------
    weights : mapping of str to ndarray of float32
        The network's parameters by their names.
    card : str
        Model card in Markdown: what it is for, how well it does, where it fails.
    """

    config: ModelConfig
    weights: Mapping[str, NDArray[np.float32]] = field(repr=False)
    card: str = field(default="", repr=False)

    @property
    def encoded(self) -> bytes:
        """Bytes of ``model.safetensors``."""
        arrays = {name: np.ascontiguousarray(self.weights[name]) for name in sorted(self.weights)}
        return bytes(save(arrays))

    @property
    def sha256(self) -> str:
        """SHA-256 of ``model.safetensors`` in hexadecimal: the model's name in every output."""
        return hashlib.sha256(self.encoded).hexdigest()

    @property
    def hit_scores(self) -> NDArray[np.float32]:
        """Scores of the labelled hits the threshold rests on; none if it rests on no count."""
        none = np.zeros(0, np.float32)
        return self.weights.get(f"{CALIBRATION}hit_scores", none)

    @property
    def hit_groups(self) -> NDArray[np.int32]:
        """Experiment of each of these hits; one and the same where they are not told apart."""
        alike = np.zeros(self.hit_scores.size, np.int32)
        return np.asarray(self.weights.get(f"{CALIBRATION}hit_groups", alike), np.int32)

    @property
    def class_head(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Weight and bias for `patches.pooling.class_of`; None if the model has no such head.

        Raises
        ------
        ModelError
            If they are of another shape.
        """
        weight = self.weights.get(f"{CALIBRATION}class_weight")
        bias = self.weights.get(f"{CALIBRATION}class_bias")
        if weight is None or bias is None:
            return None
        n_classes = len(EventClass) - 1  # all but the unknown one
        if (weight.shape, bias.shape) != ((len(FEATURES), n_classes), (n_classes,)):
            raise ModelError(
                f"model: expected weights of {len(FEATURES)} features for {n_classes} classes, "
                f"found {weight.shape} and {bias.shape}; copy the model again, or train it anew"
            )
        return weight, bias

    @property
    def usual(self) -> Usual | None:
        """Which events are like the calibrated ones; None if that was not measured.

        Raises
        ------
        ModelError
            If only a part of it is there, or it is damaged.
        """
        return self._usual(USUAL)

    @property
    def usual_first(self) -> Usual | None:
        """The same by the first tiles alone."""
        return self._usual(USUAL_FIRST)

    def _usual(self, names: Sequence[str]) -> Usual | None:
        missing = sorted(name for name in names if name not in self.weights)
        if len(missing) == len(names):
            return None
        if missing:
            raise ModelError(
                f"model: expected all of what is usual, or nothing of it, found no {missing}; "
                "copy the model again, or train it anew"
            )
        mean, whitening, limit = (self.weights[name].astype(np.float64) for name in names)
        return Usual(mean=mean, whitening=whitening, limit=float(limit.max(initial=-np.inf)))

    def without_usual(self) -> Model:
        """The same model, to which no event is unlike the calibrated ones."""
        known = (*USUAL, *USUAL_FIRST)
        kept = {name: array for name, array in self.weights.items() if name not in known}
        return replace(self, weights=kept)

    def of_size(self, n_tiles: int) -> Model:
        """The same model, its calibration that of a picture of so many tiles, or of the nearest.

        Parameters
        ----------
        n_tiles : int
            Of the assembled picture.
        """
        beginning = f"{CALIBRATION}of_"
        sizes = {
            int(name.removeprefix(beginning).partition(".")[0])
            for name in self.weights
            if name.startswith(beginning)
        }
        most = self.config.window.most or n_tiles
        if not sizes or n_tiles >= most:
            return self
        nearest = min((*sorted(sizes), most), key=lambda size: abs(math.log(size / n_tiles)))
        if nearest == most:
            return self
        own = {
            name.partition(".of_")[0] + "." + name.rpartition(".")[2]: array
            for name, array in self.weights.items()
            if name.startswith(f"{beginning}{nearest}.")
        }
        lowest, highest = own.pop(f"{CALIBRATION}level").tolist()
        level = replace(self.config.level, lowest=lowest, highest=highest)
        return replace(
            self,
            # Of fewer tiles, the first are the bulk: all of them are looked at together.
            config=replace(self.config, level=level, first_look=None),
            weights={**self.weights, **own},
        )

    @property
    def probability(self) -> ProbabilityMap | None:
        """From reduced scores to calibrated probabilities; None if that was not measured."""
        knots = self.weights.get(f"{CALIBRATION}probability")
        if knots is None:
            return None
        *inner, (hit_rate, _) = knots.astype(np.float64).tolist()
        score, probability = np.array(inner).T
        return ProbabilityMap(score=score, probability=probability, hit_rate=hit_rate)

    @property
    def reference(self) -> Reference:
        """What a run is compared with; a part that is not stored with the model is empty."""

        def stored(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
            return self.weights.get(f"{CALIBRATION}{name}", np.zeros(shape, np.float32))

        return Reference(
            hit_scores=self.weights.get(f"{CALIBRATION}hit_most", self.hit_scores),
            blank_scores=stored("blank_scores", (0,)),
            blank_groups=stored("blank_groups", (0,)).astype(np.int32),
            envelope=stored("envelope", (0, 2)).astype(np.float64),
            usual_shape=float(stored("usual_shape", (1,))[0]),
            peaks=stored("peaks", (0, 2)).astype(np.float64),
        )
