"""What is known of a scorer before a run is scored: one value that it brings along."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sfxreduce.scorers.calibration.probability import ProbabilityMap, ReliabilityBin
from sfxreduce.scorers.calibration.score_level import LevelRule
from sfxreduce.scorers.calibration.windows import TileChoice, WindowLoss

__all__ = ["Calibration", "Curves", "Reference"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """What a model was calibrated on. A test whose part is empty is skipped.

    Parameters
    ----------
    hit_scores, blank_scores : ndarray of float32
        Of labelled events the model has not learned from.
    envelope : ndarray of float64
        Shape (quantity, 2): lowest and highest of `QUANTITIES`.
    usual_shape : float
        Shape distance between calibrated experiments, see `usual_shape`.
    """

    hit_scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    blank_scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    envelope: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    usual_shape: float = 0.0

    def up_to(self, highest: float) -> Reference:
        """Return the same with every higher score taken for this one."""
        return replace(
            self,
            hit_scores=np.minimum(self.hit_scores, np.float32(highest)),
            blank_scores=np.minimum(self.blank_scores, np.float32(highest)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Curves of a scorer for reports. A part that was not measured is empty.

    Parameters
    ----------
    window : TileChoice, optional
        Tiles it reads.
    loss : tuple of WindowLoss
        Hit loss through this window and others, the fewest tiles first.
    probability : ProbabilityMap, optional
        From scores, less the level of their run, to the probability that a frame shows diffraction.
    reliability : tuple of ReliabilityBin
        Such probabilities against what became true, on experiments the model had not seen.
    shows : str
        What counts as showing diffraction.
    """

    window: TileChoice | None = None
    loss: tuple[WindowLoss, ...] = ()
    probability: ProbabilityMap | None = None
    reliability: tuple[ReliabilityBin, ...] = ()
    shows: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """What a scorer brings along.

    Parameters
    ----------
    threshold : float, optional
        Smallest score of a hit unless the user gives another; without either nothing is decided.
    hit : str
        What counts as a hit, in words: "an event with ...".
    model_sha256 : str, optional
        Of the model's weights; none for a scorer without a model.
    hit_scores : ndarray of float32
        Scores of labelled hits it has not learned from, shape (hit,).
    hit_groups : ndarray of int32
        Experiment of each of these hits, shape (hit,).
    reference : Reference, optional
        What it was calibrated on, to compare a run with; none for a scorer without a model.
    level : LevelRule
        How its threshold follows the level of a run's own scores.
    curves : Curves
        What reports show of it.
    needs_conditions : bool
        Whether the run's gain and bad pixels have to be measured before it scores.
    """

    threshold: float | None = None
    hit: str = "what the labels call one"
    model_sha256: str | None = None
    hit_scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    hit_groups: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    reference: Reference | None = None
    level: LevelRule = field(default_factory=LevelRule)
    curves: Curves = field(default_factory=Curves)
    needs_conditions: bool = False
