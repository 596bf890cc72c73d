"""What goes into a CXI file: frames, columns and peaks of the same events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.columns import EVENT_COLUMNS
from sfxreduce.errors import SchemaError
from sfxreduce.run import FrameSource

if TYPE_CHECKING:
    from sfxreduce.peaks import Peaks

__all__ = ["CxiContent", "PeakTable"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PeakTable:
    """The peaks of many events, one after the other.

    Parameters
    ----------
    count : ndarray of int32
        Peaks of each event, shape (event,).
    panel : ndarray of int32
        Panel of each peak, 0 on frames without panels, shape (peak,).
    y, x : ndarray of float32
        Place on the panel in pixels, 0 at the centre of the first pixel, shape (peak,).
    intensity : ndarray of float32
        Above the background, in ADU, shape (peak,).

    Raises
    ------
    SchemaError
        If there are more or fewer peaks than counted.
    """

    count: NDArray[np.int32]
    panel: NDArray[np.int32]
    y: NDArray[np.float32]
    x: NDArray[np.float32]
    intensity: NDArray[np.float32]

    def __post_init__(self) -> None:
        n_peaks = int(self.count.sum())
        lengths = {len(self.panel), len(self.y), len(self.x), len(self.intensity)}
        if lengths != {n_peaks}:
            raise SchemaError(
                f"peak table: expected {n_peaks} peaks as counted, found {sorted(lengths)}"
            )

    @classmethod
    def of(cls, events: Sequence[Peaks]) -> PeakTable:
        """Put the peaks of one event after those of the other."""

        def joined(name: str, dtype: type[np.generic]) -> NDArray[Any]:
            parts = [np.asarray(getattr(peaks, name), dtype) for peaks in events]
            return np.concatenate([np.zeros(0, dtype), *parts])

        return cls(
            count=np.array([len(peaks) for peaks in events], np.int32),
            panel=joined("panel", np.int32),
            y=joined("y", np.float32),
            x=joined("x", np.float32),
            intensity=joined("intensity", np.float32),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CxiContent:
    """What goes into a CXI file.

    Parameters
    ----------
    source : FrameSource
        Frames of the events to write, all of them, in order.
    columns : Dataset
        `EVENT_COLUMNS` of these events; also ``score`` and ``source_index`` where known.
    peaks : PeakTable, optional

    Raises
    ------
    SchemaError
        If frames, columns and peaks are not of the same number of events.
    """

    source: FrameSource
    columns: xr.Dataset
    peaks: PeakTable | None = None

    def __post_init__(self) -> None:
        n_columns = self.columns.sizes.get("event", 0)
        n_peaks = len(self.peaks.count) if self.peaks else self.source.n_events
        if not n_columns == n_peaks == self.source.n_events:
            raise SchemaError(
                f"{self.source.path}: expected columns and peaks of {self.source.n_events} events, "
                f"found {n_columns} and {n_peaks}"
            )
        missing = [c.name for c in EVENT_COLUMNS if c.name not in self.columns]
        if missing:
            raise SchemaError(f"{self.source.path}: expected columns {missing}, found none")

    @property
    def slab_shape(self) -> tuple[int, int]:
        """Shape (y, x) of a frame in the file, where panels lie one below the other."""
        *panels, n_y, n_x = self.source.detector.frame_shape
        return math.prod(panels) * n_y, n_x

    @property
    def n_bytes(self) -> int:
        """Bytes of all frames before they are packed."""
        return self.source.n_events * math.prod(self.slab_shape) * self.source.dtype.itemsize
