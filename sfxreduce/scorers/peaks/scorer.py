"""The conventional method as a scorer: the number of Bragg peaks on the whole frame."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import UsageError
from sfxreduce.run.detector import Detector, Panel
from sfxreduce.run.window import Window
from sfxreduce.scorers.calibration.record import Calibration
from sfxreduce.scorers.peaks.finder import MIN_PEAKS, PeakFinder

__all__ = ["PeakScorer"]


@dataclass(frozen=True, slots=True)
class PeakScorer:
    """Scores an event by its number of peaks: the baseline to compare other scorers with.

    Parameters
    ----------
    min_peaks : int
        Fewest peaks of a hit.

    Raises
    ------
    UsageError
        If `min_peaks` is not positive: every event would be a hit.

    Examples
    --------
    >>> PeakScorer(PeakFinder(min_pixels=2), min_peaks=15).calibration.threshold
    15.0
    """

    finder: PeakFinder = field(default_factory=PeakFinder)
    min_peaks: int = field(default=MIN_PEAKS, kw_only=True)

    def __post_init__(self) -> None:
        if not self.min_peaks > 0:
            raise UsageError(
                f"peak scorer: expected --min-peaks of at least 1, found {self.min_peaks}"
            )

    @property
    def name(self) -> str:
        """Name of the method in outputs and reports."""
        return "peaks"

    @property
    def settings(self) -> str:
        """The peak finder's settings by name."""
        return ", ".join(f"{f.name} {getattr(self.finder, f.name):g}" for f in fields(PeakFinder))

    @property
    def calibration(self) -> Calibration:
        """Only what a hit is: a count of peaks was calibrated on nothing."""
        return Calibration(
            threshold=float(self.min_peaks), hit=f"an event with at least {self.min_peaks} peaks"
        )

    def window(self, detector: Detector) -> Window | None:  # noqa: ARG002 - Scorer's signature
        """Return None: peaks may lie anywhere, so whole source frames are read."""
        return None

    def __call__(self, pixels: NDArray[np.generic], detector: Detector) -> NDArray[np.float32]:
        """Count the peaks of every event.

        Parameters
        ----------
        pixels : ndarray
            Whole source frames, shape (event, y, x) or (event, panel, y, x), in ADU.

        Returns
        -------
        ndarray of float32
            Number of peaks, shape (event,). NaN if fewer than half of the pixels can be trusted,
            gaps aside: what was not seen must not be rejected.

        Raises
        ------
        SchemaError
            If the frames are not of this detector.
        """
        radius = _radius(detector.panel_shape, detector.panels, detector.stacked)
        counts = self.finder.count(
            pixels, detector.good(), radius, adu_per_photon=detector.adu_per_photon
        )
        return np.where(detector.is_usable(), counts, np.nan).astype(np.float32)


@lru_cache(maxsize=4)
def _radius(
    panel_shape: tuple[int, int], panels: tuple[Panel, ...], stacked: bool
) -> NDArray[np.float64]:
    """Distances from the beam, kept by content: every task unpickles a detector of its own."""
    bare = Detector(name="", panel_shape=panel_shape, panels=panels, stacked=stacked)
    radius = bare.radius()
    radius.setflags(write=False)
    return radius
