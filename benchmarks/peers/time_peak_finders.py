"""Time the peak finders of other projects: CPU milliseconds per event, one thread, one process.

Runs in the environment that `make peers` makes, without sfxreduce. It first prints a line of JSON
that says which searches are installed, then answers each line on its standard input with one:
``{"frames": PATH, "good": PATH}`` loads frames, ``{"finder": NAME, "settings": {...}}`` searches
them once, or the one whose number follows as ``"only"``. So the peers' turns can come between
those of others.

Inside the clock is one call per frame of the compiled search, float32 pixels in, lists of peaks
out: what LUTE, psana and OM do with every event. Outside is what their pipelines have at hand or
do once per run: reading, frames as float32 (calibration gives them so), the int8 mask, the radius
of every pixel, and the pixels that fast mode samples. OM and psana's example copy each frame once
more with ``astype``; that is left out too, in their favour. The searches start no threads, and
the clock is that of the process: it would count them.

`benchmarks/peers_runner.py` runs it.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import PathFinder
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Search = Callable[[NDArray[np.float32]], tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSettings:
    """Settings that all searches share.

    Parameters
    ----------
    min_snr : float
        Of a pixel against its ring, and of a peak against its surroundings.
    min_adc : float
        Pixels below this many ADU never belong to a peak.
    min_pixels, max_pixels : int
        Size of a peak.
    local_radius : int
        Width in pixels of the surroundings that give the local background.
    min_radius, max_radius : float
        Distance of a peak from the beam in pixels; by default all of any detector.
    max_peaks : int
    sampled_pixels : int
        Pixels of each ring that OM's fast mode takes the background from; 100 is its default.
    """

    min_snr: float = 5.0
    min_adc: float = 0.0
    min_pixels: int = 1
    max_pixels: int = 30
    local_radius: int = 3
    min_radius: float = 0.0
    max_radius: float = 1e5
    max_peaks: int = 2048
    sampled_pixels: int = 100


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Geometry:
    """What a search is given once per run.

    Parameters
    ----------
    mask : ndarray of int8
        Shape (y, x); 1 where to search.
    radius : ndarray of float32
        Shape (y, x), in pixels from the middle of the frame, where the beam is.
    sample, sample_radius : ndarray of int32
        Flat indices of the sampled pixels, and the rings they are on.
    """

    mask: NDArray[np.int8]
    radius: NDArray[np.float32]
    sample: NDArray[np.int32]
    sample_radius: NDArray[np.int32]

    @classmethod
    def of(cls, good: NDArray[np.bool_], settings: PeerSettings) -> Geometry:
        """Prepare a frame of one panel."""
        y, x = (np.arange(n) - (n - 1) / 2 for n in good.shape)
        radius = np.hypot(y[:, np.newaxis], x).astype(np.float32)
        seen = good & (radius >= settings.min_radius) & (radius <= settings.max_radius)
        ring = np.rint(radius).astype(np.int32).ravel()
        # In an order drawn once, the first pixels of each ring are a random sample of it.
        drawn = np.random.default_rng(0).permutation(ring.size)
        by_ring = drawn[np.argsort(ring[drawn], kind="stable")]
        n_before = np.concatenate([[0], np.cumsum(np.bincount(ring))[:-1]])
        place = np.arange(ring.size) - n_before[ring[by_ring]]
        sample = by_ring[place < settings.sampled_pixels].astype(np.int32)
        return cls(
            mask=with_room(seen.astype(np.int8)),
            radius=with_room(radius),
            sample=sample,
            sample_radius=ring[sample],
        )


def with_room(array: NDArray[Any]) -> NDArray[Any]:
    """The same array in the middle of memory that may be read on both sides of it.

    LUTE's search reads beyond a frame where a peak lies at its edge, and ends in a segmentation
    fault if nothing is there.
    """
    rows = array.reshape(-1, array.shape[-1])
    n_spare = array.shape[-2]
    roomy = np.zeros((len(rows) + 2 * n_spare, array.shape[-1]), array.dtype)
    own = roomy[n_spare : n_spare + len(rows)]
    own[...] = rows
    return own.reshape(array.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finder:
    """A peak finder of another project.

    Parameters
    ----------
    name, package : str
        In the table, and on PyPI.
    function : str
        Dotted name of the compiled function.
    bound : callable
        Gives the function what does not change from frame to frame.
    """

    name: str
    package: str
    function: str
    bound: Callable[[Any, Geometry, PeerSettings], Search]

    def search(self, geometry: Geometry, settings: PeerSettings) -> Search:
        """Search of one frame.

        Raises
        ------
        ImportError
            If the package is not installed, or has no such function.
        """
        module, _, function = self.function.rpartition(".")
        # By its file: the packages around it import MPI, Kerberos and more, which it does not use.
        folder = Path(str(distribution(self.package).locate_file(module.replace(".", "/")))).parent
        spec = PathFinder.find_spec(module, [str(folder)])
        if spec is None or spec.loader is None:
            raise ImportError(f"{self.package}: no module {module}")
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        if not hasattr(loaded, function):
            raise ImportError(f"{self.package}: no function {function} in {module}")
        return self.bound(getattr(loaded, function), geometry, settings)


def thresholds(settings: PeerSettings) -> tuple[float, float, int, int, int]:
    """Last arguments of every search, in the order that all share."""
    size = settings.min_pixels, settings.max_pixels
    return (settings.min_adc, settings.min_snr, *size, settings.local_radius)


def lute(function: Any, geometry: Geometry, settings: PeerSettings) -> Search:
    """LUTE's second version, which knows the panels from the shape of the frame."""
    most, last = settings.max_peaks, thresholds(settings)
    return lambda frame: function(most, frame, geometry.mask, geometry.radius, *last)


def psana(function: Any, geometry: Geometry, settings: PeerSettings) -> Search:
    """psana's, on one panel."""
    n_y, n_x = geometry.mask.shape
    most, last = settings.max_peaks, (n_x, n_y, 1, 1, *thresholds(settings))
    return lambda frame: function(most, frame, geometry.mask, geometry.radius, *last)


def om(function: Any, geometry: Geometry, settings: PeerSettings, *, fast: bool) -> Search:
    """OM's, on one panel; in fast mode the background is that of a sample of the pixels."""
    n_y, n_x = geometry.mask.shape
    sample = geometry.sample.size, geometry.sample, geometry.sample_radius
    last = (*sample, int(fast), n_x, n_y, 1, 1, *thresholds(settings))
    most = settings.max_peaks
    return lambda frame: function(most, frame, geometry.mask, geometry.radius, *last)


FINDERS = (
    Finder(
        name="LUTE peakfinder_8_v2",
        package="lute-lcls",
        function="lute.tasks.algorithms._peakfinders_ext.peakfinder_8_v2",
        bound=lute,
    ),
    Finder(
        name="psana peakfinder8",
        package="psana",
        function="psana.peakfinder8.peakfinder_8",
        bound=psana,
    ),
    *(
        Finder(
            name="OM peakfinder8" + (", fast mode" if fast else ""),
            package="ondamonitor",
            function="om.algorithms._crystallography.peakfinder_8",
            bound=lambda *given, fast=fast: om(*given, fast=fast),
        )
        for fast in (False, True)
    ),
)


class Server:
    """Frames in memory, and the searches that are installed.

    Parameters
    ----------
    finders : mapping of str to Finder
    """

    def __init__(self, finders: Mapping[str, Finder]) -> None:
        self.finders = finders
        self.frames: NDArray[np.float32] = np.zeros((0, 1, 1), np.float32)
        self.good: Path | None = None

    def answer(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Load frames, or search those that are loaded."""
        if "frames" in command:
            self.frames = with_room(np.load(command["frames"]).astype(np.float32))
            self.good = Path(command["good"])
            shape = np.load(self.good, mmap_mode="r").shape
            if self.frames.ndim != 3 or self.frames.shape[1:] != shape:
                raise ValueError(
                    f"{command['frames']}: expected frames of shape (event, {shape[0]}, "
                    f"{shape[1]}) like {self.good}, found {self.frames.shape}"
                )
            return {"n_events": len(self.frames)}
        if self.good is None:
            raise ValueError("expected frames before the first search; send 'frames' and 'good'")
        settings = PeerSettings(**command["settings"])
        search = _search(self.finders[command["finder"]], self.good, settings)
        frames = self.frames[command["only"] :][:1] if "only" in command else self.frames
        start = time.process_time()
        n_peaks = [len(search(frame)[0]) for frame in frames]
        spent = time.process_time() - start
        return {"cpu_ms": 1e3 * spent / max(len(n_peaks), 1), "n_peaks": n_peaks}


@lru_cache
def _search(finder: Finder, good: Path, settings: PeerSettings) -> Search:
    """A search that is ready for frames of a mask."""
    limits = settings.min_radius, settings.max_radius, settings.sampled_pixels
    return finder.search(_geometry(good, *limits), settings)


@lru_cache
def _geometry(good: Path, min_radius: float, max_radius: float, sampled_pixels: int) -> Geometry:
    settings = PeerSettings(
        min_radius=min_radius, max_radius=max_radius, sampled_pixels=sampled_pixels
    )
    return Geometry.of(np.load(good), settings)


def installed() -> tuple[dict[str, Finder], list[dict[str, str]]]:
    """The searches that are installed, and of all whether they are, or why not."""
    nothing = Geometry.of(np.ones((64, 64), np.bool_), PeerSettings())
    finders, listed = {}, []
    for finder in FINDERS:
        try:
            finder.search(nothing, PeerSettings())
        except ImportError as error:
            listed.append({"name": finder.name, "missing": " ".join(str(error).split())})
        else:
            finders[finder.name] = finder
            listed.append({"name": finder.name, "version": version(finder.package)})
    return finders, listed


def main() -> None:
    finders, listed = installed()
    print(json.dumps({"finders": listed}), flush=True)
    server = Server(finders)
    for line in sys.stdin:
        print(json.dumps(server.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
