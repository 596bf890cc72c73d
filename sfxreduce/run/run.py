"""One run, lazily: its source of frames, per-event columns, detector, and truth where known."""

from __future__ import annotations

import errno
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SchemaError, SourceError, UsageError
from sfxreduce.run.columns import EVENT_COLUMNS, Table, select_events
from sfxreduce.run.detector import Detector
from sfxreduce.run.show import draw_frame, html_table
from sfxreduce.run.window import Window

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

__all__ = [
    "Checked",
    "DeclaresMissing",
    "FrameSource",
    "HasTail",
    "KeepsLedger",
    "LeadsOn",
    "MayChange",
    "Reading",
    "ReadsInto",
    "ReadsPartly",
    "Run",
    "Sampled",
    "Samples",
    "SelectedFrames",
    "WrappedFrames",
    "block_sizes",
    "changed_at",
    "decoded_share",
    "events_per_chunk",
    "has_changed",
    "missing_tail_of",
    "read_into",
    "samples_of",
    "select_run",
]


NO_LEDGER = (
    "expected a reduced store, opened as it is, found a run without a ledger; 'sfxreduce filter' "
    "makes a reduced store of it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What came back when some events were asked for.

    Parameters
    ----------
    pixels : ndarray
        Shape (event, ...), in ADU, in the source's own dtype. Where `reasons` is not zero the
        pixels mean nothing, but for the events in `missing`.
    reasons : ndarray of uint32
        `sfxreduce.run.reasons.Reason` bits of each event; zero if it was read whole.
    missing : mapping of int to ndarray of bool
        Of whole frames that some pixels are missing of: by their place in `pixels`, which pixels
        could not be read, in the shape of a frame. Those hold what the source says of pixels that
        were never written.
    """

    pixels: NDArray[np.generic]
    reasons: NDArray[np.uint32]
    missing: Mapping[int, NDArray[np.bool_]] = field(default_factory=dict)

    @property
    def lost(self) -> NDArray[np.bool_]:
        """Which events have no pixel that means anything, shape (event,)."""
        lost: NDArray[np.bool_] = self.reasons != 0
        lost[list(self.missing)] = False
        return lost


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
            Reasons of the reading; which pixels are missing is not told.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sampled:
    """Pixels that are read of tiles which nobody looks at as a whole.

    Parameters
    ----------
    index : ndarray of int64
        Flat place of each in a frame, shape (pixel,); -1 where there is none.
    """

    index: NDArray[np.int64]


@runtime_checkable
class Samples(Protocol):
    """A source that reads some tiles of an event for less than all, and vouches for the others."""

    def sampled(self, first: Window, window: Window) -> Sampled | None:
        """Pixels that `read_first` samples; None where a few tiles cost about as much as all.

        Parameters
        ----------
        first, window : Window
            The tiles that are looked at, and all of them.
        """
        ...

    def read_first(
        self,
        events: Sequence[int],
        first: Window,
        window: Window,
        room: NDArray[np.generic],
    ) -> Iterator[Reading]:
        """Read some tiles of events, and some pixels of the others, a few events at a time.

        Every byte of both was found undamaged.

        Parameters
        ----------
        room : ndarray
            Shape (event, ...) of the first tiles of a few events, where those of each part go; what
            it holds before means nothing. Of events that cannot be read it is zero.

        Yields
        ------
        Reading
            Of as many events as there is room for, with the sampled pixels: shape (event, pixel).
        """
        ...


def samples_of(source: FrameSource, first: Window, window: Window) -> Sampled | None:
    """Pixels that stand for tiles that are not looked at; None if all of them have to be read."""
    return source.sampled(first, window) if isinstance(source, Samples) else None


@runtime_checkable
class Checked(Protocol):
    """A source that may know of itself that no damage of its files ends the process that reads."""

    @property
    def is_checked(self) -> bool:
        """Whether every byte is compared with its checksum before it is decoded."""
        ...


@runtime_checkable
class ReadsPartly(Protocol):
    """A source that may decode less than an event to read a window of it."""

    @property
    def events_per_chunk(self) -> int:
        """Events that lie in one chunk: read apart, each of them costs as much as all."""
        ...

    def decoded_share(self, window: Window) -> float:
        """Share of the pixels in an event's chunks that is decoded to read a window of it.

        Returns
        -------
        float
            More than 0, at most 1. It is 1 where each chunk is a frame that can only be decoded
            whole; the window's share of the tiles where tiles are chunks of their own. Windows
            whose shares add up to 1 have no chunk in common, and cost as much one by one as
            together.
        """
        ...


@runtime_checkable
class DeclaresMissing(Protocol):
    """A source that may lack single panels of its frames."""

    @property
    def fill(self) -> float:
        """What stands in pixels that are missing."""
        ...

    @property
    def lacking(self) -> NDArray[np.bool_]:
        """Pixels that every event lacks, in the shape of a frame: they are masked, and no holes."""
        ...


@runtime_checkable
class LeadsOn(Protocol):
    """A source whose files name other files."""

    @property
    def unmovable(self) -> tuple[str, ...]:
        """What would keep a copy of its inputs in another folder from being read as they are: one
        sentence for each file that is missing, or is reached over a symbolic link or by an absolute
        path.
        """
        ...


@runtime_checkable
class KeepsLedger(Protocol):
    """A source that remembers every event of the run it was made from."""

    def ledger(self) -> xr.Dataset:
        """Read the ledger, one row an event of that run. See `Run.ledger`."""
        ...


@runtime_checkable
class HasTail(Protocol):
    """A source that may lack its last events because nobody has written them yet."""

    @property
    def missing_tail(self) -> str:
        """What is missing at the end, in words; empty if nothing is, or if nothing is there."""
        ...


@runtime_checkable
class MayChange(Protocol):
    """A source that lies in no file, whose time of change would tell its versions apart."""

    def has_changed(self) -> bool:
        """Whether another version is there by now than the one that is read."""
        ...

    def changed_at(self) -> float:
        """When any of it was last changed, in seconds since 1970; 0 if that cannot be told."""
        ...


def has_changed(source: FrameSource) -> bool:
    """Whether a source says of itself that it is another one by now. See `MayChange`."""
    return isinstance(source, MayChange) and source.has_changed()


def changed_at(source: FrameSource) -> float:
    """When a source that lies in no file was last changed; 0 for others. See `MayChange`."""
    return source.changed_at() if isinstance(source, MayChange) else 0.0


def missing_tail_of(source: FrameSource) -> str:
    """What is missing at the end of a source; empty if it cannot say. See `HasTail`."""
    return source.missing_tail if isinstance(source, HasTail) else ""


def read_into(
    source: FrameSource, events: Sequence[int], window: Window | None, pixels: NDArray[np.generic]
) -> NDArray[np.uint32]:
    """Read events into an array, by whatever way the source has; see `ReadsInto`."""
    if isinstance(source, ReadsInto):
        return source.read_into(events, window, pixels)
    reading = source.read(events, window)
    pixels[...] = reading.pixels
    return reading.reasons


def decoded_share(source: FrameSource, window: Window) -> float:
    """Share of an event that is decoded to read a window of it; all of it unless the source knows.

    See `ReadsPartly`.
    """
    return source.decoded_share(window) if isinstance(source, ReadsPartly) else 1.0


def events_per_chunk(source: FrameSource) -> int:
    """Events that are decoded together; one unless the source knows. See `ReadsPartly`."""
    return source.events_per_chunk if isinstance(source, ReadsPartly) else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedFrames:
    """A source that is another one in everything it does not say for itself.

    To be derived from; see `sfxreduce.run.run.FrameSource` for what each of its parts means.

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

    @property
    def missing_tail(self) -> str:
        """See `HasTail`."""
        return missing_tail_of(self.source)

    def has_changed(self) -> bool:
        """See `MayChange`."""
        return has_changed(self.source)

    def changed_at(self) -> float:
        """See `MayChange`."""
        return changed_at(self.source)

    @property
    def events_per_chunk(self) -> int:
        """Events that are decoded together."""
        return events_per_chunk(self.source)

    def decoded_share(self, window: Window) -> float:
        """Share of an event that is decoded to read a window of it."""
        return decoded_share(self.source, window)


Given = TypeVar("Given")


class _Made(Generic[Given]):
    """Field of a `Run` that is given a Dataset or a `Table`, and is a Dataset, made at first use.

    Commands that ask for a few names and numbers never pay for xarray; see `Table`.

    Parameters
    ----------
    default
        What the field is if nothing is given; without it something has to be.
    """

    def __init__(self, *default: Given) -> None:
        self._default = default

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, run: object, _: type) -> Given:
        if run is None:
            # So a dataclass asks for the default.
            if self._default:
                return self._default[0]
            raise AttributeError(self._name)
        given = vars(run)[self._name]
        made = cast("Given", given.dataset() if isinstance(given, Table) else given)
        vars(run)[self._name] = made
        return made

    def __set__(self, run: object, given: Given | Table) -> None:
        vars(run)[self._name] = given


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """Minutes of events under one setting.

    Parameters
    ----------
    columns : Dataset
        Per-event columns on dimension ``event``; `EVENT_COLUMNS` at least. A `Table` may be given
        in place of a Dataset, which is then made of it at first use.
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

    Examples
    --------
    ``len(run)`` is its number of events, and ``run[3]`` one of them:

    >>> from sfxreduce.simulate.run import simulate_run
    >>> run = simulate_run("photosystem-i-8kev", n_events=4, frame_shape=(350, 350), seed=1)
    >>> len(run), dict(run[3].frame.sizes)
    (4, {'y': 350, 'x': 350})
    """

    source: FrameSource
    columns: _Made[xr.Dataset] = _Made()
    truth: _Made[xr.Dataset | None] = _Made(None)
    experiment: str = ""
    name: str = ""
    provenance: str = ""
    events_per_block: int = 32

    def __post_init__(self) -> None:
        missing = [c.name for c in EVENT_COLUMNS if c.name not in self.table]
        if missing:
            raise SchemaError(
                f"{self.path}: no column {missing}; found {sorted(map(str, self.table))}. "
                "Was it made by 'sfxreduce ingest'?"
            )
        found = self.table.sizes.get("event", 0)
        if found != self.n_events:
            raise SchemaError(
                f"{self.path}: {self.n_events} frames but columns of {found} events; "
                "the store is incomplete, ingest it again"
            )

    @property
    def table(self) -> xr.Dataset | Table:
        """Its columns as they were given: names, sizes, attributes, and ``.values`` by name."""
        given: xr.Dataset | Table = vars(self)["columns"]
        return given

    @property
    def known(self) -> xr.Dataset | Table | None:
        """The same of its truth; None if it has none."""
        given: xr.Dataset | Table | None = vars(self)["truth"]
        return given

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
    def is_checked(self) -> bool:
        """Whether its frames can be read in any process without endangering it."""
        return isinstance(self.source, Checked) and self.source.is_checked

    @property
    def incomplete(self) -> tuple[str, ...]:
        """Signs that it was still being written when it was taken as it is."""
        return tuple(str(sign) for sign in self.table.attrs.get("incomplete", ()))

    @property
    def not_carried(self) -> tuple[str, ...]:
        """Per-event data of the source that have no column."""
        return tuple(str(path) for path in self.table.attrs.get("not_carried", ()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What whoever uses it should know of its files, one sentence each."""
        return tuple(str(text) for text in self.table.attrs.get("warnings", ()))

    @property
    def inputs(self) -> list[Path]:
        """Files and folders the events come from: no output may touch them.

        What the frames are read from, and those files named in the column ``source_file`` that
        exist or may exist: one in a folder that cannot be entered is named all the same.
        """
        named = {str(name) for name in self.table["source_file"].values} - {""}
        existing = {Path(name) for name in named if _may_exist(Path(name))}
        return sorted({*self.source.inputs, *existing})

    @property
    def frames(self) -> xr.DataArray:
        """All frames, lazily: a DataArray (event, frame axes) in ADU, one Dask block per shard.

        Raises
        ------
        SourceError
            When computed, if a frame cannot be read.
        """
        # 0.9 s together, for commands that read frames without them or not at all.
        import dask.array as da
        import xarray as xr
        from dask.base import tokenize

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

    @property
    def ledger(self) -> xr.Dataset:
        """What became of every event of the run that this one was reduced from.

        A Dataset on dimension ``source``, one row an event of that run, in its order:
        ``source_index``, ``score``, ``decision`` (`sfxreduce.Decision`), ``reason``
        (`sfxreduce.Reason` bits) and what else `sfxreduce.ledger_run` writes, as stored. Its method
        ``to_pandas()`` makes a data frame of it.

        Raises
        ------
        UsageError
            If the run is not a reduced store.
        SchemaError
            If the ledger is missing or damaged.
        """
        if not isinstance(self.source, KeepsLedger):
            raise UsageError(f"{self.path}: {NO_LEDGER}")
        table = self.source.ledger()
        return table[sorted(map(str, table))]

    def __len__(self) -> int:
        return self.n_events

    def __getitem__(self, event: int) -> xr.Dataset:
        """One event: its ``frame`` (frame axes, in ADU), and a value of every column.

        Parameters
        ----------
        event : int
            Position in the run; a negative one counts from the end.

        Raises
        ------
        IndexError
            If there is no such event.
        SourceError
            If its frame cannot be read.
        """
        import xarray as xr  # 0.5 s, for commands that read frames without it

        position = range(self.n_events)[operator.index(event)]
        pixels = _read_block(source=self.source, step=1, block_id=(position,))[0]
        frame = xr.DataArray(pixels, dims=self.detector.frame_dims, attrs={"units": "ADU"})
        return self.columns.isel(event=position).assign(frame=frame).drop_attrs(deep=False)

    def sel(self, *, event_id: str) -> xr.Dataset:
        """Return the one event of this name, as ``run[position]`` does.

        Parameters
        ----------
        event_id : str
            Its column ``event_id``.

        Raises
        ------
        UsageError
            If no event has this name, or several have.
        SourceError
            If its frame cannot be read.
        """
        named = np.flatnonzero(self.table["event_id"].values == event_id)
        if named.size != 1:
            raise UsageError(
                f"{self.path}: expected one event called '{event_id}', found {named.size}; "
                "run.columns['event_id'] lists the names, run[POSITION] needs none"
            )
        return self[int(named[0])]

    def show(self, event: int) -> Figure:
        """Draw the assembled picture of an event, in ADU.

        Parameters
        ----------
        event : int
            Position in the run.

        Returns
        -------
        matplotlib.figure.Figure
            A notebook shows it, ``savefig`` writes it; pyplot does not know of it.

        Raises
        ------
        IndexError
            If there is no such event.
        SourceError
            If its frame cannot be read.
        """
        shown = self[event]
        name = str(shown["event_id"].values)
        title = f"event {event} of {self.n_events:,}" + (f": {name}" if name else "")
        return draw_frame(shown["frame"].values, self.detector, title=title)

    def _repr_html_(self) -> str:
        detector = self.detector
        facts: dict[str, object] = {
            "events": f"{self.n_events:,}",
            "frames": f"{' x '.join(map(str, detector.frame_shape))} pixels, {self.source.dtype}",
            "detector": f"{detector.name}, panels {detector.geometry}",
            "experiment": self.experiment or "not given",
            "columns": ", ".join(sorted(map(str, self.table))),
        }
        facts |= {f"warning {n}": text for n, text in enumerate(self.warnings, start=1)}
        return html_table(f"Run {self.path}", facts)


def block_sizes(n_events: int, step: int) -> tuple[int, ...]:
    """Lengths of consecutive blocks of at most `step` events.

    Examples
    --------
    >>> block_sizes(70, 32), block_sizes(0, 32)
    ((32, 32, 6), (0,))
    """
    return tuple(min(step, n_events - start) for start in range(0, n_events, step)) or (0,)


def _may_exist(path: Path) -> bool:
    """Whether something lies at a path, as far as can be seen from here."""
    try:
        path.stat()
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    except ValueError:
        return False  # a name with a zero byte, which no system allows
    return True


def _read_block(
    *, source: FrameSource, step: int, block_id: tuple[int, ...]
) -> NDArray[np.generic]:
    """Read one block of whole frames, or say which event stands in the way."""
    start = block_id[0] * step
    reading = source.read(range(start, min(start + step, source.n_events)))
    bad = np.flatnonzero(reading.lost)
    if bad.size:
        raise SourceError(
            f"{source.path}: event {start + int(bad[0])} cannot be read; "
            "'sfxreduce filter' keeps such events as undecided"
        )
    return reading.pixels


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

    def read_first(
        self,
        events: Sequence[int],
        first: Window,
        window: Window,
        room: NDArray[np.generic],
    ) -> Iterator[Reading]:
        """Read some tiles, and samples of the others. See `sfxreduce.run.run.Samples`."""
        assert isinstance(self.source, Samples)  # noqa: S101 - or nothing would be sampled
        there = [self.events[event] for event in events]
        return self.source.read_first(there, first, window, room)


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
