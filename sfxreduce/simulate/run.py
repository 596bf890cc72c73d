"""Simulated runs: frames rendered when they are asked for, and their truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from sfxreduce.errors import UsageError
from sfxreduce.run.columns import event_columns
from sfxreduce.run.detector import Detector
from sfxreduce.run.run import Reading, Run
from sfxreduce.run.window import Window
from sfxreduce.simulate.random import key_of
from sfxreduce.simulate.render import frame_of_event
from sfxreduce.simulate.shot import shoot
from sfxreduce.simulate.stage import Stage, stage
from sfxreduce.simulate.truth import truth_of

__all__ = ["WIDEST_BLUR_PX", "SimulatedFrames", "simulate_run", "simulate_truth"]

WIDEST_BLUR_PX = 7.0
"""A spot is drawn on 30 pixels around its centre, four of its standard deviations."""

_FIRST_PULSE_NS = 1_735_689_600_000_000_000
"""2025-01-01 00:00 UTC: simulated runs have a fixed date, so that they have fixed bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedFrames:
    """Source of frames that are rendered on demand.

    An event depends on experiment, frame shape, hit rate, seed and its position alone: batching,
    order and number of workers do not matter, and a longer run begins with the shorter one. The
    same event has the same crystal at any hit rate that gives it one.

    Parameters
    ----------
    experiment : str
        One of `sfxreduce.simulate.EXPERIMENTS`.
    hit_rate : float
        Probability that an event has at least one crystal.
    frame_shape : tuple of int, optional
        (y, x): only the centre of a camera of one panel.
    blur_px : float, optional
        Spread of a point on the detector in place of the camera's own, a standard deviation.

    Raises
    ------
    UsageError
        If the experiment is not known, a number is out of range, or the frame shape does not fit.
    """

    experiment: str
    n_events: int
    hit_rate: float
    seed: int
    frame_shape: tuple[int, int] | None = None
    blur_px: float | None = None

    def __post_init__(self) -> None:
        if self.n_events < 0 or not 0.0 <= self.hit_rate <= 1.0:
            raise UsageError(
                f"{self.path}: expected 0 or more events and a hit rate from 0 to 1, found "
                f"{self.n_events} and {self.hit_rate}"
            )
        if self.blur_px is not None and not 0.0 < self.blur_px <= WIDEST_BLUR_PX:
            raise UsageError(
                f"{self.path}: expected a blur above 0 and up to {WIDEST_BLUR_PX:g} pixels, found "
                f"{self.blur_px:g}; leave it out for the camera's own"
            )
        _ = self.detector

    @property
    def path(self) -> str:
        """What is simulated, for messages; runs that differ have different paths."""
        frame = "" if self.frame_shape is None else "&frame={}x{}".format(*self.frame_shape)
        blur = "" if self.blur_px is None else f"&blur={self.blur_px:g}"
        options = f"seed={self.seed}&events={self.n_events}&hit-rate={self.hit_rate:g}{frame}{blur}"
        return f"simulated:{self.experiment}?{options}"

    @property
    def stage(self) -> Stage:
        """The experiment set up, kept by the process."""
        return stage(self.experiment, self.frame_shape, self.blur_px)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Integer dtype of a pixel."""
        return np.dtype(self.stage.experiment.camera.dtype)

    @property
    def detector(self) -> Detector:
        """Geometry and mask."""
        return self.stage.detector

    @property
    def n_bytes(self) -> int:
        """Bytes of all frames without compression."""
        return self.n_events * self.detector.mask.size * self.dtype.itemsize

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Nothing: what is rendered lies in no file."""
        return ()

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """Render events; see `sfxreduce.run.run.FrameSource`."""
        setup = self.stage
        shape = self.detector.frame_shape if window is None else window.shape
        index = None if window is None else window.gather(self.detector)
        pixels = np.empty((len(events), *shape), self.dtype)
        for out, event in zip(pixels, events, strict=True):
            shot = shoot(setup.experiment, hit_rate=self.hit_rate, seed=self.seed, event=event)
            frame = frame_of_event(shot, setup, key_of("event", self.experiment, self.seed, event))
            out[...] = frame if index is None else np.where(index < 0, 0, frame.ravel()[index])
        return Reading(pixels=pixels, reasons=np.zeros(len(events), np.uint32))


def simulate_truth(source: SimulatedFrames, events: Sequence[int]) -> xr.Dataset:
    """Truth of some events of a simulated run, without rendering a pixel.

    Parameters
    ----------
    events : sequence of int
        Positions in the run. Blocks of a run can be computed apart; concatenate the variables on
        ``event`` along it and those on ``peak`` along that.

    Returns
    -------
    Dataset
        See `sfxreduce.simulate.truth.truth_of`.
    """
    return truth_of(source.stage, hit_rate=source.hit_rate, seed=source.seed, events=events)


def simulate_run(
    experiment: str,
    *,
    n_events: int,
    hit_rate: float = 0.2,
    seed: int = 0,
    frame_shape: tuple[int, int] | None = None,
    blur_px: float | None = None,
    name: str = "",
) -> Run:
    """Run of a named experiment with its truth; frames are rendered when they are read.

    Parameters
    ----------
    experiment : str
        One of `sfxreduce.simulate.EXPERIMENTS`.
    hit_rate : float
        Probability that an event has at least one crystal.
    frame_shape : tuple of int, optional
        (y, x): only the centre of a camera of one panel, at the same pixel size and distance.
    blur_px : float, optional
        Spread of a point on the detector in place of the camera's own, a standard deviation.
    name : str
        Of the run; made from the seed if empty.

    Raises
    ------
    UsageError
        If the experiment is not known, a number is out of range, or the frame shape does not fit.

    Examples
    --------
    >>> run = simulate_run("lysozyme-8kev", n_events=2, frame_shape=(64, 64))
    >>> run.frames.shape, str(run.frames.dtype)
    ((2, 64, 64), 'int16')
    """
    source = SimulatedFrames(
        experiment=experiment,
        n_events=n_events,
        hit_rate=hit_rate,
        seed=seed,
        frame_shape=None if frame_shape is None else (int(frame_shape[0]), int(frame_shape[1])),
        blur_px=blur_px,
    )
    events = range(n_events)
    return Run(
        source=source,
        columns=_columns(source),
        truth=simulate_truth(source, events),
        experiment=experiment,
        name=name or f"s{seed}",
        provenance=f"sfxreduce simulate: {source}",
    )


def _columns(source: SimulatedFrames) -> xr.Dataset:
    """Per-event columns of a simulated run."""
    experiment = source.stage.experiment
    n = source.n_events
    shots = [shoot(experiment, hit_rate=0.0, seed=source.seed, event=event) for event in range(n)]
    period_ns = 1e9 / experiment.beam.repetition_hz
    return event_columns(
        n,
        event_id=[f"{source.experiment}-s{source.seed}-{event:06d}" for event in range(n)],
        timestamp_ns=_FIRST_PULSE_NS + np.rint(np.arange(n) * period_ns).astype(np.int64),
        photon_energy_ev=np.array([shot.photon_energy_ev for shot in shots]),
        pulse_energy_mj=np.array([shot.pulse_energy_mj for shot in shots]),
        source_event=np.arange(n),
    )
