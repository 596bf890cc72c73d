"""Several files of one run, their events one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby, pairwise
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.errors import RunNotFound, SchemaError, SourceError
from sfxreduce.io.store.metadata import illegal_value
from sfxreduce.run.columns import EVENT_COLUMNS
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import (
    DeclaresMissing,
    FrameSource,
    Reading,
    Run,
    decoded_share,
    events_per_chunk,
    missing_tail_of,
    read_into,
)
from sfxreduce.run.window import Window

__all__ = ["JoinedFrames", "join_runs"]

_LOST = (RunNotFound, SchemaError, SourceError)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedFrames:
    """Frames of several sources of one frame shape and dtype.

    Parameters
    ----------
    sources : tuple of FrameSource
        In the order of the events.
    frame_shape : tuple of int
        (y, x) or (panel, y, x), of all of them.
    """

    sources: tuple[FrameSource, ...]
    frame_shape: tuple[int, ...]

    @property
    def path(self) -> str:
        """The first and the last of the files."""
        first, last = self.sources[0].path, self.sources[-1].path
        return f"{first} ... {last} ({len(self.sources)} files)"

    @property
    def missing_tail(self) -> str:
        """What the first file lacks of which the end is missing. See `HasTail`."""
        tails = ((source.path, missing_tail_of(source)) for source in self.sources)
        return next((f"{tail} to {path}" for path, tail in tails if tail), "")

    @property
    def n_events(self) -> int:
        """Number of events of all files."""
        return sum(source.n_events for source in self.sources)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of a pixel."""
        return self.sources[0].dtype

    @property
    def detector(self) -> Detector:
        """Geometry of the first file; a pixel is bad that is bad in any of them."""
        return _detector(self)

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(source.n_bytes for source in self.sources)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """All files."""
        return tuple(sorted({path for source in self.sources for path in source.inputs}))

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """Read events; see `sfxreduce.run.run.FrameSource.read`."""
        shape = self.frame_shape if window is None else window.shape
        pixels = np.zeros((len(events), *shape), self.dtype)
        reasons = np.zeros(len(events), np.uint32)
        missing: dict[int, NDArray[np.bool_]] = {}
        for owner, places, wanted in self._by_owner(events):
            try:
                reading = self.sources[owner].read(wanted, window)
            except _LOST:
                reasons[places] = Reason.FILE_UNREADABLE
                continue
            pixels[places], reasons[places] = reading.pixels, reading.reasons
            missing |= {places[place]: pixel for place, pixel in reading.missing.items()}
            lacking = self.lacking_only(owner)
            if lacking.any():
                # Other files have these panels, so that here they are holes.
                whole = reasons[places] == 0
                reasons[places] |= np.where(whole, np.uint32(Reason.DATA_HOLE), np.uint32(0))
                also = [place for place, is_whole in zip(places, whole, strict=True) if is_whole]
                missing |= {p: missing[p] | lacking for p in places if p in missing}
                missing |= dict.fromkeys(also if window is None else (), lacking)
        return Reading(pixels=pixels, reasons=reasons, missing=missing)

    def read_into(
        self, events: Sequence[int], window: Window | None, pixels: NDArray[np.generic]
    ) -> NDArray[np.uint32]:
        """Read events into an array of zeros. See `sfxreduce.run.run.ReadsInto`."""
        reasons = np.zeros(len(events), np.uint32)
        for owner, places, wanted in self._by_owner(events):
            there = pixels[places[0] : places[-1] + 1]
            try:
                reasons[places] = read_into(self.sources[owner], wanted, window, there)
            except _LOST:
                reasons[places] = Reason.FILE_UNREADABLE
                continue
            if self.lacking_only(owner).any():
                reasons[[place for place in places if not reasons[place]]] = Reason.DATA_HOLE
        return reasons

    def _by_owner(self, events: Sequence[int]) -> Iterator[tuple[int, list[int], list[int]]]:
        """Runs of events of one file: the file, their places here, and their positions in it."""
        first = np.array([0, *accumulate(source.n_events for source in self.sources)])
        owners = np.searchsorted(first, np.asarray(events, np.int64), side="right") - 1
        for owner, group in groupby(range(len(events)), key=lambda place: int(owners[place])):
            places = list(group)
            yield owner, places, [int(events[place] - first[owner]) for place in places]

    @property
    def events_per_chunk(self) -> int:
        """See `sfxreduce.run.run.ReadsPartly`; the files of one run are packed alike."""
        return events_per_chunk(self.sources[0])

    def decoded_share(self, window: Window) -> float:
        """See `sfxreduce.run.run.ReadsPartly`."""
        return decoded_share(self.sources[0], window)

    @property
    def fill(self) -> float:
        """See `sfxreduce.run.run.DeclaresMissing`."""
        first = self.sources[0]
        return first.fill if isinstance(first, DeclaresMissing) else illegal_value(self.dtype)

    def lacking_only(self, owner: int) -> NDArray[np.bool_]:
        """Pixels that every event of one file lacks, and some of another one have."""
        return _lacking(self)[owner]

    @property
    def lacking(self) -> NDArray[np.bool_]:
        """Pixels that every event of every file lacks."""
        every: NDArray[np.bool_] = np.all([_lacking_in(source) for source in self.sources], axis=0)
        return every


def join_runs(runs: Sequence[Run]) -> Run:
    """Join runs of one file each into one, events one after the other.

    Parameters
    ----------
    runs : sequence of Run
        Of one frame shape and dtype. The geometry is that of the first. The truth comes along if
        all have the same variables.

    Raises
    ------
    SchemaError
        If a file differs from the first one in frame shape or dtype.
    """
    first = runs[0]
    for run in runs[1:]:
        _check_alike(first, run)
    source = JoinedFrames(
        sources=tuple(run.source for run in runs), frame_shape=first.detector.frame_shape
    )
    truth = _joined_truth(runs)
    dropped = truth is None and any(run.truth is not None for run in runs)
    note = "; truth left behind, the files have different variables" if dropped else ""
    return Run(
        source=source,
        columns=_joined_columns([run.columns for run in runs]),
        truth=truth,
        experiment=first.experiment,
        name=first.name,
        provenance=f"{first.provenance} and {len(runs) - 1} more files{note}",
        events_per_block=first.events_per_block,
    )


def _joined_columns(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Columns that all files have in one form; what only some have is not carried."""
    parts = [part.reset_coords() for part in parts]  # stores name events by a coordinate
    needed = {column.name for column in EVENT_COLUMNS}
    forms = [{name: (c.dims, c.shape[1:], c.dtype) for name, c in p.items()} for p in parts]
    alike = [
        name
        for name, form in forms[0].items()
        if name in needed or all(f.get(name) == form for f in forms)
    ]
    left = {path for part in parts for path in part.attrs.get("not_carried", ())}
    left |= {
        str(column.attrs.get("path", name))
        for part in parts
        for name, column in part.items()
        if name not in alike
    }
    joined = xr.concat([part[alike] for part in parts], dim="event")
    warnings = dict.fromkeys(text for part in parts for text in part.attrs.get("warnings", ()))
    return joined.assign_attrs(not_carried=sorted(left), warnings=list(warnings))


def _check_alike(first: Run, run: Run) -> None:
    """Refuse a run whose frames mean something else than those of the first."""
    expected = (first.detector.frame_shape, first.source.dtype)
    found = (run.detector.frame_shape, run.source.dtype)
    if found != expected:
        raise SchemaError(
            f"{run.path}: expected frames {expected[0]} {expected[1]} as in {first.path}, found "
            f"{found[0]} {found[1]}; give the files of one detector"
        )


@lru_cache(maxsize=4)
def _detector(joined: JoinedFrames) -> Detector:
    """Detector of joined files, made once a process."""
    detectors = [source.detector for source in joined.sources]
    masks = [
        np.where(lacking, np.uint32(0), detector.mask)
        for detector, lacking in zip(detectors, _lacking(joined), strict=True)
    ]
    return detectors[0].with_mask(np.bitwise_or.reduce(masks))


def _lacking_in(source: FrameSource) -> NDArray[np.bool_]:
    if isinstance(source, DeclaresMissing):
        return source.lacking
    return np.zeros(source.detector.frame_shape, np.bool_)


@lru_cache(maxsize=4)
def _lacking(joined: JoinedFrames) -> tuple[NDArray[np.bool_], ...]:
    """Pixels that every event of a file lacks, and some of another one have; by file."""
    every = joined.lacking
    return tuple(_lacking_in(source) & ~every for source in joined.sources)


def _joined_truth(runs: Sequence[Run]) -> xr.Dataset | None:
    """Truth of all runs; None if one has none, or they differ in what they know."""
    truths = [run.truth for run in runs if run.truth is not None]
    kinds = [{str(name): (var.dims, var.dtype) for name, var in t.items()} for t in truths]
    if len(truths) != len(runs) or any(one != other for one, other in pairwise(kinds)):
        return None
    starts = accumulate((run.n_events for run in runs[:-1]), initial=0)
    joined = {}
    for name, variable in truths[0].items():
        parts = [truth[name].values for truth in truths]
        if name == "peak_event":
            parts = [part + start for part, start in zip(parts, starts, strict=True)]
        values = _joined_values(parts, listed=variable.dims[:1] in (("event",), ("peak",)))
        if values is None:
            return None
        joined[name] = (variable.dims, values, variable.attrs)
    return xr.Dataset(joined)


def _joined_values(
    parts: Sequence[NDArray[np.generic]], *, listed: bool
) -> NDArray[np.generic] | None:
    """Values of all files, one after the other, or those that all share; None if they differ."""
    if listed:
        alike = len({part.shape[1:] for part in parts}) == 1
        return np.concatenate(parts) if alike else None
    return parts[0] if all(np.array_equal(part, parts[0]) for part in parts) else None
