"""Events of a run that nobody has labelled, labelled by the conventional peak finder.

In three states: hit, miss, and maybe in between. Of a hit, candidates at its peaks are Bragg peaks;
of a miss, no candidate is one; all others teach nothing. A tile counts for few peaks at most, as in
the network's own pooling: a streak fills few tiles, a crystal scatters everywhere. An event with
many peaks in few tiles is therefore a miss, and teaches what not to fall for.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.cluster.pool import Progress, silent, tracked
from sfxreduce.quality.frame_statistics import frame_statistics
from sfxreduce.run.detector import Detector
from sfxreduce.run.labels import Label, label_counts
from sfxreduce.run.run import FrameSource, Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.cnn.patches.candidates import CandidateFinder
from sfxreduce.scorers.cnn.patches.pooling import Pooling, joined
from sfxreduce.scorers.peaks.finder import MIN_PEAKS, PeakFinder
from sfxreduce.train.patches.candidates import PatchSet, snr_near

__all__ = [
    "HIT_AT_LEAST",
    "MISS_AT_MOST",
    "SeenEvents",
    "flat_pixels",
    "see_events",
    "tile_of_pixels",
]

HIT_AT_LEAST = 10
"""Fewest peaks of a hit, a tile counting for `Pooling.most_per_tile` (3) at most: one more than a
streak through three tiles can show."""
MISS_AT_MOST = 4
"""Most peaks of a miss, counted in the same way: a streak in one tile and a false peak elsewhere.
Frames with more peaks than a miss of `sfxreduce.train.labelling.PeakLabelling` are wanted here, as
they teach what not to fall for."""
_EVENTS_PER_TASK = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeenEvents:
    """Some events of a run.

    Parameters
    ----------
    patches : PatchSet
        Their candidates.
    label : ndarray of int8
        `Label` of each event, shape (event,).
    statistics : ndarray
        See `sfxreduce.quality.frame_statistics.frame_statistics`, shape (event, quantity).
    worker_seconds : float
        CPU time it took in other processes.
    picture_tiles : int
        Tiles of the whole picture, of which the candidates may be of a part.
    """

    patches: PatchSet
    label: NDArray[np.int8]
    statistics: NDArray[np.float64]
    worker_seconds: float
    picture_tiles: int

    @property
    def event_of_candidate(self) -> NDArray[np.int64]:
        """Event of each candidate, shape (candidate,)."""
        return self.patches.found.tile.astype(np.int64) // self.patches.n_tiles


def see_events(
    run: Run,
    events: Sequence[int],
    *,
    candidates: CandidateFinder,
    pooling: Pooling,
    pool: Pool,
    progress: Progress = silent,
) -> SeenEvents:
    """Find candidates and peaks of some events; those that cannot be read are left out.

    Parameters
    ----------
    run : Run
        As it is scored, its hot pixels masked.
    pooling : Pooling
        Its cap on the peaks of a tile is used, unless no event could then have enough for a hit:
        a frame of one to three tiles.
    """
    window = Window.tiled(run.detector)
    n_tiles = len(window.origins)
    groups = [events[i : i + _EVENTS_PER_TASK] for i in range(0, len(events), _EVENTS_PER_TASK)]
    see = partial(
        _see,
        source=run.source,
        candidates=candidates,
        most=max(pooling.most_per_tile, HIT_AT_LEAST / n_tiles),
        caller=os.getpid(),
    )
    work = pool.map("see", see, groups)
    parts = dict(tracked(work, stage="look", total=len(groups), progress=progress))
    ordered = [parts[number] for number in sorted(parts)]
    first = np.cumsum([0, *(part.patches.n_events for part in ordered)])
    found = joined(
        [
            (part.patches.found.tile + start * n_tiles, part.patches.found)
            for start, part in zip(first, ordered, strict=False)
        ]
    )
    return SeenEvents(
        patches=PatchSet(
            found=found,
            snr=np.concatenate([part.patches.snr for part in ordered]),
            n_events=int(first[-1]),
            window=window,
        ),
        label=np.concatenate([part.label for part in ordered]),
        statistics=np.concatenate([part.statistics for part in ordered]),
        worker_seconds=sum(part.worker_seconds for part in ordered),
        picture_tiles=n_tiles,
    )


def _see(
    events: Sequence[int],
    *,
    source: FrameSource,
    candidates: CandidateFinder,
    most: float,
    caller: int,
) -> SeenEvents:
    """Look at a few events; CPU time counts unless it is that of the calling process."""
    started = time.process_time()
    detector, finder = source.detector, PeakFinder()
    window = Window.tiled(detector)
    index, good, gain = window.gather(detector), window.good(detector), detector.adu_per_photon
    tile_of = tile_of_pixels(index, detector.mask.size)
    reading = source.read(events)
    frames = reading.pixels[reading.reasons == 0]
    tiles = [window.take(frame, detector) for frame in frames]
    shape = (len(tiles), *good.shape)
    seen = np.stack(tiles) if tiles else np.zeros(shape, reading.pixels.dtype)
    found = candidates(seen, good, adu_per_photon=gain)
    event = found.tile // len(good)
    place = index[found.tile % len(good), found.y, found.x]
    snr = np.full(len(found), np.nan, np.float32)
    label = np.zeros(len(frames), np.int8)
    for number, frame in enumerate(frames):
        peaks = finder.find(frame, detector.good(), detector.radius(), adu_per_photon=gain)
        at = flat_pixels(peaks.panel, peaks.y, peaks.x, detector)
        label[number] = _label(tile_of[at], most)
        own = event == number
        near = snr_near(
            place[own], detector, panel=peaks.panel, y=peaks.y, x=peaks.x, snr=peaks.snr
        )
        snr[own] = _taught(near, Label(label[number]), streaky=len(peaks) >= MIN_PEAKS)
    return SeenEvents(
        patches=PatchSet(found=found, snr=snr, n_events=len(frames), window=window),
        label=label,
        statistics=frame_statistics(
            frames,
            detector.good(),
            adu_per_photon=gain,
            saturation_adu=detector.saturation_adu,
        ),
        worker_seconds=time.process_time() - started if os.getpid() != caller else 0.0,
        picture_tiles=len(good),
    )


def _label(tile: NDArray[np.integer], most: float) -> Label:
    """Label of an event by the tile of each of its peaks."""
    counted = np.minimum(np.bincount(tile[tile >= 0], minlength=1), most).sum()
    labels = label_counts([counted], miss_at_most=MISS_AT_MOST, hit_at_least=HIT_AT_LEAST)
    return Label(labels.label[0])


def _taught(near: NDArray[np.float32], label: Label, *, streaky: bool) -> NDArray[np.float32]:
    """Signal to noise of the candidates of an event as far as its label tells."""
    peak = near > 0
    if label is Label.HIT:
        return np.where(peak, near, np.float32(math.nan))
    if label is Label.MISS:
        return np.where(peak & (not streaky), np.float32(math.nan), np.float32(0))
    return np.full(near.shape, np.nan, np.float32)


def tile_of_pixels(index: NDArray[np.int64], n_pixels: int) -> NDArray[np.int32]:
    """Tile of every pixel of a frame; -1 where none shows it."""
    tile = np.full(n_pixels, -1, np.int32)
    for number, pixels in enumerate(index):
        tile[pixels[pixels >= 0]] = number
    return tile


def flat_pixels(
    panel: NDArray[np.integer],
    y: NDArray[np.floating],
    x: NDArray[np.floating],
    detector: Detector,
) -> NDArray[np.int64]:
    """Flat index of the pixel nearest to each peak."""
    n_y, n_x = detector.panel_shape
    row = np.clip(np.rint(y), 0, n_y - 1).astype(np.int64)
    column = np.clip(np.rint(x), 0, n_x - 1).astype(np.int64)
    flat: NDArray[np.int64] = (panel.astype(np.int64) * n_y + row) * n_x + column
    return flat
