"""What a run says about its own detector: gain, background, and pixels that are bright or noisy.

All of it comes from a bounded sample of frames without labels. Gain is the slope of a
photon-transfer curve [1]_: photons arrive at random, so that the variance of a patch grows with its
mean by one gain's worth a photon. A pixel that stands out in frame after frame is hot: Bragg peaks
move from crystal to crystal, and within one frame nothing tells a hot pixel from a sharp peak. Nor
does one frame tell a short row of larger pixels, as sensors have along their seams, from a streaky
peak: straight lines of pixels that are brighter than the lines beside them count as hot too.

References
----------
.. [1] J. R. Janesick, Photon Transfer (2007), SPIE Press. doi:10.1117/3.725073
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, label

from sfxreduce.background import Background, background_of
from sfxreduce.cells import CELL, by_pixel, cell_moments, cell_sums
from sfxreduce.geometry import Detector, PixelFlag, Window
from sfxreduce.noisy import noisy_pixels
from sfxreduce.run import FrameSource, Run, read_into
from sfxreduce.wrapped import WrappedFrames

__all__ = [
    "Conditioned",
    "Conditions",
    "conditions_of",
    "conditions_of_run",
    "empty_pixels",
    "estimate_gain",
    "frames_to_look_at",
    "hot_pixels",
]

SAMPLE_FRAMES = 24
"""Most frames that are looked at, whatever the run's length."""

FEWEST_FRAMES_FOR_HOT = 20
"""With fewer, a crystal that is hit twice in one place would pass for a hot pixel."""

_CELLS_OF_AN_AREA = 64
_BINS = 24
_HOT_SIGMA = 4.5
_HOT_SHARE = 0.2
_BRIGHT_SIGMA = 1.25
_LINE_PX = 32
_LINE_BESIDE_PX = 3
_LINE_SIGMA = 8.0
# So far one frame may pull a line: a Bragg peak on it is no larger pixel.
_PULL_SIGMA = 3.0
_MOST_HOT = 0.01
_MOST_IN_LINES = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What was found.

    Parameters
    ----------
    adu_per_photon : float
        Gain in ADU: the detector's own where it is known, the estimate else, NaN if neither.
    hot : bytes
        Flat indices of the hot pixels in a frame, as int64.
    noisy : bytes
        The same of pixels that scatter far more than their likes: see `noisy_pixels`.
    empty : bytes
        The same of pixels that no sensor stands behind: see `empty_pixels`.
    background : Background
        How bright it is between the peaks.
    frames : int
        Frames looked at.
    """

    adu_per_photon: float = math.nan
    hot: bytes = field(default=b"", repr=False)
    noisy: bytes = field(default=b"", repr=False)
    empty: bytes = field(default=b"", repr=False)
    background: Background = field(default_factory=Background)
    frames: int = 0

    @property
    def hot_index(self) -> NDArray[np.int64]:
        """Flat indices of the hot pixels in a frame."""
        return np.frombuffer(self.hot, np.int64)

    @property
    def noisy_index(self) -> NDArray[np.int64]:
        """Flat indices of the noisy pixels in a frame; some may be hot as well."""
        return np.frombuffer(self.noisy, np.int64)

    @property
    def empty_index(self) -> NDArray[np.int64]:
        """Flat indices of the pixels of a frame that no sensor stands behind."""
        return np.frombuffer(self.empty, np.int64)

    @property
    def background_photons(self) -> float:
        """Background in photons a pixel; NaN where the gain or the background is unknown."""
        return self.background.adu / self.adu_per_photon


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioned(WrappedFrames):
    """A source of frames whose detector knows what was found: see `sfxreduce.run.FrameSource`.

    Parameters
    ----------
    source : FrameSource
    found : Conditions
    """

    found: Conditions

    @property
    def detector(self) -> Detector:
        """Geometry and mask, hot and noisy pixels masked and the gain filled in."""
        found = self.found
        gain = np.float64(found.adu_per_photon).tobytes()
        return _amended(self.source.detector, found.hot, found.noisy, found.empty, gain)

    def read_into(
        self, events: Sequence[int], window: Window | None, pixels: NDArray[np.generic]
    ) -> NDArray[np.uint32]:
        """Read events into an array. See `sfxreduce.run.ReadsInto`."""
        return read_into(self.source, events, window, pixels)


def conditions_of_run(run: Run, *, most_frames: int = SAMPLE_FRAMES) -> Conditions:
    """Look at frames spread evenly over a run; those that cannot be read do not count.

    Parameters
    ----------
    run : Run
    most_frames : int
    """
    return conditions_of(run.source, frames_to_look_at(run.n_events, most=most_frames))


def frames_to_look_at(n_events: int, *, most: int = SAMPLE_FRAMES) -> list[int]:
    """Indices of frames spread evenly over a run.

    Parameters
    ----------
    n_events : int
    most : int

    Examples
    --------
    >>> frames_to_look_at(1000, most=3)
    [0, 499, 999]
    """
    places = np.linspace(0, n_events - 1, min(n_events, most)).astype(int)
    events: list[int] = np.unique(places).tolist()
    return events


def conditions_of(source: FrameSource, events: Sequence[int]) -> Conditions:
    """Look at some frames; those that cannot be read do not count.

    Parameters
    ----------
    source : FrameSource
    events : sequence of int
    """
    detector = source.detector
    reading = source.read(events)
    frames = reading.pixels
    if reading.reasons.any():
        frames = frames[reading.reasons == 0]
    good = detector.good()
    known = math.isfinite(detector.adu_per_photon) and detector.adu_per_photon > 0
    gain = detector.adu_per_photon if known else estimate_gain(frames, good)
    hot = hot_pixels(frames, good, adu_per_photon=gain)
    noisy = noisy_pixels(frames, good, adu_per_photon=gain, fewest_frames=FEWEST_FRAMES_FOR_HOT)
    empty = (
        np.zeros(0, np.int64) if detector.stacked else np.flatnonzero(empty_pixels(frames, good))
    )
    return Conditions(
        adu_per_photon=gain,
        hot=np.flatnonzero(hot).astype(np.int64).tobytes(),
        noisy=np.flatnonzero(noisy).astype(np.int64).tobytes(),
        empty=empty.astype(np.int64).tobytes(),
        background=background_of(frames, good & ~hot & ~noisy, radius=detector.radius()),
        frames=len(frames),
    )


def estimate_gain(frames: NDArray[np.generic], good: NDArray[np.bool_]) -> float:
    """Gain from mean and variance of small squares of many frames.

    Parameters
    ----------
    frames : ndarray
        Shape (event, y, x) or (event, panel, y, x), in ADU.
    good : ndarray of bool
        Shape of a frame.

    Returns
    -------
    float
        ADU per photon; NaN if the variance does not follow the mean.

    Examples
    --------
    >>> photons = np.random.default_rng(0).poisson(np.linspace(1, 9, 128), (4, 128, 128))
    >>> round(estimate_gain(20 * photons, np.ones((128, 128), bool)))
    20
    """
    moments = [cell_moments(frame, good) for frame in frames]
    mean = np.concatenate([m.ravel() for m, _ in moments]) if moments else np.zeros(0)
    variance = np.concatenate([v.ravel() for _, v in moments]) if moments else np.zeros(0)
    whole = np.isfinite(mean) & np.isfinite(variance)
    mean, variance = mean[whole], variance[whole]
    if mean.size < 2 * _BINS:
        return math.nan
    bins = np.array_split(np.argsort(mean), _BINS)
    x = np.array([np.median(mean[b]) for b in bins])
    y = np.array([np.median(variance[b]) for b in bins])
    return _slope(x, y)


def hot_pixels(
    frames: NDArray[np.generic], good: NDArray[np.bool_], *, adu_per_photon: float = math.nan
) -> NDArray[np.bool_]:
    """Good pixels that stand out of their surroundings in frame after frame.

    Parameters
    ----------
    frames : ndarray
        Shape (event, y, x) or (event, panel, y, x), in ADU.
    good : ndarray of bool
        Shape of a frame.
    adu_per_photon : float
        Half a photon is the least noise; one ADU if it is not known.

    Returns
    -------
    ndarray of bool
        Shape of a frame. None at all if there are too few frames, or if more than 1 % of the
        pixels (3 % in lines) would be hot: then it is not the detector that stands still, but the
        crystal.
    """
    none = np.zeros(good.shape, np.bool_)
    if len(frames) < FEWEST_FRAMES_FOR_HOT:
        return none
    floor = 0.5 * (adu_per_photon if math.isfinite(adu_per_photon) else 1.0)
    often = np.zeros(good.shape, np.int32)
    noise, level = np.zeros((2, *good.shape), np.float32)
    for frame in frames:
        mean, sigma = _moments_of_pixels(frame, good, floor)
        out = (frame.astype(np.float32) - mean) / sigma
        often += out > _HOT_SIGMA
        noise += sigma / np.float32(len(frames))
        sigma[~np.isfinite(sigma)] = 0
        level += mean + np.clip(np.nan_to_num(out), -_PULL_SIGMA, _PULL_SIGMA) * sigma
    usual = np.median(frames.astype(np.float32, copy=False), axis=0)
    excess = usual - _moments_of_pixels(usual, good, floor)[0]
    level /= np.float32(len(frames))
    single = (often > _HOT_SHARE * len(frames)) | (excess > _BRIGHT_SIGMA * noise)
    alike, error = good & ~single, noise / np.float32(math.sqrt(len(frames)))
    lines = _bright_lines(level, error, alike)
    lines |= _bright_lines(level.mT, error.mT, alike.mT).mT
    hot = none
    for bright, most in ((single & ~lines, _MOST_HOT), (lines, _MOST_IN_LINES)):
        if np.count_nonzero(good & bright) <= most * good.sum():
            hot = hot | (good & bright)
    return hot


def empty_pixels(frames: NDArray[np.generic], good: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Good pixels of wide areas that never read anything but one value.

    An assembled picture has corners and gaps that are zero on every frame and in no mask. They are
    no missing panels.

    Parameters
    ----------
    frames : ndarray
        Shape (event, y, x), in ADU.
    good : ndarray of bool
        Shape of a frame.

    Returns
    -------
    ndarray of bool
        Shape of a frame. None at all if there are too few frames to tell.
    """
    if len(frames) < FEWEST_FRAMES_FOR_HOT:
        return np.zeros(good.shape, np.bool_)
    still = np.all(frames == frames[:1], axis=0) | ~good
    n_y, n_x = (-(-side // CELL) for side in good.shape)
    padded = np.ones((n_y * CELL, n_x * CELL), np.bool_)
    padded[: good.shape[0], : good.shape[1]] = still
    cells = padded.reshape(n_y, CELL, n_x, CELL).all(axis=(1, 3))
    area, _ = label(cells)
    wide = np.flatnonzero(np.bincount(area.ravel()) >= _CELLS_OF_AN_AREA)
    # An area ends somewhere inside the cells around it.
    near = binary_dilation(np.isin(area, wide[wide > 0]), structure=np.ones((3, 3)))
    empty = near.repeat(CELL, axis=0).repeat(CELL, axis=1)
    found: NDArray[np.bool_] = empty[: good.shape[0], : good.shape[1]] & still & good
    return found


def _bright_lines(
    level: NDArray[np.float32], error: NDArray[np.float32], good: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Pixels of stretches of a row that are brighter than the rows on both sides.

    `level` is what a pixel usually reads and `error` how well that is known.
    """
    starts = np.arange(0, good.shape[-1], _LINE_PX)

    def stretches(of: NDArray[np.float32]) -> NDArray[np.float64]:
        summed: NDArray[np.float64] = np.add.reduceat(
            np.where(good, of, 0), starts, axis=-1, dtype=np.float64
        )
        return summed

    count = np.add.reduceat(good, starts, axis=-1, dtype=np.int32)
    n = np.where(count >= _LINE_PX // 2, count, np.nan)
    mean, variance = stretches(level) / n, stretches(error * error) / n**2
    bright = np.zeros(mean.shape, np.bool_)
    if mean.shape[-2] > 2 * _LINE_BESIDE_PX:
        here = np.s_[..., _LINE_BESIDE_PX:-_LINE_BESIDE_PX, :]
        before, after = np.s_[..., : -2 * _LINE_BESIDE_PX, :], np.s_[..., 2 * _LINE_BESIDE_PX :, :]
        excess = mean[here] - (mean[before] + mean[after]) / 2
        sigma = np.sqrt(variance[here] + (variance[before] + variance[after]) / 4)
        bright[here] = excess > _LINE_SIGMA * sigma
    lines: NDArray[np.bool_] = bright.repeat(_LINE_PX, axis=-1)[..., : good.shape[-1]] & good
    return lines


def _moments_of_pixels(
    frame: NDArray[np.generic], good: NDArray[np.bool_], floor: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and sigma of the cell of every pixel; sigma is infinite where nothing can be told."""
    count, total, squares, level = cell_sums(frame, good)
    n = np.maximum(count, 1)
    spread = np.sqrt(np.maximum(squares / n - (total / n) ** 2, floor**2))
    spread[count < CELL] = np.inf
    mean = by_pixel(total / n + level, good.shape, outside=0)
    return mean, by_pixel(spread, good.shape, outside=np.inf)


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Slope of y over x, weighted for a scatter that grows with y; NaN if y does not follow x."""
    weight = 1.0 / np.maximum(y, 1e-3 * np.median(y) + 1e-12) ** 2
    centre_x, centre_y = (np.average(of, weights=weight) for of in (x, y))
    spread = np.sum(weight * (x - centre_x) ** 2)
    if not spread > 0:
        return math.nan
    slope = float(np.sum(weight * (x - centre_x) * (y - centre_y)) / spread)
    left = np.sum(weight * (y - centre_y - slope * (x - centre_x)) ** 2)
    follows = left < 0.5 * np.sum(weight * (y - centre_y) ** 2)
    return slope if slope > 0 and follows else math.nan


@lru_cache(maxsize=4)
def _amended(detector: Detector, hot: bytes, noisy: bytes, empty: bytes, gain: bytes) -> Detector:
    """The detector with what was found, made once per process.

    All of it comes as bytes: an unknown gain is NaN, and no NaN equals the one that a worker
    received with the task before.
    """
    mask = detector.mask.copy()
    flags = ((hot, PixelFlag.HOT), (noisy, PixelFlag.NOISY), (empty, PixelFlag.GAP))
    for pixels, flag in flags:
        mask.reshape(-1)[np.frombuffer(pixels, np.int64)] |= np.uint32(flag)
    return replace(detector, mask=mask, adu_per_photon=float(np.frombuffer(gain)[0]))
