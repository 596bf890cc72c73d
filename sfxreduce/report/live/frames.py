"""Frames of a run as a page shows them: small, with peaks and the detector they were seen by."""

from __future__ import annotations

import math
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from sfxreduce.report.figures import brightest_blocks, peaks_in_picture
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import FrameSource, Run

__all__ = ["Frames", "Ring", "SeenFrame", "resolution_rings"]

MOST_POINTS = 1000
"""Longest side of a picture: what a screen shows, and a tenth of a second to send."""

MOST_KEPT = 24
"""Pictures that are kept, for the way back."""

EV_ANGSTROM = 12398.42
"""Photon energy in electronvolt times wavelength in angstrom."""

RESOLUTIONS_A = (20.0, 10.0, 5.0, 4.0, 3.0, 2.5, 2.0, 1.7, 1.5, 1.3, 1.1, 1.0)
MOST_RINGS = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeenFrame:
    """One frame, ready to be shown.

    Parameters
    ----------
    event : int
        Position in the run.
    grey : ndarray of uint8
        Shape (row, column) of the assembled picture in blocks: 0 where nothing was measured, 1 to
        255 from dark to bright, by the inverse hyperbolic sine of the signal.
    step : int
        Side of a block in pixels.
    peaks : tuple of tuple of float
        (column, row) in pixels of the assembled picture.
    fault : str
        Why there is no picture; empty if there is one.
    """

    event: int
    grey: NDArray[np.uint8]
    step: int
    peaks: tuple[tuple[float, float], ...] = ()
    fault: str = ""


class Frames:
    """Frames of a run, read in a thread of their own, one after the other.

    Parameters
    ----------
    most_points : int
        Longest side of a picture.
    peaks : bool
        Whether to look for peaks.
    """

    def __init__(self, run: Run, *, most_points: int = MOST_POINTS, peaks: bool = True) -> None:
        self._source = run.source
        self._most, self._peaks = most_points, peaks
        self._known: OrderedDict[int, Future[SeenFrame]] = OrderedDict()
        self._lock = Lock()
        self._work = ThreadPoolExecutor(1, thread_name_prefix="frames")

    def turn_to(self, run: Run) -> None:
        """Read from this run from now on."""
        with self._lock:
            if run.source is not self._source:
                self._source = run.source
                self._known.clear()

    def ask(self, event: int) -> Future[SeenFrame]:
        """Have a frame read, unless it is known; what cannot be read has a fault instead."""
        with self._lock:
            known = self._known.pop(event, None) or self._work.submit(
                self._read, self._source, event
            )
            self._known[event] = known
            while len(self._known) > MOST_KEPT:
                self._known.popitem(last=False)
        return known

    def close(self) -> None:
        """Read no more."""
        self._work.shutdown(cancel_futures=True)

    def _read(self, source: FrameSource, event: int) -> SeenFrame:
        nothing = np.zeros((1, 1), np.uint8)
        try:
            reading = source.read([event])
        except Exception as error:  # noqa: BLE001 - it is shown, and the page goes on
            return SeenFrame(event=event, grey=nothing, step=1, fault=str(error))
        if reading.reasons[0]:
            flags = [str(one.name).lower() for one in Reason if int(reading.reasons[0]) & one]
            return SeenFrame(event=event, grey=nothing, step=1, fault=", ".join(flags))
        frame, detector = reading.pixels[0], source.detector
        values, step = brightest_blocks(frame, detector, most=self._most)
        return SeenFrame(
            event=event,
            grey=_greys(values),
            step=step,
            peaks=peaks_in_picture(frame, detector) if self._peaks else (),
        )


def _greys(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """From dark to bright in 255 levels, the weak ones apart and the strong ones still in range."""
    lit = np.isfinite(values)
    grey = np.zeros(values.shape, np.uint8)
    if not lit.any():
        return grey
    low, middle = np.percentile(values[lit], [2, 50])
    span = max(float(middle - low), 1e-6)
    strength = np.arcsinh(np.clip(values[lit] - low, 0, None) / span)
    most = max(float(strength.max()), math.asinh(10.0))
    grey[lit] = 1 + np.rint(254 * strength / most).astype(np.uint8)
    return grey


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """Where X-rays of one resolution meet the detector.

    Parameters
    ----------
    resolution_a : float
        In angstrom.
    column, row, radius : float
        Centre and radius in pixels of the assembled picture.
    """

    resolution_a: float
    column: float
    row: float
    radius: float


def resolution_rings(detector: Detector, photon_energy_ev: float) -> tuple[Ring, ...]:
    """Rings of round resolutions that lie on the picture; none where its place is not known.

    Examples
    --------
    >>> camera = Detector.centred("camera", (2000, 2000), pixel_size_m=1e-4, distance_m=0.1)
    >>> [ring.resolution_a for ring in resolution_rings(camera, 9000.0)]
    [10.0, 4.0, 2.5, 2.0]
    """
    size, distance = detector.pixel_size_m, detector.distance_m
    known = all(map(math.isfinite, (size, distance, photon_energy_ev))) and photon_energy_ev > 0
    if detector.is_assumed or not known:
        return ()
    covered = detector.covered()
    x, y = (places[covered] for places in detector.positions())
    column, row = 0.5 - float(x.min()), 0.5 - float(y.min())
    widest = 0.97 * max(float(np.abs(x).max()), float(np.abs(y).max()))
    wavelength = EV_ANGSTROM / photon_energy_ev
    rings: list[Ring] = []
    for resolution in RESOLUTIONS_A:
        sine = wavelength / (2 * resolution)
        if sine < math.sqrt(0.5):  # what is scattered by less than a right angle
            radius = distance * math.tan(2 * math.asin(sine)) / size
            far = not rings or radius > rings[-1].radius + widest / (MOST_RINGS + 1)
            if far and widest / 10 < radius <= widest:
                rings.append(Ring(resolution_a=resolution, column=column, row=row, radius=radius))
    return tuple(rings)
