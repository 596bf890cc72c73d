"""Bragg-peak finding, the conventional method: where the peaks are, and how many.

The method is peakfinder8's [1]_. The background is taken from rings around the beam: in each, the
mean and the standard deviation of the good pixels by iterative clipping. Pixels above ``mean +
min_snr * sigma`` that touch form a group; a group of the right size that also stands out from its
immediate surroundings is a peak.

Two things differ from the original, so that one `min_snr` means one rate of false alarms on any
detector and at any light level:

- ``sigma`` is the standard deviation *upwards*. Counts of photons have a longer tail above the
  mean than below; the second-order term of the Cornish-Fisher expansion [2]_, measured in every
  ring, turns `min_snr` into the same tail probability as for Gaussian noise.
- ``sigma`` is at least half a photon. On a dark frame the measured one tends to zero, and every
  single photon would be a peak.

References
----------
.. [1] A. Barty et al., J. Appl. Cryst. 47 (2014) 1118. doi:10.1107/S1600576714007626
.. [2] E. A. Cornish and R. A. Fisher, Rev. Inst. Int. Stat. 5 (1938) 307. doi:10.2307/1400905
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from sfxreduce.errors import SchemaError, UsageError
from sfxreduce.run.detector import Detector, Panel, Sensor
from sfxreduce.run.window import Window
from sfxreduce.scorers.peaks._peakfinder8 import search
from sfxreduce.scorers.peaks._rings import PeakLimits, Rings, radial_bins, side_by_side

if TYPE_CHECKING:
    from sfxreduce.scorers.calibration.record import Calibration

__all__ = [
    "FEWEST_ON_RING",
    "MIN_PEAKS",
    "PeakFinder",
    "PeakScorer",
    "Peaks",
    "on_powder_rings",
    "radius_of",
]

MIN_PEAKS = 8
"""Fewest peaks of a hit, unless the user says otherwise. An empty frame of some million pixels
shows up to a handful by chance at the default `PeakFinder.min_snr`. Every number from 4 to 13
separates both data sets of docs/explanation/peak-finder.md."""

MIN_SIGMA_PHOTONS = 0.5  # or single photons of a dark frame are peaks: the same page

# Powder rings. Chosen on seven left-out experiments, on peaks thrown at random and on one run of
# other code with grainy rings, out of some 50 settings that were tried (decision 23).
_RING_PX = 8
_FIRST_RING, FEWEST_ON_RING = 5.0, 2.0
"""Peaks of the fullest ring of powder, and of each other one beside it."""
_CONTRAST = 3.0  # times what the rings around it have on average, and the spread of that
_AROUND = 8  # rings on either side; the nearest one has a share of the peaks
_INNERMOST_PX = 80  # the few rings within are crowded where a crystal diffracts weakly


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Peaks:
    """The peaks of one frame, in the order of their first pixel.

    Parameters
    ----------
    panel : ndarray of int32
        Panel, or tile of a window; 0 on frames without panels.
    y, x : ndarray of float32
        Centre of mass on the panel in pixels; the centre of the first pixel is 0.
    intensity : ndarray of float32
        Sum over the peak's pixels above the local background, in ADU.
    max_intensity : ndarray of float32
        Highest pixel above the local background, in ADU.
    snr : ndarray of float32
        `intensity` over its standard deviation from the local background; infinite where the
        background is constant.
    n_pixels : ndarray of int32
    """

    panel: NDArray[np.int32]
    y: NDArray[np.float32]
    x: NDArray[np.float32]
    intensity: NDArray[np.float32]
    max_intensity: NDArray[np.float32]
    snr: NDArray[np.float32]
    n_pixels: NDArray[np.int32]

    def __len__(self) -> int:
        return self.panel.size


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakFinder:
    """Settings of the search, and the search.

    Parameters
    ----------
    min_snr : float
        Signal to noise of every pixel of a peak against its ring, of its highest pixel and of its
        sum against the surroundings. At 5.5, Gaussian noise shows one false pixel in 53 million.
    min_pixels, max_pixels : int
        Size of a peak. One pixel is a peak by default: at free-electron lasers many are as
        sharp. Ask for two on a detector whose hot pixels are not masked.
    min_adc : float
        Pixels at or below this many ADU never belong to a peak.
    local_radius : int
        Width in pixels of the frame around a peak from which its local background is taken.
    max_peaks : int
        Of more peaks, the ones with the highest signal to noise are kept.

    Raises
    ------
    UsageError
        If a setting cannot be met by any peak.

    Examples
    --------
    >>> frame = np.random.default_rng(1).poisson(10.0, (100, 100))
    >>> frame[40, 61:63] += 90
    >>> y, x = np.indices(frame.shape)
    >>> found = PeakFinder().find(frame, frame >= 0, np.hypot(y - 49.5, x - 49.5))
    >>> len(found), int(found.y[0]), int(found.x[0]), int(found.n_pixels[0])
    (1, 40, 61, 2)
    """

    min_snr: float = 5.5
    min_pixels: int = 1
    max_pixels: int = 200
    min_adc: float = 0.0
    local_radius: int = 3
    max_peaks: int = 2048

    def __post_init__(self) -> None:
        if not (math.isfinite(self.min_snr) and self.min_snr > 0 and math.isfinite(self.min_adc)):
            raise UsageError(
                "peak finder: expected a positive min_snr and a finite min_adc, found "
                f"{self.min_snr} and {self.min_adc}"
            )
        if not 1 <= self.min_pixels <= self.max_pixels:
            raise UsageError(
                "peak finder: expected 1 <= min_pixels <= max_pixels, found "
                f"{self.min_pixels} and {self.max_pixels}"
            )
        if self.local_radius < 1 or self.max_peaks < 1:
            raise UsageError(
                "peak finder: expected a local_radius and a max_peaks of at least 1, found "
                f"{self.local_radius} and {self.max_peaks}"
            )

    def find(
        self,
        frame: NDArray[np.generic],
        good: NDArray[np.bool_],
        radius: NDArray[np.floating],
        *,
        adu_per_photon: float = math.nan,
    ) -> Peaks:
        """Find the peaks of one frame.

        Parameters
        ----------
        frame : ndarray
            Shape (y, x) or (panel, y, x), in ADU, of any integer or floating dtype. Values that
            are not finite never count.
        good : ndarray of bool
            Pixels that can be trusted, in the shape of the frame; the others never count.
        radius : ndarray
            Distance of every pixel from the beam in pixels, in the shape of the frame.
        adu_per_photon : float, optional
            Gain of the detector. Where it is unknown, a photon is taken to be one ADU of an
            integer frame, and to be infinitely small on a floating one.

        Raises
        ------
        SchemaError
            If the shapes differ or the frame holds no real numbers.
        """
        rows = self._search(frame[np.newaxis], good, radius, adu_per_photon)[0]
        whole, fine = rows[:, (0, 6)].astype(np.int32), rows[:, 1:6].astype(np.float32)
        return Peaks(
            panel=whole[:, 0],
            y=fine[:, 0],
            x=fine[:, 1],
            intensity=fine[:, 2],
            max_intensity=fine[:, 3],
            snr=fine[:, 4],
            n_pixels=whole[:, 1],
        )

    def count(
        self,
        frames: NDArray[np.generic],
        good: NDArray[np.bool_],
        radius: NDArray[np.floating],
        *,
        adu_per_photon: float = math.nan,
    ) -> NDArray[np.int32]:
        """Count the peaks of many frames, shape (event, y, x) or (event, panel, y, x); see `find`.

        Returns
        -------
        ndarray of int32
            Shape (event,).
        """
        found = self._search(frames, good, radius, adu_per_photon)
        return np.array([len(rows) for rows in found], np.int32)

    def count_apart(
        self,
        frames: NDArray[np.generic],
        good: NDArray[np.bool_],
        radius: NDArray[np.floating],
        *,
        adu_per_photon: float = math.nan,
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Count all peaks, and those that do not lie on powder rings; see `count`."""
        found = self._search(frames, good, radius, adu_per_photon)
        n_peaks = np.array([len(rows) for rows in found], np.int32)
        event = np.repeat(np.arange(len(found)), n_peaks)
        places = np.concatenate([np.zeros((0, 3)), *(rows[:, :3] for rows in found)])
        panel, y, x = np.rint(places).astype(np.intp).T
        on_ring = on_powder_rings(radius.reshape(-1, *radius.shape[-2:])[panel, y, x], event)
        off_rings = np.bincount(event[~on_ring], minlength=len(found)).astype(np.int32)
        return n_peaks, off_rings

    def _search(
        self,
        frames: NDArray[np.generic],
        good: NDArray[np.bool_],
        radius: NDArray[np.floating],
        adu_per_photon: float,
    ) -> list[NDArray[np.float64]]:
        """Rows of peaks for every frame; the rings are prepared once for all of them."""
        _check(frames, good, radius)
        if not (math.isfinite(adu_per_photon) and adu_per_photon > 0):
            adu_per_photon = 1.0 if np.issubdtype(frames.dtype, np.integer) else 0.0
        limits = PeakLimits(
            float(self.min_snr),
            MIN_SIGMA_PHOTONS * adu_per_photon,
            float(self.min_adc),
            int(self.min_pixels),
            int(self.max_pixels),
            int(self.local_radius),
        )
        rings = _rings(
            _ByContent.of(np.ascontiguousarray(good, np.bool_)),
            _ByContent.of(np.ascontiguousarray(radius, np.float64)),
        )
        shape = (1, 1, *good.shape)[-3:]
        pixels = np.full(good.size + 1, np.nan, np.float32)
        words = np.zeros(good.size // 8 + 1, np.uint64)
        desk = (words.view(np.bool_), words)
        found = []
        for frame in frames:
            # One compiled path for every dtype; a float64 beyond float32 becomes infinite, and so
            # does not count.
            with np.errstate(over="ignore"):
                np.copyto(pixels[:-1].reshape(good.shape), frame, casting="unsafe")
            found.append(self._strongest(search(pixels, rings, shape, limits, desk)))
        return found

    def _strongest(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """At most `max_peaks` rows, those with the highest signal to noise, order kept."""
        if len(rows) <= self.max_peaks:
            return rows
        best = np.argsort(-rows[:, 5], kind="stable")[: self.max_peaks]
        return rows[np.sort(best)]


@dataclass(frozen=True, slots=True)
class _ByContent:
    """An array that is the same as another of equal content."""

    digest: int
    array: NDArray[Any] = field(compare=False)

    @classmethod
    def of(cls, array: NDArray[Any]) -> _ByContent:
        return cls(xxhash.xxh3_128_intdigest(array.data), array)


@lru_cache(maxsize=2)
def _rings(good: _ByContent, radius: _ByContent) -> Rings:
    """Rings of a detector's pixels, kept by content: see `_radius`."""
    bins, sizes = radial_bins(good.array.ravel(), radius.array.ravel())
    return side_by_side(bins, sizes, np.argsort(sizes, kind="stable"))


def on_powder_rings(
    radius: NDArray[np.floating],
    event: NDArray[np.integer],
    *,
    weights: NDArray[np.generic] | float = 1.0,
    kind: NDArray[np.intp] | int = 0,
) -> NDArray[np.bool_]:
    """Which peaks lie on powder rings.

    Grains of ice, salt or crushed crystals lie on few rings around the beam, the peaks of a crystal
    on many. A ring is one of powder if it holds several peaks and those around it do not; once an
    event has one, fewer peaks make the next.

    Parameters
    ----------
    radius : ndarray
        Distance from the beam in pixels, shape (peak,).
    event : ndarray of int
        Number of each peak's event, shape (peak,).
    weights : ndarray or float
        For how many peaks each counts, shape (peak,).
    kind : ndarray of int or int
        0 or 1: peaks that were searched for in two ways are counted apart, shape (peak,).

    Examples
    --------
    >>> radius = np.array([200.0, 201.0, 202.0, 203.0, 201.0, 330.0, 410.0])
    >>> on_powder_rings(radius, np.zeros(7, int)).tolist()
    [True, True, True, True, True, False, False]
    """
    if not len(radius):
        return np.zeros(0, np.bool_)
    rows = np.unique(event, return_inverse=True)[1].reshape(-1)
    n_rings = int(radius.max() / _RING_PX) + 2
    # Two sets of rings, half a ring apart: what lies on the border of one is inside the other.
    rings = [(radius / _RING_PX + shift).astype(np.intp) for shift in (0.0, 0.5)]
    shape, n_each = (2, rows.max() + 1, n_rings), np.broadcast_to(weights, rows.shape)
    places = [
        np.ravel_multi_index((np.broadcast_to(kind, rows.shape), rows, r), shape) for r in rings
    ]
    counted = [np.bincount(place, n_each, minlength=math.prod(shape)) for place in places]
    peaks = np.reshape(counted, (len(rings), *shape)).max(axis=1)
    if peaks.max() < _FIRST_RING:
        return np.zeros(len(radius), np.bool_)
    padded = np.pad(peaks, ((0, 0), (0, 0), (_AROUND, _AROUND)))
    steps = [step for step in range(2 * _AROUND + 1) if abs(step - _AROUND) > 1]
    around = np.mean([padded[..., step : step + n_rings] for step in steps], axis=0)
    stands_out = peaks >= _CONTRAST * around + np.sqrt(around)
    stands_out[..., : _INNERMOST_PX // _RING_PX] = False
    has_powder = ((peaks >= _FIRST_RING) & stands_out).any(axis=(0, 2))
    full = (peaks >= FEWEST_ON_RING) & stands_out & has_powder[:, np.newaxis]
    on_ring: NDArray[np.bool_] = full[0, rows, rings[0]] | full[1, rows, rings[1]]
    return on_ring


def _check(
    frames: NDArray[np.generic], good: NDArray[np.bool_], radius: NDArray[np.floating]
) -> None:
    """Refuse frames that do not fit their mask, or hold no real numbers."""
    shape = frames.shape[1:]
    if shape != good.shape or shape != radius.shape or len(shape) not in (2, 3):
        raise SchemaError(
            f"peak finder: expected frame, good and radius all (y, x) or (panel, y, x), found "
            f"{shape}, {good.shape} and {radius.shape}"
        )
    if frames.dtype.kind not in "iuf":
        raise SchemaError(f"peak finder: expected integer or floating pixels, found {frames.dtype}")


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
        # Loads scipy, which finding peaks does not need.
        from sfxreduce.scorers.calibration.record import Calibration

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
        counts = self.finder.count(
            pixels,
            detector.good(),
            radius_of(detector),
            adu_per_photon=detector.adu_per_photon,
        )
        return np.where(detector.is_usable(), counts, np.nan).astype(np.float32)

    def count_apart(
        self, pixels: NDArray[np.generic], detector: Detector
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Count all peaks of every event, and those off powder rings; see `__call__`."""
        counts = self.finder.count_apart(
            pixels,
            detector.good(),
            radius_of(detector),
            adu_per_photon=detector.adu_per_photon,
        )
        n_peaks, off_rings = np.where(detector.is_usable(), counts, np.nan).astype(np.float32)
        return n_peaks, off_rings


def radius_of(detector: Detector) -> NDArray[np.float64]:
    """Distance of every pixel from the beam in pixels, in the shape of a frame.

    As `Detector.radius`, but worked out once and kept: it cannot be written into.
    """
    return _radius(
        detector.panel_shape, detector.panels, detector.sensors, stacked=detector.stacked
    )


@lru_cache(maxsize=4)
def _radius(
    panel_shape: tuple[int, int],
    panels: tuple[Panel, ...],
    sensors: tuple[Sensor, ...],
    *,
    stacked: bool,
) -> NDArray[np.float64]:
    """Distances from the beam, kept by content: every task unpickles a detector of its own."""
    bare = Detector(
        name="", panel_shape=panel_shape, panels=panels, stacked=stacked, sensors=sensors
    )
    radius = bare.radius()
    radius.setflags(write=False)
    return radius
