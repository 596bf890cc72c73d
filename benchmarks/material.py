"""Runs and models for the benchmarks: simulated frames, repeated as often as a length asks for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import sfxreduce
from sfxreduce.cluster import SerialPool
from sfxreduce.decisions.method import threshold_rule
from sfxreduce.decisions.threshold import Promise
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.io.writers.zarr import create_store
from sfxreduce.pipeline.stages.batch import score_events
from sfxreduce.pipeline.stages.conditions import with_conditions
from sfxreduce.pipeline.stages.score import bound_by_first_tiles
from sfxreduce.run.columns import event_columns
from sfxreduce.run.detector import Detector
from sfxreduce.run.run import FrameSource, Reading, Run, SelectedFrames
from sfxreduce.run.window import Window
from sfxreduce.scorers.cnn.folder import write_model
from sfxreduce.scorers.cnn.model import Model, ModelConfig
from sfxreduce.scorers.cnn.poster.network import HitNetwork
from sfxreduce.scorers.protocol import calibration_of

__all__ = [
    "EXPERIMENT",
    "KINDS",
    "LEAST_PEAKS",
    "FilterScoring",
    "mixed_store",
    "poster_model",
    "repeated_run",
    "simulated_store",
    "sorted_store",
]

EXPERIMENT = "photosystem-i-8kev"
"""1750 x 1750 pixels, 16 bits each."""

KINDS = ("photons", "int16 ADU")
"""Whole photons in uint16, and the ADU of an integrating detector: they pack 4.5 and 1.5 times."""

LEAST_PEAKS = 10
"""True peaks of a hit, as the promise counts them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotonFrames:
    """Frames of a source in whole photons, as a counting detector delivers them.

    Parameters
    ----------
    source : FrameSource
        Of known gain.
    """

    source: FrameSource

    @property
    def path(self) -> str:
        """Where the frames lie."""
        return self.source.path

    @property
    def n_events(self) -> int:
        """Number of events."""
        return self.source.n_events

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Dtype of a pixel."""
        return np.dtype(np.uint16)

    @property
    def detector(self) -> Detector:
        """Geometry and mask; one photon counts one."""
        return replace(self.source.detector, adu_per_photon=1.0)

    @property
    def n_bytes(self) -> int:
        """Bytes on disk."""
        return self.source.n_bytes

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file that frames are read from."""
        return self.source.inputs

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """Read events."""
        reading = self.source.read(events, window)
        photons = np.rint(reading.pixels / self.source.detector.adu_per_photon)
        return Reading(pixels=photons.clip(0).astype(np.uint16), reasons=reading.reasons)


def simulated_store(path: Path, *, n_events: int, hit_rate: float = 0.1) -> Run:
    """Simulate a run of whole photons and store it, unless that was done before."""
    if not path.exists():
        run = sfxreduce.simulate_run(EXPERIMENT, n_events=n_events, hit_rate=hit_rate, seed=3)
        run = replace(run, source=PhotonFrames(source=run.source))
        with sfxreduce.open_pool(serial=True) as pool:
            sfxreduce.ingest_run(run, out=path, pool=pool)
    return sfxreduce.open_run(path)


def sorted_store(folder: Path, kind: str, *, n_each: int) -> Run:
    """Store blanks, then as many hits, of one of `KINDS`; both kinds hold the same events.

    Raises
    ------
    SystemExit
        If the simulated run is too short for so many.
    """
    path = folder / f"sorted{n_each}-{kind.partition(' ')[0]}.zarr"
    if path.exists():
        return sfxreduce.open_run(path)
    if kind == KINDS[0]:
        integrated = sorted_store(folder, KINDS[1], n_each=n_each)
        _store(PhotonFrames(source=integrated.source), path, like=integrated)
        return sfxreduce.open_run(path)
    run = sfxreduce.simulate_run(EXPERIMENT, n_events=5 * n_each, hit_rate=0.5, seed=3)
    assert run.truth is not None
    blanks = np.flatnonzero(run.truth["n_crystals"].values == 0)[:n_each]
    hits = np.flatnonzero(run.truth["n_peaks"].values >= LEAST_PEAKS)[:n_each]
    if min(blanks.size, hits.size) < n_each:
        raise SystemExit(f"expected {n_each} blanks and hits, found {blanks.size} and {hits.size}")
    events = np.concatenate([blanks, hits]).tolist()
    _store(SelectedFrames(source=run.source, events=tuple(events)), path, like=run)
    return sfxreduce.open_run(path)


def mixed_store(folder: Path, kind: str, *, n_each: int, n_events: int = 64) -> Run:
    """Store some of the events of `sorted_store`, every 20th of them a hit."""
    path = folder / f"mixed{n_events}-{kind.partition(' ')[0]}.zarr"
    if not path.exists():
        run = sorted_store(folder, kind, n_each=n_each)
        is_hit = np.arange(n_events) % 20 == 10
        # Counted round and round: a few events are there twice if there are too few blanks.
        events = np.where(is_hit, n_each + np.cumsum(is_hit) % n_each, np.cumsum(~is_hit) % n_each)
        _store(SelectedFrames(source=run.source, events=tuple(events.tolist())), path, like=run)
    return sfxreduce.open_run(path)


def _store(source: FrameSource, path: Path, *, like: Run) -> None:
    """Store frames as a run of the experiment of another one."""
    run = Run(source=source, columns=event_columns(source.n_events), experiment=like.experiment)
    with sfxreduce.open_pool(serial=True) as pool:
        sfxreduce.ingest_run(run, out=path, pool=pool)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FilterScoring:
    """Reading and scoring as ``sfxreduce filter`` does it at its defaults.

    Parameters
    ----------
    source : FrameSource
        With the conditions of its run.
    threshold : float
        By which the first tiles decide whether the others are read.
    """

    source: FrameSource
    scorer: sfxreduce.CnnScorer
    threshold: float

    @classmethod
    def of(cls, run: Run, scorer: sfxreduce.CnnScorer) -> FilterScoring:
        """Prepare what is done once per run."""
        source = with_conditions(run, scorer, pool=SerialPool()).source
        rule = threshold_rule(scorer, promise=Promise(), detector=source.detector)
        return cls(source=source, scorer=scorer, threshold=rule.value)

    def __call__(self, events: range) -> NDArray[np.void]:
        """Read and score events.

        Returns
        -------
        ndarray
            Shape (event,), dtype `sfxreduce.pipeline.stages.batch.SCORE_DTYPE`.
        """
        rows = score_events(self.source, self.scorer, events, first=True)
        look = calibration_of(self.scorer, self.source.detector).first_look
        if look is None:
            return rows
        left = bound_by_first_tiles(rows, look, threshold=self.threshold, again=True)
        chosen = tuple(events[place] for place in np.flatnonzero(left))
        if chosen:
            source = SelectedFrames(source=self.source, events=chosen)
            rows[left] = score_events(source, self.scorer, range(len(chosen)))
        return rows


def repeated_run(run: Run, path: Path, *, times: int) -> Run:
    """Store a run several times over, without a byte of its frames written anew.

    Parameters
    ----------
    run : Run
        A run store whose last shard is full.
    path : Path
        Of the long run, on the same file system.
    times : int
    """
    source = run.source
    assert isinstance(source, ZarrFrames)
    assert source.layout is not None
    layout, n_events = source.layout, run.n_events
    n_shards = layout.n_shards(n_events)
    if n_shards * layout.events_per_shard != n_events:
        raise SystemExit(f"{run.path}: expected whole shards, found {n_events} events")
    if path.exists():
        shutil.rmtree(path)
    long = Run(
        source=_Claimed(source=source, n_events=times * n_events),
        columns=event_columns(times * n_events),
        experiment=run.experiment,
    )
    create_store(path, run=long, layout=layout, columns=long.columns, truth=None)
    for shard in range(times * n_shards):
        target = path / "frames" / layout.shard_key(shard)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(Path(run.path) / "frames" / layout.shard_key(shard % n_shards), target)
    found = json.loads((path / "frames" / "zarr.json").read_text())["shape"][0]
    if found != times * n_events:
        raise SystemExit(f"{path}: expected {times * n_events} events, found {found}")
    return sfxreduce.open_run(path)


class _Claimed:
    """Facts of a source with another number of events; it is never read."""

    def __init__(self, *, source: ZarrFrames, n_events: int) -> None:
        self.path, self.n_events = source.path, n_events
        self.dtype, self.detector = source.dtype, source.detector
        self.n_bytes, self.inputs, self.read = source.n_bytes, source.inputs, source.read


def poster_model(folder: Path) -> Path:
    """Write the poster's network with weights that have learned nothing: speed asks for no more."""
    torch.manual_seed(0)
    weights = {name: value.numpy() for name, value in HitNetwork().state_dict().items()}
    weights = {name: np.asarray(value, np.float32) for name, value in weights.items()}
    write_model(folder, Model(config=ModelConfig(), weights=weights), overwrite=True)
    return folder
