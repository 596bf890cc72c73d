"""Runs held in memory, with peaks planted where the test wants them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.special import expit

from sfxreduce.quality.frame_statistics import QUANTITIES
from sfxreduce.run.columns import event_columns
from sfxreduce.run.detector import Detector, Panel, PixelFlag
from sfxreduce.run.run import Reading, Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.calibration.record import Calibration, Reference
from sfxreduce.scorers.protocol import EventScores, not_counted


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayFrames:
    """A source of frames that are already there."""

    frames: np.ndarray
    detector: Detector
    path: str = "memory"
    reasons: dict[int, int] = field(default_factory=dict)

    @property
    def n_events(self) -> int:
        return len(self.frames)

    @property
    def dtype(self) -> np.dtype:
        return self.frames.dtype

    @property
    def n_bytes(self) -> int:
        return self.frames.nbytes

    @property
    def inputs(self) -> tuple[Path, ...]:
        return ()

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        chosen = self.frames[np.asarray(events, int)]
        if window is not None:
            chosen = np.stack([window.take(frame, self.detector) for frame in chosen])
        reasons = np.array([self.reasons.get(int(e), 0) for e in events], np.uint32)
        return Reading(pixels=chosen, reasons=reasons)


@dataclass(frozen=True)
class BrightestPixel:
    """Scores an event by its brightest pixel: knows nothing, and is exact."""

    name: str = "brightest"
    settings: str = "none"
    threshold: float = 500.0
    needs_conditions: bool = False
    tile: int = 0

    @property
    def calibration(self) -> Calibration:
        return Calibration(
            threshold=self.threshold, hit="a bright event", needs_conditions=self.needs_conditions
        )

    def window(self, detector: Detector) -> Window | None:
        return Window.centre(detector, tile_shape=(self.tile, self.tile)) if self.tile else None

    def __call__(self, pixels: np.ndarray, detector: Detector) -> np.ndarray:
        return pixels.reshape(len(pixels), -1).max(axis=1).astype(np.float32)


def panelled_detector(n_panels: int, *, shape: tuple[int, int] = (40, 60)) -> Detector:
    """Panels one below the other with gaps of 5 pixels, the last one turned upside down."""
    n_y, n_x = shape
    pitch = n_y + 5
    panels = [
        Panel(name=f"p{p}", corner=(-n_x / 2, (p - n_panels / 2) * pitch))
        for p in range(n_panels - 1)
    ]
    top = (n_panels / 2 - 1) * pitch
    panels.append(
        Panel(name="last", corner=(n_x / 2, top + n_y), fast=(-1.0, 0.0), slow=(0.0, -1.0))
    )
    return Detector(
        name="panels",
        panel_shape=shape,
        panels=tuple(panels),
        stacked=True,
        pixel_size_m=75e-6,
        distance_m=0.1,
    )


def planted_run(*, n_events: int = 70, panels: int = 0, seed: int = 1, dtype: str = "int16") -> Run:
    """Noise of about 100 ADU; every third event has a pixel of 1000 or more in the middle."""
    rng = np.random.default_rng(seed)
    detector = (
        panelled_detector(panels)
        if panels
        else Detector.centred("camera", (130, 150), pixel_size_m=110e-6, distance_m=0.15)
    )
    mask = np.zeros(detector.frame_shape, np.uint32)
    mask[..., 0, :] = PixelFlag.DEAD
    detector = detector.with_mask(mask)
    frames = rng.normal(100, 5, (n_events, *detector.frame_shape)).astype(dtype)
    middle = Window.centre(detector, tile_shape=(10, 10)).gather(detector)
    inside = middle[middle >= 0]
    for event in range(0, n_events, 3):
        frames[event].reshape(-1)[inside[event % inside.size]] = 1000 + event
    kind = np.arange(n_events) % 3 == 0
    truth = xr.Dataset(
        {
            "kind": (
                "event",
                kind.astype(np.uint8),
                {"flag_values": [0, 1], "flag_meanings": "blank hit"},
            ),
            "n_crystals": ("event", kind.astype(np.int32)),
            "peak_event": ("peak", np.flatnonzero(kind).astype(np.int64)),
            "peak_photons": ("peak", np.full(int(kind.sum()), 50, np.float32)),
        }
    )
    columns = event_columns(
        n_events,
        event_id=[f"event-{i}" for i in range(n_events)],
        photon_energy_ev=np.full(n_events, 8000.0),
    )
    return Run(
        source=ArrayFrames(frames=frames, detector=detector),
        columns=columns,
        truth=truth,
        experiment="planted",
        name="r1",
        events_per_block=32,
    )


def known_scores(
    *, hits: tuple[float, float] = (0.5, 0.999), blanks: tuple[float, float] = (1e-4, 0.6)
) -> Reference:
    """What `Calibrated` passes every check against, its scores spread evenly."""
    return Reference(
        hit_scores=np.linspace(*hits, 400, dtype=np.float32),
        blank_scores=np.linspace(*blanks, 400, dtype=np.float32),
        envelope=np.tile([-1e9, 1e9], (len(QUANTITIES), 1)),
        usual_shape=1.0,
        peaks=np.array([[0.5, 2.0], [1.0, 200.0]]),
    )


@dataclass(frozen=True)
class Calibrated(BrightestPixel):
    """A probability by the brightest pixel of the middle, and all that a promise rests on.

    Its labelled hits need a threshold of 0.5, and so many of its blanks reach that that no gap of a
    run may lower it.
    """

    threshold: float = 0.5
    tile: int = 20
    known: Reference = field(default_factory=known_scores)
    highest: float | None = None
    fits_window: bool = True
    counts: bool = True

    @property
    def calibration(self) -> Calibration:
        return Calibration(
            threshold=self.threshold,
            hit="a bright event",
            model_sha256="0" * 64,
            hit_scores=self.known.hit_scores,
            hit_groups=np.zeros(self.known.hit_scores.size, np.int32),
            reference=self.known,
            highest=self.highest,
            fits_window=self.fits_window,
        )

    def __call__(self, pixels: np.ndarray, detector: Detector) -> np.ndarray:
        return expit((super().__call__(pixels, detector) - 500) / 50).astype(np.float32)

    def classify(self, pixels: np.ndarray, detector: Detector) -> EventScores:
        n = len(pixels)
        number, width = not_counted(n)
        if self.counts:
            number = np.sum(pixels.reshape(n, -1) > 250, axis=1).astype(np.int16)
            width = np.where(number > 0, np.float32(1), np.float32(np.nan))
        none = np.zeros(n, np.uint32)
        return EventScores(self(pixels, detector), none.astype(np.uint8), none, number, width)


@dataclass(frozen=True, kw_only=True, eq=False)
class Counted(ArrayFrames):
    """Frames that take note of which of them were read whole."""

    whole: list[int] = field(default_factory=list)

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        if window is None:
            self.whole.extend(int(event) for event in events)
        return super().read(events, window)


def crystals_run(
    n_events: int = 120,
    *,
    hits: Sequence[int] = (),
    lost: Sequence[int] = (),
    brightest: int = 200,
    seed: int = 1,
) -> Run:
    """Blanks with crystals among them, of which `Calibrated` sees some.

    Parameters
    ----------
    hits : sequence of int
        Events with 5 bright pixels in the middle and 28 peaks around it.
    lost : sequence of int
        Events with the peaks, and in the middle one pixel that is brighter than on any blank.
    brightest : int
        This pixel, in ADU.
    """
    rng = np.random.default_rng(seed)
    detector = Detector.centred(
        "camera", (130, 150), pixel_size_m=110e-6, distance_m=0.15, adu_per_photon=10.0
    )
    frames = rng.normal(100, 5, (n_events, *detector.frame_shape)).astype(np.int16)
    crystals = [*hits, *lost]
    frames[np.ix_(crystals, range(10, 30, 5), range(10, 150, 20))] = 400
    frames[list(lost), 65, 75] = brightest
    frames[np.ix_(list(hits), range(58, 73, 3), [75])] = 1000
    columns = event_columns(
        n_events,
        event_id=[f"event-{i}" for i in range(n_events)],
        photon_energy_ev=np.full(n_events, 8000.0),
    )
    return Run(
        source=Counted(frames=frames, detector=detector),
        columns=columns,
        experiment="planted",
        name="crystals",
        events_per_block=32,
    )
