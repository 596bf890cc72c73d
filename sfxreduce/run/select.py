"""Some events of a run as a run of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfxreduce.run.columns import select_events
from sfxreduce.run.run import Reading, Run, Sampled, Samples, WrappedFrames, samples_of
from sfxreduce.run.window import Window

__all__ = ["SelectedFrames", "select_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedFrames(WrappedFrames):
    """Some events of a source, as a source of their own.

    Parameters
    ----------
    events : tuple of int
        Positions in it.
    """

    events: tuple[int, ...]

    @property
    def n_events(self) -> int:
        """Number of selected events."""
        return len(self.events)

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """Read events by their position in the selection. See `FrameSource.read`."""
        return self.source.read([self.events[event] for event in events], window)

    def sampled(self, first: Window, window: Window) -> Sampled | None:
        """Pixels that are sampled of tiles. See `sfxreduce.run.run.Samples`."""
        return samples_of(self.source, first, window)

    def sample(self, events: Sequence[int], first: Window, window: Window) -> Reading:
        """Sample pixels of tiles. See `sfxreduce.run.run.Samples`."""
        assert isinstance(self.source, Samples)  # noqa: S101 - or nothing would be sampled
        return self.source.sample([self.events[event] for event in events], first, window)


def select_run(run: Run, events: NDArray[np.int64]) -> Run:
    """Run of some events only, for work that needs no others.

    Parameters
    ----------
    events : ndarray of int64
        Positions, ascending: neighbours in a store are read together.
    """
    return Run(
        source=SelectedFrames(source=run.source, events=tuple(events.tolist())),
        columns=select_events(run.columns, events),
        experiment=run.experiment,
        name=run.name,
    )
