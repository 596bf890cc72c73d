"""One run, lazily: frames, per-event columns, detector, and the truth where it is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from sfxreduce.errors import SchemaError, SourceError
from sfxreduce.geometry import Detector, Window

__all__ = [
    "EVENT_COLUMNS",
    "MISSING_TIME",
    "Column",
    "FrameSource",
    "Reading",
    "Run",
    "block_sizes",
    "event_columns",
    "select_events",
]

MISSING_TIME = int(np.iinfo(np.int64).min)
"""Marks an event without a time stamp; the bit pattern of NumPy's not-a-time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A per-event column that every run has.

    Parameters
    ----------
    name, long_name : str
    dtype : str
        A NumPy dtype, or "str" for variable-length UTF-8 text.
    units : str
        Empty for text and counts.
    missing : float, int or str
        What stands where the source has no value.
    """

    name: str
    long_name: str
    dtype: str
    units: str
    missing: float | int | str


EVENT_COLUMNS = (
    Column(
        name="event_id",
        long_name="name of the event in its experiment",
        dtype="str",
        units="",
        missing="",
    ),
    Column(
        name="timestamp_ns",
        long_name="time of the X-ray pulse",
        dtype="int64",
        units="nanoseconds since 1970-01-01",
        missing=MISSING_TIME,
    ),
    Column(
        name="photon_energy_ev",
        long_name="photon energy",
        dtype="float64",
        units="eV",
        missing=np.nan,
    ),
    Column(
        name="pulse_energy_mj",
        long_name="pulse energy",
        dtype="float64",
        units="mJ",
        missing=np.nan,
    ),
    Column(
        name="source_file",
        long_name="file the event was read from",
        dtype="str",
        units="",
        missing="",
    ),
    Column(
        name="source_event", long_name="position in that file", dtype="int64", units="1", missing=-1
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What came back when some events were asked for.

    Parameters
    ----------
    pixels : ndarray
        Shape (event, ...), in ADU, in the source's own dtype. Where `reasons` is not zero the
        pixels mean nothing.
    reasons : ndarray of uint32
        `sfxreduce.decide.Reason` bits of each event; zero if it was read whole.
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """Minutes of events under one setting.

    Parameters
    ----------
    source : FrameSource
    columns : Dataset
        Per-event columns on dimension ``event``; `EVENT_COLUMNS` at least.
    truth : Dataset, optional
        What is known of the events: ``kind``, peak counts, peak lists. Only simulated runs and
        sources that came with labels have it.
    experiment, name : str
        Of the experiment and of the run.
    provenance : str
        How this run came to be: program, version, options.
    events_per_block : int
        Events in one Dask block of `frames`; the source's own grouping where it has one.

    Raises
    ------
    SchemaError
        If a column is missing or has another length than the frames.
    """

    source: FrameSource
    columns: xr.Dataset
    truth: xr.Dataset | None = None
    experiment: str = ""
    name: str = ""
    provenance: str = ""
    events_per_block: int = 32

    def __post_init__(self) -> None:
        missing = [c.name for c in EVENT_COLUMNS if c.name not in self.columns]
        if missing:
            raise SchemaError(
                f"{self.path}: no column {missing}; found {sorted(map(str, self.columns))}. "
                "Was it made by 'sfxreduce ingest'?"
            )
        found = self.columns.sizes.get("event", 0)
        if found != self.n_events:
            raise SchemaError(
                f"{self.path}: {self.n_events} frames but columns of {found} events; "
                "the store is incomplete, ingest it again"
            )

    @property
    def path(self) -> str:
        """Where the run lies."""
        return self.source.path

    @property
    def detector(self) -> Detector:
        """Geometry and mask."""
        return self.source.detector

    @property
    def n_events(self) -> int:
        """Number of events."""
        return self.source.n_events

    @property
    def inputs(self) -> list[Path]:
        """Files and folders the events come from, those that exist: no output may touch them."""
        named = {str(name) for name in self.columns["source_file"].values} - {""}
        paths = [Path(name) for name in sorted({self.path, *named})]
        return [path for path in paths if path.exists()]

    @property
    def frames(self) -> xr.DataArray:
        """All frames, lazily: a DataArray (event, frame axes) in ADU, one Dask block per shard.

        Raises
        ------
        SourceError
            When computed, if a frame cannot be read.
        """
        shape = self.detector.frame_shape
        sizes = block_sizes(self.n_events, self.events_per_block)
        data = da.map_blocks(
            _read_block,
            source=self.source,
            step=self.events_per_block,
            chunks=(sizes, *((n,) for n in shape)),
            dtype=self.source.dtype,
            meta=np.empty((0,) * (1 + len(shape)), self.source.dtype),
            name=f"frames-{tokenize(self.source, self.events_per_block)}",
        )
        dims = ("event", *self.detector.frame_dims)
        return xr.DataArray(data, dims=dims, name="frames", attrs={"units": "ADU"})


def event_columns(n_events: int, **values: NDArray[np.generic] | Sequence[str]) -> xr.Dataset:
    """Columns of a run: those given, the others marked as missing.

    Parameters
    ----------
    n_events : int
    **values
        Arrays of length `n_events` by column name.

    Examples
    --------
    >>> columns = event_columns(2, photon_energy_ev=np.array([8000.0, 8001.0]))
    >>> columns.pulse_energy_mj.values
    array([nan, nan])
    """
    data = {}
    for column in EVENT_COLUMNS:
        dtype = np.dtype(object) if column.dtype == "str" else np.dtype(column.dtype)
        value = values.get(column.name)
        array = (
            np.full(n_events, column.missing, dtype) if value is None else np.asarray(value, dtype)
        )
        attrs = {"long_name": column.long_name}
        if column.units:
            attrs["units"] = column.units
        data[column.name] = ("event", array, attrs)
    return xr.Dataset(data)


def select_events(table: xr.Dataset, events: NDArray[np.int64]) -> xr.Dataset:
    """Rows of a per-event table for some events, lists of peaks included.

    Parameters
    ----------
    table : Dataset
        Columns on dimension ``event``. Lists on dimension ``peak`` follow their ``peak_event``,
        which is numbered anew.
    events : ndarray of int64
        Positions to select, ascending.

    Examples
    --------
    >>> table = xr.Dataset({"kind": ("event", [0, 1, 1]), "peak_event": ("peak", [1, 2, 2]),
    ...                     "peak_x": ("peak", [5.0, 6.0, 7.0])})
    >>> chosen = select_events(table, np.array([2]))
    >>> chosen.peak_event.values.tolist(), chosen.peak_x.values.tolist()
    ([0, 0], [6.0, 7.0])
    """
    chosen = table.isel(event=events)
    if "peak_event" in chosen:
        owner = chosen["peak_event"].values
        chosen = chosen.isel(peak=np.isin(owner, events))
        attrs = chosen["peak_event"].attrs
        places = np.searchsorted(events, chosen["peak_event"].values)
        chosen["peak_event"] = ("peak", places.astype(owner.dtype), attrs)
    return chosen


def block_sizes(n_events: int, step: int) -> tuple[int, ...]:
    """Lengths of consecutive blocks of at most `step` events.

    Examples
    --------
    >>> block_sizes(70, 32), block_sizes(0, 32)
    ((32, 32, 6), (0,))
    """
    return tuple(min(step, n_events - start) for start in range(0, n_events, step)) or (0,)


def _read_block(
    *, source: FrameSource, step: int, block_id: tuple[int, ...]
) -> NDArray[np.generic]:
    """Read one block of whole frames, or say which event stands in the way."""
    start = block_id[0] * step
    reading = source.read(range(start, min(start + step, source.n_events)))
    bad = np.flatnonzero(reading.reasons)
    if bad.size:
        raise SourceError(
            f"{source.path}: event {start + int(bad[0])} cannot be read; "
            "'sfxreduce filter' keeps such events as undecided"
        )
    return reading.pixels
