"""Sources of frames that change something about another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfxreduce.geometry import Detector, Window
from sfxreduce.run import FrameSource, Reading

__all__ = ["WrappedFrames"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedFrames:
    """A source that is another one in everything it does not say for itself.

    To be derived from; see `sfxreduce.run.FrameSource` for what each of its parts means.

    Parameters
    ----------
    source : FrameSource
        The other one.
    """

    source: FrameSource

    @property
    def path(self) -> str:
        """Where the frames lie, for messages."""
        return self.source.path

    @property
    def n_events(self) -> int:
        """Number of events."""
        return self.source.n_events

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Dtype of a pixel."""
        return self.source.dtype

    @property
    def detector(self) -> Detector:
        """Geometry and mask."""
        return self.source.detector

    @property
    def n_bytes(self) -> int:
        """Bytes the source occupies on disk."""
        return self.source.n_bytes

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file and folder that frames are read from."""
        return self.source.inputs

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """Read events of the source, pixels in ADU."""
        return self.source.read(events, window)
