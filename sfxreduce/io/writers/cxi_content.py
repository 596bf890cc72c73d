"""What goes into a CXI file: frames, columns and peaks of the same events."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.errors import SchemaError
from sfxreduce.io.chunks.blosc import USUAL_PACKING
from sfxreduce.io.chunks.layout import Layout
from sfxreduce.io.writers.publish import check_cxi_filter, check_cxi_layout
from sfxreduce.io.writers.shards import TiledSource
from sfxreduce.run.columns import EVENT_COLUMNS
from sfxreduce.run.run import FrameSource, Run

__all__ = [
    "BloscChunks",
    "CxiContent",
    "PeakTable",
    "plan_blosc_chunks",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BloscChunks:
    """Chunks of frames; a chunk is one tile.

    Parameters
    ----------
    layout : Layout
        Where panels lie one below the other, a whole number of tiles is as high as a panel.
    copies_tiles : bool
        Whether the source has these very tiles, so that nothing has to be decoded.
    modules : bool
        Whether panels are an axis of their own.
    """

    layout: Layout
    copies_tiles: bool

    modules: bool = False

    def offset(self, tile: int) -> tuple[int, ...]:
        """Row and column of a tile's first pixel in the slab; panel, row and column in modules.

        Examples
        --------
        >>> layout = Layout(frame_shape=(2, 6, 10), tile=(3, 4), events_per_shard=1)
        >>> BloscChunks(layout=layout, copies_tiles=True).offset(7)
        (6, 4)
        """
        # No tile spans two panels, so that rows of tiles are numbered on from panel to panel.
        row, column = divmod(tile, self.layout.tile_grid[-1])
        if self.modules:
            panel, row = divmod(row, self.layout.tile_grid[-2])
            return panel, row * self.layout.tile[0], column * self.layout.tile[1]
        return row * self.layout.tile[0], column * self.layout.tile[1]


def plan_blosc_chunks(source: FrameSource, *, modules: bool = False) -> BloscChunks:
    """Chunks that are the stored tiles of a source, or else whole panels, packed alike.

    HDF5 cuts a slab from its top in equal steps. They meet the tiles of every panel only if no
    tile reaches below its panel, unless there is one, or panels are an axis of their own.

    Parameters
    ----------
    modules : bool
        Whether they are.
    """
    layout = source.layout if isinstance(source, TiledSource) else None
    if layout is not None and _meets_slab(layout, modules=modules):
        return BloscChunks(layout=layout, copies_tiles=True, modules=modules)
    *panels, n_y, n_x = source.detector.frame_shape
    whole = Layout(
        frame_shape=(*panels, n_y, n_x),
        tile=(n_y, n_x),
        events_per_shard=1,
        packing=USUAL_PACKING if layout is None else layout.packing,
    )
    return BloscChunks(layout=whole, copies_tiles=False, modules=modules)


def _meets_slab(layout: Layout, *, modules: bool) -> bool:
    """Whether every tile is a chunk of the frame; none may be larger than all of it."""
    *panels, n_y, n_x = layout.frame_shape
    tile_y, tile_x = layout.tile
    meets = n_y % tile_y == 0 if math.prod(panels) > 1 and not modules else tile_y <= n_y
    return meets and tile_x <= n_x


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
    intensity, max_intensity : ndarray of float32
        Sum and highest pixel above the background, in ADU, shape (peak,).
    snr : ndarray of float32
        Signal to noise, shape (peak,).
    n_pixels : ndarray of int32
        Pixels of each peak, shape (peak,).

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
    max_intensity: NDArray[np.float32]
    snr: NDArray[np.float32]
    n_pixels: NDArray[np.int32]

    def __post_init__(self) -> None:
        n_peaks = int(self.count.sum())
        columns = (self.panel, self.y, self.x, self.intensity, self.max_intensity, self.snr)
        lengths = {len(column) for column in (*columns, self.n_pixels)}
        if lengths != {n_peaks}:
            raise SchemaError(
                f"peak table: expected {n_peaks} peaks as counted, found {sorted(lengths)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CxiContent:
    """What goes into a CXI file.

    Parameters
    ----------
    source : FrameSource
        Frames of the events to write, all of them, in order.
    columns : Dataset
        `EVENT_COLUMNS` of these events; also ``score``, ``source_index`` and ``reason`` where
        known.
    cxi_filter : str
        How frames are packed, one of `CXI_FILTERS`.
    cxi_layout : str
        How panels are stored, one of `CXI_LAYOUTS`: as an axis of their own or one below the other.
    run : Run, optional
        Run of these events, of which the file is to hold all there is; see
        `sfxreduce.io.writers.cxi_record`.

    Raises
    ------
    SchemaError
        If frames, columns and peaks are not of the same number of events.
    UsageError
        If there is no such filter or layout.
    """

    source: FrameSource
    columns: xr.Dataset
    peaks: PeakTable | None = None
    cxi_filter: str = "gzip"
    cxi_layout: str = "modules"
    run: Run | None = None

    def __post_init__(self) -> None:
        check_cxi_filter(self.cxi_filter)
        check_cxi_layout(self.cxi_layout)
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
    def modules(self) -> bool:
        """Whether panels are an axis of their own in the file; a single one never is."""
        return self.cxi_layout == "modules" and len(self.source.detector.panels) > 1

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of a frame in the file."""
        return self.source.detector.frame_shape if self.modules else self.slab_shape

    @property
    def slab_path(self) -> str:
        """Dataset of the file in which panels lie one below the other."""
        return f"/entry_1/data_1/{'slab' if self.modules else 'data'}"

    @property
    def n_bytes(self) -> int:
        """Bytes of all frames before they are packed."""
        return self.source.n_events * math.prod(self.slab_shape) * self.source.dtype.itemsize
