"""Candidates of simulated runs, told into Bragg peaks and others by the simulator's truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.errors import LabelError
from sfxreduce.run.detector import Detector
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.cnn.patches.candidates import CandidateFinder, Candidates
from sfxreduce.scorers.cnn.patches.network import PatchNetwork, patch_logits
from sfxreduce.scorers.cnn.patches.pooling import PeakCounts, Pooling, count_peaks, joined

__all__ = ["PatchSet", "read_patches", "snr_near", "varied"]

# A candidate's highest pixel may lie beside the centre of a faint peak.
_NEAR_PX = 2.0
_EVENTS_AT_ONCE = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchSet:
    """Candidates of one run.

    Parameters
    ----------
    found : Candidates
        Of all events; tiles are numbered as there.
    snr : ndarray of float32
        Signal to noise of the peak at each candidate; 0 where there is none, NaN where it is not
        known and nothing is to be learned.
    window : Window
        That they were found in.
    """

    found: Candidates
    snr: NDArray[np.float32]
    n_events: int
    window: Window

    @property
    def n_tiles(self) -> int:
        """Tiles of an event."""
        return len(self.window.origins)

    @classmethod
    def joined(cls, sets: Sequence[PatchSet]) -> PatchSet:
        """Events of several sets of one detector, one set after the other."""
        first = np.cumsum([0, *(one.n_events for one in sets)])
        window = sets[0].window
        return cls(
            found=joined(
                [
                    (one.found.tile + start * len(window.origins), one.found)
                    for start, one in zip(first, sets, strict=False)
                ]
            ),
            snr=np.concatenate([one.snr for one in sets]),
            n_events=int(first[-1]),
            window=window,
        )

    def evidence(self, network: PatchNetwork, pooling: Pooling) -> NDArray[np.float64]:
        """Expected number of peaks of every tile of the events, shape (event, tile)."""
        return pooling.evidence(
            patch_logits(network, self.found),
            self.found,
            n_events=self.n_events,
            n_tiles=self.n_tiles,
            window=self.window,
        )

    @property
    def peaks(self) -> PeakCounts:
        """Peaks of the events by the conventional rule."""
        return count_peaks(
            self.found, n_events=self.n_events, n_tiles=self.n_tiles, window=self.window
        )

    def within(self, columns: NDArray[np.integer]) -> PatchSet:
        """Candidates of some of the tiles alone, in the order of these tiles.

        Parameters
        ----------
        columns : ndarray of int
            Number of each tile that stays, shape (tile,).
        """
        place = np.full(self.n_tiles, -1, np.int64)
        place[columns] = np.arange(len(columns))
        event, own = np.divmod(self.found.tile.astype(np.int64), self.n_tiles)
        tile = event * len(columns) + place[own]
        rows = np.flatnonzero(place[own] >= 0)
        rows = rows[np.argsort(tile[rows], kind="stable")]
        return PatchSet(
            found=replace(self.found.take(rows), tile=tile[rows].astype(np.int32)),
            snr=self.snr[rows],
            n_events=self.n_events,
            window=replace(
                self.window, origins=tuple(self.window.origins[number] for number in columns)
            ),
        )


def read_patches(
    run: Run,
    *,
    finder: CandidateFinder,
    events: Sequence[int] | None = None,
    vary_seed: int | None = None,
) -> PatchSet:
    """Find the candidates of a simulated run on the whole picture.

    Parameters
    ----------
    run : Run
        With a truth that lists its peaks.
    events : sequence of int, optional
        All of the run if not given.
    vary_seed : int, optional
        Show the events through another detector, in more background: see `varied`.

    Raises
    ------
    LabelError
        If the run does not list its true peaks.
    """
    if run.truth is None or "peak_snr" not in run.truth:
        raise LabelError(
            f"{run.path}: expected a truth that lists peaks, found none; the patch network learns "
            "from runs of 'sfxreduce simulate'"
        )
    chosen = list(range(run.n_events)) if events is None else list(events)
    window = Window.tiled(run.detector)
    index, good = window.gather(run.detector), window.good(run.detector)
    rng = None if vary_seed is None else np.random.default_rng(vary_seed)
    parts, snr = [], []
    for start in range(0, len(chosen), _EVENTS_AT_ONCE):
        group = chosen[start : start + _EVENTS_AT_ONCE]
        pixels = run.source.read(group, window).pixels
        for number, (event, frame) in enumerate(zip(group, pixels, strict=True), start):
            seen, gain = frame[np.newaxis], run.detector.adu_per_photon
            if rng is not None:
                seen, gain = varied(seen, gain, rng=rng)
            found = finder(seen, good, adu_per_photon=gain)
            source = index[found.tile, found.y, found.x]
            near = np.maximum(_NEAR_PX, found.scale)
            snr.append(_true_snr(source, event, run.truth, run.detector, near_px=near))
            parts.append((number * len(good) + found.tile, found))
    return PatchSet(
        found=joined(parts),
        snr=np.concatenate(snr),
        n_events=len(chosen),
        window=window,
    )


def varied(
    pixels: NDArray[np.generic], gain: float, *, rng: np.random.Generator
) -> tuple[NDArray[np.float32], float]:
    """The same events with more background, another gain and more readout noise.

    Parameters
    ----------
    pixels : ndarray
        In ADU.
    gain : float
        ADU per photon.

    Returns
    -------
    pixels : ndarray of float32
        Whole numbers, as a detector gives them.
    gain : float
        The new one; NaN in one of ten events, which must do without.
    """
    photons = 10.0 ** rng.uniform(-1.5, 1.3)
    # A fifth of the pixels is drawn and shown five times: chance at a distance is not seen twice.
    added = np.resize(rng.poisson(photons, pixels.size // 5 + 1), pixels.shape)
    seen = pixels.astype(np.float32) + np.float32(gain) * added.astype(np.float32)
    if gain > 3.0:  # an integrating detector; a counter has neither
        if rng.random() < 0.5:
            noise = rng.normal(0.0, rng.uniform(0.0, 0.5) * gain, pixels.shape)
            seen += noise.astype(np.float32)
        factor = 10.0 ** rng.uniform(-0.5, 0.5)
        seen, gain = seen * np.float32(factor), gain * factor
    return np.rint(seen), gain if rng.random() < 0.9 else math.nan


def _true_snr(
    source: NDArray[np.int64],
    event: int,
    truth: xr.Dataset,
    detector: Detector,
    *,
    near_px: NDArray[np.floating],
) -> NDArray[np.float32]:
    """Signal to noise of the strongest true peak at every candidate."""
    of_event = truth.peak_event.values == event
    panel, y, x, snr = (truth[f"peak_{n}"].values[of_event] for n in ("panel", "y", "x", "snr"))
    return snr_near(source, detector, panel=panel, y=y, x=x, snr=snr, near_px=near_px)


def snr_near(
    source: NDArray[np.int64],
    detector: Detector,
    *,
    panel: NDArray[np.integer],
    y: NDArray[np.floating],
    x: NDArray[np.floating],
    snr: NDArray[np.floating],
    near_px: NDArray[np.floating] | float = _NEAR_PX,
) -> NDArray[np.float32]:
    """Signal to noise of the strongest peak at every candidate, 0 where there is none.

    NaN where a square of pixels has its middle beside the panels: nothing can be said of it.

    Parameters
    ----------
    source : ndarray of int64
        Flat index of each candidate in its frame, shape (candidate,); -1 beside the panels.
    panel, y, x, snr : ndarray
        Of the peaks, shape (peak,).
    near_px : ndarray or float
        So far from a candidate a peak may be, shape (candidate,).
    """
    shape = (len(detector.panels), *detector.panel_shape)
    beside = source < 0
    places = np.unravel_index(np.where(beside, 0, source), shape)
    own = [part[:, np.newaxis] for part in places]
    distance = np.maximum(np.abs(own[1] - y), np.abs(own[2] - x))
    at = (distance <= np.reshape(near_px, (-1, 1))) & (own[0] == panel)
    found: NDArray[np.float32] = np.where(at, snr, 0).max(axis=1, initial=0)
    return np.where(beside, np.float32(np.nan), found.astype(np.float32))
