"""What one experiment of the simulator gives: events to learn from, events to judge by.

Whole frames, every candidate labelled by the simulator's truth. Material is kept in a folder as it
is made, so that an interrupted job resumes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.io.files.durable import output_errors, whole_file
from sfxreduce.quality.conditions import Conditioned, conditions_of_run
from sfxreduce.quality.frame_statistics import frame_statistics
from sfxreduce.run.detector import Detector
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.cnn.patches.candidates import CandidateFinder, Candidates
from sfxreduce.simulate.run import simulate_run
from sfxreduce.simulate.truth import COUNTED_SNR, HIT_PEAKS, Kind
from sfxreduce.train.patches.candidates import PatchSet, read_patches
from sfxreduce.train.patches.peak_labels import flat_pixels, tile_of_pixels

__all__ = [
    "FINDER",
    "SEED",
    "Material",
    "as_seen",
    "judged_of",
    "material_of",
    "statistics_of",
    "stored_material",
]

FINDER = CandidateFinder(coarse=4)
"""The search of the shipped model."""

SEED = 20
"""Of the simulated runs that are learned from; those that are judged have the next ones."""

LEARNED, DRAWN, LOOKED_AT = 140, 2000, 64
JUDGED_HITS, JUDGED_WEAK, JUDGED_BLANKS = 640, 120, 240
BLURS_PX = (1.5, 2.5, 4.0)
"""Spread of a point on the detector, in pixels, of events with broad peaks."""
_BROAD_SHARE = 0.25
"""Of the judged events so many have broad peaks, a third of each blur."""
WEAK_PEAKS = 5
"""Fewest true peaks of the weak hits that are counted apart."""
_FEWEST = 4
_ARRAYS = (
    "n_peaks",
    "peaks_of_tiles",
    "blur_px",
    "learned_kind",
    "judged_kind",
    "statistics",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Material:
    """One experiment: sets to learn from, a set to judge by with its truth, and a look at frames.

    Parameters
    ----------
    name : str
        Of the experiment.
    learned : tuple of PatchSet
        The same events as they are, and through another detector in more background.
    judged : PatchSet
        Events that are never learned from.
    n_peaks : ndarray of int32
        True peaks of signal to noise 5 of each judged event.
    peaks_of_tiles : ndarray of int16
        The same for every tile of the picture, shape (event, tile).
    blur_px : ndarray of float64
        Of each judged event; 0 for the camera's own.
    learned_kind, judged_kind : ndarray of uint8
        `sfxreduce.simulate.truth.Kind` of the events, of the first set that is learned from.
    statistics : ndarray
        Shape (frame, quantity): see `sfxreduce.quality.frame_statistics.frame_statistics`.
    """

    name: str
    learned: tuple[PatchSet, ...]
    judged: PatchSet
    n_peaks: NDArray[np.int32]
    peaks_of_tiles: NDArray[np.int16]
    blur_px: NDArray[np.float64]
    learned_kind: NDArray[np.uint8]
    judged_kind: NDArray[np.uint8]
    statistics: NDArray[np.float64]

    @property
    def is_blank(self) -> NDArray[np.bool_]:
        """Judged events without a crystal, and without ice, salt or a streak."""
        return np.asarray(self.judged_kind == Kind.BLANK)

    @property
    def is_artefact(self) -> NDArray[np.bool_]:
        """Judged events without a crystal that show ice, salt or a streak."""
        return np.asarray(self.judged_kind == Kind.ARTEFACT)

    @property
    def has_crystal(self) -> NDArray[np.bool_]:
        """Judged events with at least one crystal."""
        return ~(self.is_blank | self.is_artefact)

    @property
    def is_hit(self) -> NDArray[np.bool_]:
        """Judged events with a crystal and enough true peaks."""
        return self.has_crystal & (self.n_peaks >= HIT_PEAKS)

    @property
    def is_weak(self) -> NDArray[np.bool_]:
        """Judged events with a crystal and nearly enough true peaks."""
        return self.has_crystal & (self.n_peaks >= WEAK_PEAKS) & (self.n_peaks < HIT_PEAKS)

    @property
    def detector(self) -> Detector:
        """Of the experiment."""
        return simulate_run(self.name, n_events=1).detector


def stored_material(name: str, *, scale: float, folder: Path) -> Material:
    """Material of an experiment from a folder, made and kept there if it is not there yet.

    Parameters
    ----------
    scale : float
        Share of the usual number of events.

    Raises
    ------
    UsageError
        If the experiment is not known.
    OutputError
        If the folder cannot be written.
    """
    path = folder / f"{name}-{scale:g}.npz"
    if path.exists():
        try:
            return _read(path, name)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            path.unlink()  # damaged, or of an older version: it is made again
    made = material_of(name, scale=scale)
    with output_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            np.savez(file, allow_pickle=False, **_arrays(made))
    return made


def material_of(name: str, *, scale: float = 1.0) -> Material:
    """Simulate an experiment and find its candidates.

    Parameters
    ----------
    scale : float
        Share of the usual number of events.
    """
    run = as_seen(_simulated(name, scale * LEARNED, hit_rate=0.6, seed=SEED))
    learned = (read_patches(run, finder=FINDER), read_patches(run, finder=FINDER, vary_seed=SEED))
    drawn = _drawn(name, scale)
    return Material(
        name=name,
        learned=learned,
        judged=PatchSet.joined([one.patches for one in drawn]),
        n_peaks=np.concatenate([one.truth.n_peaks.values[one.events] for one in drawn]),
        peaks_of_tiles=np.concatenate([one.peaks_of_tiles for one in drawn]),
        blur_px=np.repeat([one.blur_px for one in drawn], [one.events.size for one in drawn]),
        learned_kind=cast("xr.Dataset", run.truth).kind.values,
        judged_kind=np.concatenate([one.truth.kind.values[one.events] for one in drawn]),
        statistics=statistics_of(
            as_seen(_simulated(name, scale * LOOKED_AT, hit_rate=0.5, seed=SEED + 2))
        ),
    )


def judged_of(name: str, *, scale: float = 1.0) -> PatchSet:
    """Simulate the judged events of an experiment's material alone.

    Parameters
    ----------
    scale : float
        Share of the usual number of events.
    """
    return PatchSet.joined([one.patches for one in _drawn(name, scale)])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Drawn:
    """A run that nothing is learned from, and those of its events that are judged."""

    run: Run
    events: NDArray[np.int64]
    blur_px: float

    @property
    def truth(self) -> xr.Dataset:
        """Of the run."""
        return cast("xr.Dataset", self.run.truth)  # simulated runs have one

    @property
    def patches(self) -> PatchSet:
        """Candidates of the judged events."""
        return read_patches(self.run, finder=FINDER, events=self.events.tolist())

    @property
    def peaks_of_tiles(self) -> NDArray[np.int16]:
        """True peaks of signal to noise 5 on every tile, shape (event, tile)."""
        detector, truth = self.run.detector, self.truth
        index = Window.tiled(detector).gather(detector)
        tile_of = tile_of_pixels(index, detector.mask.size)
        counted = truth.peak_snr.values >= COUNTED_SNR
        panel, y, x, event = (
            truth[f"peak_{name}"].values[counted] for name in ("panel", "y", "x", "event")
        )
        tile = tile_of[flat_pixels(panel, y, x, detector)]
        counts = np.zeros((self.run.n_events, len(index)), np.int16)
        np.add.at(counts, (event[tile >= 0], tile[tile >= 0]), 1)
        return counts[self.events]


def _drawn(name: str, scale: float) -> list[_Drawn]:
    """Events to judge: most as the camera shows them, some with broad peaks."""
    shares = [(0.0, 1.0 - _BROAD_SHARE), *((b, _BROAD_SHARE / len(BLURS_PX)) for b in BLURS_PX)]
    return [_chosen(name, scale * share, blur_px=blur) for blur, share in shares]


def _chosen(name: str, scale: float, *, blur_px: float) -> _Drawn:
    run = as_seen(
        _simulated(name, scale * DRAWN, hit_rate=0.75, seed=SEED + 1, blur_px=blur_px or None)
    )
    truth = cast("xr.Dataset", run.truth)
    crystal, peaks = truth.n_crystals.values > 0, truth.n_peaks.values
    hits = np.flatnonzero(crystal & (peaks >= HIT_PEAKS))
    weak = np.flatnonzero(crystal & (peaks >= 2) & (peaks < HIT_PEAKS))
    blanks = np.flatnonzero(~crystal)
    wanted = ((hits, JUDGED_HITS), (weak, JUDGED_WEAK), (blanks, JUDGED_BLANKS))
    kinds = [kind[: max(round(scale * n), _FEWEST)] for kind, n in wanted]
    return _Drawn(run=run, events=np.sort(np.concatenate(kinds)), blur_px=blur_px)


def as_seen(run: Run) -> Run:
    """The run with the hot pixels it shows itself, as a filter run sees it."""
    found = conditions_of_run(run)
    return replace(run, source=Conditioned(source=run.source, found=found))


def _simulated(
    name: str, n_events: float, *, hit_rate: float, seed: int, blur_px: float | None = None
) -> Run:
    return simulate_run(
        name,
        n_events=max(round(n_events), _FEWEST),
        hit_rate=hit_rate,
        seed=seed,
        blur_px=blur_px,
    )


def statistics_of(run: Run) -> NDArray[np.float64]:
    """Measure every frame of a run for the check of similarity; shape (event, quantity)."""
    detector = run.detector
    rows = [
        frame_statistics(
            run.source.read([event]).pixels,
            detector.good(),
            adu_per_photon=detector.adu_per_photon,
            saturation_adu=detector.saturation_adu,
        )
        for event in range(run.n_events)
    ]
    return np.concatenate(rows)


def _arrays(made: Material) -> dict[str, NDArray[Any]]:
    """Everything of a material by flat names."""
    found: dict[str, NDArray[Any]] = {name: getattr(made, name) for name in _ARRAYS}
    learned = ((f"learned{number}", one) for number, one in enumerate(made.learned))
    for place, one in (*learned, ("judged", made.judged)):
        found |= {f"{place}.snr": one.snr, f"{place}.size": np.array([one.n_events, one.n_tiles])}
        found |= {f"{place}.{f.name}": getattr(one.found, f.name) for f in fields(Candidates)}
    return found


def _read(path: Path, name: str) -> Material:
    window = Window.tiled(simulate_run(name, n_events=1).detector)
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return Material(
            name=name,
            learned=(
                _patch_set(arrays, "learned0", window),
                _patch_set(arrays, "learned1", window),
            ),
            judged=_patch_set(arrays, "judged", window),
            **{name: arrays[name] for name in _ARRAYS},
        )


def _patch_set(arrays: Mapping[str, NDArray[Any]], place: str, window: Window) -> PatchSet:
    n_events = int(arrays[f"{place}.size"][0])
    found = Candidates(**{f.name: arrays[f"{place}.{f.name}"] for f in fields(Candidates)})
    return PatchSet(found=found, snr=arrays[f"{place}.snr"], n_events=n_events, window=window)
