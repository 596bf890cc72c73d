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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.quality.bad_pixels import (
    FEWEST_FRAMES_FOR_HOT,
    empty_pixels,
    hot_pixels,
    noisy_pixels,
)
from sfxreduce.quality.frame_statistics import CELL, cell_moments
from sfxreduce.quality.gain import estimate_gain
from sfxreduce.run.detector import Detector, PixelFlag
from sfxreduce.run.run import (
    FrameSource,
    Reading,
    Run,
    Sampled,
    Samples,
    WrappedFrames,
    read_into,
    samples_of,
)
from sfxreduce.run.window import Window

__all__ = [
    "Background",
    "Conditioned",
    "Conditions",
    "background_of",
    "conditions_of",
    "conditions_of_run",
    "conditions_of_table",
    "conditions_table",
    "frames_to_look_at",
]

MOST_RINGS = 64
"""Rings of equal width around the beam; fewer on small frames, as a ring is not below a cell.
Chosen, not measured."""

FEWEST_CELLS_IN_RING = 3  # the fewest whose median leaves one out


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """What was found.

    Parameters
    ----------
    adu : float
        Level of the whole frame in ADU; NaN if nothing could be measured.
    radii : bytes
        Distance of every ring from the beam in pixels, as float64.
    rings : bytes
        Level of every ring in ADU, as float64; NaN where a ring has too few pixels.
    """

    adu: float = math.nan
    radii: bytes = field(default=b"", repr=False)
    rings: bytes = field(default=b"", repr=False)

    @property
    def ring_radius_px(self) -> NDArray[np.float64]:
        """Distance from the beam in pixels, of half of what was looked at in every ring."""
        return np.frombuffer(self.radii, np.dtype(np.float64))

    @property
    def ring_adu(self) -> NDArray[np.float64]:
        """Level of every ring in ADU."""
        return np.frombuffer(self.rings, np.dtype(np.float64))


def background_of(
    frames: NDArray[np.generic], good: NDArray[np.bool_], *, radius: NDArray[np.float64]
) -> Background:
    """Level of the whole frame and of rings around the beam.

    Parameters
    ----------
    frames : ndarray
        Shape (event, y, x) or (event, panel, y, x), in ADU.
    good : ndarray of bool
        Shape of a frame.
    radius : ndarray of float
        Distance of every pixel from the beam in pixels, shape of a frame.

    Examples
    --------
    >>> side = np.arange(-80, 80) + 0.5
    >>> radius = np.hypot(side[:, None], side)
    >>> frames = np.stack([100 - radius / 2] * 4)
    >>> found = background_of(frames, np.ones((160, 160), bool), radius=radius)
    >>> bool(np.nanmax(abs(found.ring_adu - (100 - found.ring_radius_px / 2))) < 1e-6)
    True
    """
    means = np.array([cell_moments(frame, good)[0].ravel() for frame in frames])
    if not np.isfinite(means).any():
        return Background()
    level = np.median([np.nanmedian(mean) for mean in means if np.isfinite(mean).any()])
    whole = np.isfinite(means).any(axis=0)
    usual = np.nanmedian(means[:, whole], axis=0)
    distance = cell_moments(radius, np.ones_like(good))[0].ravel()[whole]
    width = max(float(radius.max()) / MOST_RINGS, float(CELL))
    ring = np.floor(distance / width).astype(np.int64)
    n_rings = math.ceil(float(radius.max()) / width)
    # Where no cell tells otherwise, a ring lies in the middle between its edges.
    radii, rings = (np.arange(n_rings) + 0.5) * width, np.full(n_rings, math.nan)
    for r in range(n_rings):
        inside = ring == r
        if np.count_nonzero(inside) >= FEWEST_CELLS_IN_RING:
            # Cells do not fill a narrow ring evenly; where the level falls off, medians match.
            radii[r], rings[r] = np.median(distance[inside]), np.median(usual[inside])
    return Background(adu=float(level), radii=radii.tobytes(), rings=rings.tobytes())


SAMPLE_FRAMES = 24
"""Most frames that are looked at, whatever the run's length; `FEWEST_FRAMES_FOR_HOT` of them
have to be readable. Chosen, not measured."""


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
    """A source of frames whose detector knows the conditions of the run.

    See `sfxreduce.run.run.FrameSource`.
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
        """Read events into an array. See `sfxreduce.run.run.ReadsInto`."""
        return read_into(self.source, events, window, pixels)

    def sampled(self, first: Window, window: Window) -> Sampled | None:
        """Pixels that are sampled of tiles. See `sfxreduce.run.run.Samples`."""
        return samples_of(self.source, first, window)

    def read_first(
        self,
        events: Sequence[int],
        first: Window,
        window: Window,
        room: NDArray[np.generic],
    ) -> Iterator[Reading]:
        """Read some tiles, and samples of the others. See `sfxreduce.run.run.Samples`."""
        assert isinstance(self.source, Samples)  # noqa: S101 - or nothing would be sampled
        return self.source.read_first(events, first, window, room)


def conditions_of_run(run: Run, *, most_frames: int = SAMPLE_FRAMES) -> Conditions:
    """Look at frames spread evenly over a run; those that cannot be read do not count."""
    return conditions_of(run.source, frames_to_look_at(run.n_events, most=most_frames))


def frames_to_look_at(n_events: int, *, most: int = SAMPLE_FRAMES) -> list[int]:
    """Indices of frames spread evenly over a run.

    Examples
    --------
    >>> frames_to_look_at(1000, most=3)
    [0, 499, 999]
    """
    places = np.linspace(0, n_events - 1, min(n_events, most)).astype(int)
    events: list[int] = np.unique(places).tolist()
    return events


def conditions_of(source: FrameSource, events: Sequence[int]) -> Conditions:
    """Look at some frames; those that cannot be read do not count."""
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


def conditions_table(found: Conditions) -> xr.Dataset:
    """Conditions of a run as a table.

    Returns
    -------
    Dataset
        ``hot_index`` on dimension ``hot``, ``noisy_index`` on ``noisy`` and ``empty_index`` on
        ``empty`` (int64), ``ring_radius_px`` and ``ring_background_adu`` on ``ring`` (float64).
        The numbers of the whole frame are attributes, None where they are unknown.

    Examples
    --------
    >>> conditions_table(Conditions(frames=24)).attrs["frames"]
    24
    """
    background = found.background
    place = "flat position in a source frame"
    numbers = {
        "adu_per_photon": found.adu_per_photon,
        "background_adu": background.adu,
        "background_photons": found.background_photons,
    }
    return xr.Dataset(
        {
            "hot_index": (
                "hot",
                found.hot_index,
                {"long_name": f"pixels that are always bright: {place}", "units": "1"},
            ),
            "noisy_index": (
                "noisy",
                found.noisy_index,
                {"long_name": f"pixels that scatter too far: {place}", "units": "1"},
            ),
            "empty_index": (
                "empty",
                found.empty_index,
                {"long_name": f"pixels without a sensor: {place}", "units": "1"},
            ),
            "ring_radius_px": (
                "ring",
                background.ring_radius_px,
                {"long_name": "distance of the ring from the beam", "units": "pixel"},
            ),
            "ring_background_adu": (
                "ring",
                background.ring_adu,
                {"long_name": "background in the ring, peaks left out", "units": "ADU"},
            ),
        },
        attrs={
            **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
            "frames": found.frames,
        },
    )


def conditions_of_table(table: xr.Dataset) -> Conditions | None:
    """Conditions as `conditions_table` put them down; None from a table that lacks any of them.

    Examples
    --------
    >>> found = Conditions(adu_per_photon=20.0, hot=np.arange(2).tobytes(), frames=24)
    >>> conditions_of_table(conditions_table(found)) == found
    True
    """
    pixels = ("hot_index", "noisy_index", "empty_index")
    rings = ("ring_radius_px", "ring_background_adu")
    if not ({*pixels, *rings} <= set(table) and "frames" in table.attrs):
        return None
    hot, noisy, empty = (table[name].values.astype(np.int64).tobytes() for name in pixels)
    radii, levels = (table[name].values.astype(np.float64).tobytes() for name in rings)
    gain, level = (
        math.nan if table.attrs.get(name) is None else float(table.attrs[name])
        for name in ("adu_per_photon", "background_adu")
    )
    return Conditions(
        adu_per_photon=gain,
        hot=hot,
        noisy=noisy,
        empty=empty,
        background=Background(adu=level, radii=radii, rings=levels),
        frames=int(table.attrs["frames"]),
    )
