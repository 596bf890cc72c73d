"""Sources of frames that change something about another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sfxreduce.run.detector import Detector
from sfxreduce.run.window import Window

__all__ = ["FrameSource", "Reading", "ReadsInto", "WrappedFrames", "read_into"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What came back when some events were asked for.

    Parameters
    ----------
    pixels : ndarray
        Shape (event, ...), in ADU, in the source's own dtype. Where `reasons` is not zero the
        pixels mean nothing.
    reasons : ndarray of uint32
        `sfxreduce.run.reasons.Reason` bits of each event; zero if it was read whole.
    """

    pixels: NDArray[np.generic]
    reasons: NDArray[np.uint32]


class FrameSource(Protocol):
    """Where frames come from. Small when pickled: workers open what it names for themselves."""

    @property
    def path(self) -> str:
        """Where the frames lie, for messages."""
        ...

    @property
    def n_events(self) -> int:
        """Number of events."""
        ...

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Integer or floating dtype of a pixel."""
        ...

    @property
    def detector(self) -> Detector:
        """Geometry and mask of the frames."""
        ...

    @property
    def n_bytes(self) -> int:
        """Bytes the source occupies on disk."""
        ...

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file and folder that frames are read from; none if they lie in no file."""
        ...

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """Read events; one that cannot be read is flagged in the reading, never raised.

        Parameters
        ----------
        events : sequence of int
            Positions in the run.
        window : Window, optional
            Read only these pixels, shape (event, tile, row, column), zero where there is no source
            pixel; without it whole frames, shape (event, frame axes).
        """
        ...


@runtime_checkable
class ReadsInto(Protocol):
    """A source that can read into an array that is there already."""

    def read_into(
        self, events: Sequence[int], window: Window | None, pixels: NDArray[np.generic]
    ) -> NDArray[np.uint32]:
        """Read events; see `FrameSource.read`.

        Parameters
        ----------
        pixels : ndarray
            Shape (event, ...) of the reading, zero everywhere.

        Returns
        -------
        ndarray of uint32
            Reasons of the reading.
        """
        ...


def read_into(
    source: FrameSource, events: Sequence[int], window: Window | None, pixels: NDArray[np.generic]
) -> NDArray[np.uint32]:
    """Read events into an array, by whatever way the source has; see `ReadsInto`."""
    if isinstance(source, ReadsInto):
        return source.read_into(events, window, pixels)
    reading = source.read(events, window)
    pixels[...] = reading.pixels
    return reading.reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedFrames:
    """A source that is another one in everything it does not say for itself.

    To be derived from; see `sfxreduce.run.source.FrameSource` for what each of its parts means.

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
