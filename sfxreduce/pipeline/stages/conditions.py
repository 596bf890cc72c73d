"""A run as its scorer sees it: with its own gain and bad pixels, and what is odd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.cluster.rescue import Rescue, halves_of
from sfxreduce.pipeline.stages.batch import SOURCE_LOST
from sfxreduce.quality.conditions import Conditioned, Conditions, conditions_of, frames_to_look_at
from sfxreduce.quality.metadata import check_events
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.run.source import FrameSource
from sfxreduce.scorers.protocol import Scorer

__all__ = ["as_seen", "odd_events"]


def as_seen(run: Run, scorer: Scorer, *, pool: Pool) -> Run:
    """Give the run its own gain, hot and noisy pixels, once, for scorers to which they matter.

    Parameters
    ----------
    run : Run
        Some of its frames are read; none if this was done before.
    pool : Pool
        Reads them: a frame that ends whatever reads it does not count.
    """
    if not scorer.adapts or isinstance(run.source, Conditioned):
        return run
    look = _SampledFrames(source=run.source, events=tuple(frames_to_look_at(run.n_events)))
    [(_, found)] = pool.map("measure", _measured, [look], rescue=_RESCUE)
    if found is None:
        return run  # every event will say so for itself
    return replace(run, source=Conditioned(source=run.source, found=found))


def odd_events(run: Run, scorer: Scorer) -> NDArray[np.uint32]:
    """Reasons that lie in the run's columns, and in what its scorer needs to know of it.

    Parameters
    ----------
    run : Run
        As the scorer sees it.

    Returns
    -------
    ndarray of uint32
        `Reason` bits, shape (event,).
    """
    gain = run.detector.adu_per_photon
    found = check_events(run.columns, run.detector)
    if scorer.adapts and not (math.isfinite(gain) and gain > 0):
        found |= np.uint32(Reason.NO_CALIB)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _SampledFrames:
    """Frames that are looked at together."""

    source: FrameSource
    events: tuple[int, ...]


def _measured(look: _SampledFrames) -> Conditions | None:
    """What the frames say about their detector; None if the source is gone."""
    try:
        return conditions_of(look.source, look.events)
    except SOURCE_LOST:
        return None


def _readable(look: _SampledFrames) -> tuple[int, ...]:
    """Events that were read without ending the process; their reasons are looked at later."""
    with suppress(*SOURCE_LOST):
        look.source.read(look.events)
    return look.events


def _halves(look: _SampledFrames) -> list[_SampledFrames]:
    return [replace(look, events=events) for events in halves_of(look.events)]


def _without(_: _SampledFrames) -> tuple[int, ...]:
    return ()


def _of_the_others(look: _SampledFrames, parts: Sequence[tuple[int, ...]]) -> Conditions | None:
    return _measured(replace(look, events=tuple(event for part in parts for event in part)))


_RESCUE = Rescue(attempt=_readable, halves=_halves, lost=_without, joined=_of_the_others)
