"""What was measured of a scorer before a run is judged by it, for reports."""

from __future__ import annotations

from dataclasses import dataclass

from sfxreduce.probability import Calibration, ReliabilityBin
from sfxreduce.window_choice import TileChoice, WindowLoss

__all__ = ["Measured"]


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
