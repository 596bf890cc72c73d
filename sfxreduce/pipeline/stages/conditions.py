"""Conditions of a run: gain and bad pixels measured on a few of its frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.cluster.pool import Rescue, halves_of
from sfxreduce.pipeline.stages.batch import SOURCE_LOST
from sfxreduce.quality.conditions import Conditioned, Conditions, conditions_of, frames_to_look_at
from sfxreduce.quality.events import check_events
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import FrameSource, Run
from sfxreduce.scorers.protocol import Scorer, calibration_of

__all__ = ["event_reasons", "measured_conditions", "with_conditions"]


def with_conditions(
    run: Run, scorer: Scorer, *, pool: Pool, stored: Conditions | None = None
) -> Run:
    """Measure gain, hot and noisy pixels of a run, for scorers that need them.

    Parameters
    ----------
    run : Run
        Some of its frames are read; none if its conditions are stored, or were measured before.
    pool : Pool
        Reads them: a frame that ends whatever reads it does not count.
    stored : Conditions, optional
        As an earlier filter run of these frames stored them.
    """
    if not calibration_of(scorer).needs_conditions or isinstance(run.source, Conditioned):
        return run
    conditions = stored
    if conditions is None:
        sample = _SampledFrames(source=run.source, events=tuple(frames_to_look_at(run.n_events)))
        [(_, conditions)] = pool.map("measure", _measured, [sample], rescue=_RESCUE)
    if conditions is None:
        return run  # every event will say so for itself
    return replace(run, source=Conditioned(source=run.source, found=conditions))


def measured_conditions(run: Run) -> Conditions | None:
    """Conditions that a run was given by `with_conditions`; None if it was given none."""
    return run.source.found if isinstance(run.source, Conditioned) else None


def event_reasons(run: Run, scorer: Scorer, of_pixels: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Reasons not to trust events: of their pixels, their columns, and what the scorer needs.

    Parameters
    ----------
    run : Run
        With its conditions, if the scorer needs them.
    of_pixels : ndarray of uint32
        `Reason` bits found while scoring, shape (event,).

    Returns
    -------
    ndarray of uint32
        `Reason` bits, shape (event,).
    """
    gain = run.detector.adu_per_photon
    reasons = check_events(run.columns, run.detector)
    if calibration_of(scorer).needs_conditions and not (math.isfinite(gain) and gain > 0):
        reasons |= np.uint32(Reason.GAIN_UNKNOWN)
    # Of an event without an image there is nothing that could be a hole.
    holes = np.where(reasons & Reason.NO_IMAGE, np.uint32(Reason.DATA_HOLE), np.uint32(0))
    return (of_pixels & ~holes) | reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class _SampledFrames:
    """Frames that are measured together."""

    source: FrameSource
    events: tuple[int, ...]


def _measured(sample: _SampledFrames) -> Conditions | None:
    """What the frames say about their detector; None if the source is gone."""
    try:
        return conditions_of(sample.source, sample.events)
    except SOURCE_LOST:
        return None


def _readable(sample: _SampledFrames) -> tuple[int, ...]:
    """Events that were read without ending the process, whatever their reasons."""
    with suppress(*SOURCE_LOST):
        sample.source.read(sample.events)
    return sample.events


def _halves(sample: _SampledFrames) -> list[_SampledFrames]:
    return [replace(sample, events=events) for events in halves_of(sample.events)]


def _without(_: _SampledFrames) -> tuple[int, ...]:
    return ()


def _of_the_others(sample: _SampledFrames, parts: Sequence[tuple[int, ...]]) -> Conditions | None:
    return _measured(replace(sample, events=tuple(event for part in parts for event in part)))


def _doubted(sample: _SampledFrames, found: Conditions | None) -> bool:
    """Whether more frames can be read here than a worker measured."""
    measured = 0 if found is None else found.frames
    if measured == len(sample.events):
        return False
    with suppress(*SOURCE_LOST):
        return int(np.count_nonzero(sample.source.read(sample.events).reasons == 0)) > measured
    return False


_RESCUE = Rescue(
    attempt=_readable, halves=_halves, lost=_without, joined=_of_the_others, doubted=_doubted
)
