"""What was measured of a scorer before a run is judged by it, for reports."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sfxreduce.scorers.calibration.probability import Calibration, ReliabilityBin
from sfxreduce.scorers.calibration.windows import TileChoice, WindowLoss

__all__ = ["Measured", "Reference"]


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
class Measured:
    """Curves of a scorer. A part that was not measured is empty.

    Parameters
    ----------
    window : TileChoice, optional
        Tiles it looks at.
    curve : tuple of WindowLoss
        What is lost through this window and others, the fewest tiles first.
    calibration : Calibration, optional
        From scores, less the level of their run, to the probability that a frame shows diffraction.
    reliability : tuple of ReliabilityBin
        Such probabilities against what became true, on experiments the model had not seen.
    shows : str
        What counts as showing diffraction.
    """

    window: TileChoice | None = None
    curve: tuple[WindowLoss, ...] = ()
    calibration: Calibration | None = None
    reliability: tuple[ReliabilityBin, ...] = ()
    shows: str = ""
