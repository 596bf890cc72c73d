"""Master files, which list the files that hold the frames: those of DECTRIS and Jungfraujoch.

A master has geometry, mask and links, each to a file of some hundred frames [1]_. The detector is
read once for all of them.

References
----------
.. [1] H. J. Bernstein et al., IUCrJ 7 (2020) 784. doi:10.1107/S2052252520008672
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SchemaError, SfxReduceError, SourceError
from sfxreduce.io.readers.concatenate import JoinedFrames
from sfxreduce.io.readers.count_mask import MASK_FRAMES
from sfxreduce.io.readers.hdf5.carried import read_carried
from sfxreduce.io.readers.hdf5.columns import COLUMN_PATHS, read_columns, read_truth
from sfxreduce.io.readers.hdf5.detector import has_mask, read_detector
from sfxreduce.io.readers.hdf5.file import FileStamp, Hdf5File, open_hdf5
from sfxreduce.io.readers.hdf5.find_frames import find_frames
from sfxreduce.io.readers.hdf5.listed import ListedFile, counted, listed_files, listed_names
from sfxreduce.io.readers.hdf5.run import (
    CxiFrames,
    FrameFacts,
    few_of,
    fill_of,
    masked_by_values,
    of_a_link,
    open_cxi,
    refuse_polarity,
)
from sfxreduce.io.readers.hdf5.unwritten import find_missing
from sfxreduce.run.columns import plain_text
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Reading, Run, WrappedFrames
from sfxreduce.run.window import Window

__all__ = ["AbsentFrames", "ListedFrames", "MasterFrames", "open_hdf5_run"]

OF_A_MASTER = re.compile(r"(.+?)(_data)?_\d{6,}")
"""Names of files that a master lists, without their suffix."""

SETTINGS = "/entry/instrument/detector/detectorSpecific"


def open_hdf5_run(
    path: Path,
    *,
    data_path: str = "",
    roots: Sequence[str] = (),
    mask_good_is: int | None = None,
) -> Run:
    """Open a run in an HDF5 file, or in the files that it lists; see `open_cxi`.

    Files at the end of a list that are not there were never written, in a collection that was
    aborted, or are not here yet: the run is that of the others, and says so. Events of one in the
    middle cannot be read, if it can be told how many they are.

    Raises
    ------
    SourceError
        If a listed file is damaged or not there, and nothing says how many events it holds.
    SchemaError
        If the files hold frames of several shapes, or there are frames beside the list.
    """
    stamp, roots = FileStamp.of(path), tuple(roots)
    files = () if data_path else listed_files(stamp, roots)
    if files:
        return _open_listed(path, stamp, files, roots, mask_good_is)
    run = open_cxi(path, data_path=data_path, roots=roots, mask_good_is=mask_good_is)
    master = "" if data_path else _master_of(Path(stamp.path))
    if not master:
        return run
    warning = (
        f"it is one of the files of {master}, which has all events, the geometry and the mask: "
        f"give that to --in"
    )
    warnings = [*run.warnings, plain_text(warning)]
    return replace(run, columns=run.columns.assign_attrs(warnings=warnings))


def _open_listed(
    path: Path,
    stamp: FileStamp,
    files: tuple[ListedFile, ...],
    roots: tuple[str, ...],
    mask_good_is: int | None,
) -> Run:
    """Run of the files that a master lists."""
    counts = _checked_counts(path, files)
    # Files may have changed under the same master since they were last looked at.
    for known in (_shared, _of_listed):
        known.cache_clear()
    n_events = sum(counts)
    there = [file.link for file in files if file.n_events is not None]
    spread = np.linspace(0, len(there) - 1, min(len(there), MASK_FRAMES)).astype(int)
    samples = tuple(there[i] for i in spread)
    shared = _shared(stamp, samples, roots, mask_good_is)
    with open_hdf5(path, roots) as file:
        columns = read_columns(file, n_events, path=str(path), frames_path=there[0])
        carried, left = read_carried(file, n_events, known=(*COLUMN_PATHS, *there))
        warnings = _warnings(files, counts, announced=_announced(file))
        columns = columns.merge(carried).assign_attrs(not_carried=list(left), warnings=warnings)
        truth = read_truth(file, n_events)
        opened, named = set(file.opened), {**file.named, str(path): of_a_link(path)}
    for listed in files:
        opened |= set(listed.files)
        named |= listed.named
    a_file = ListedFrames(
        path=str(path),
        data_path=there[0],
        n_events=0,
        frame_shape=shared.detector.frame_shape,
        dtype=shared.dtype,
        n_bytes=0,
        inputs=(),
        roots=roots,
        mask_good_is=mask_good_is,
        samples=samples,
    )
    return Run(
        source=MasterFrames(
            sources=_sources(files, counts, a_file),
            frame_shape=a_file.frame_shape,
            master=str(path),
            n_stored=sum(FileStamp.of(name).n_bytes for name in opened),
            files=tuple(Path(n) for n in sorted({*opened, *filter(os.path.exists, named)})),
            unmovable=tuple(sorted(filter(None, named.values()))),
            roots=roots,
        ),
        columns=columns,
        truth=truth,
        name=plain_text(path.stem),
        provenance=plain_text(f"read from {path.name} and {len(there)} files that it lists"),
        events_per_block=shared.events_per_block,
    )


def _checked_counts(path: Path, files: Sequence[ListedFile]) -> list[int]:
    """Events of each file; see `counted`.

    Raises
    ------
    SourceError
        If none can be read, the last one is damaged, or nothing says how many events one has.
    SchemaError
        If their frames differ in shape or dtype.
    """
    there = [file for file in files if file.n_events is not None]
    damaged = [file for file in files[files.index(there[-1]) if there else 0 :] if file.damage]
    if damaged:
        raise SourceError(damaged[-1].damage)
    if not there:
        raise SourceError(
            f"{path}: expected frames in {_few(files)}, found none of these files; fetch them"
        )
    other = next((file for file in there if file.form != there[0].form), None)
    if other is not None:
        raise SchemaError(
            f"{path}: expected frames {there[0].form} as in {there[0].name}, found {other.form} in "
            f"{other.name}; give the files of one detector"
        )
    counts = counted(files)
    if counts is None:
        absent = [file for file in files if file.n_events is None]
        raise SourceError(
            f"{path}: expected the files that it lists, found none to be read as "
            f"{_few(absent)}, and nothing says how many events are missing; fetch it, or give "
            f"the others to --in, and --geometry {path.name}"
        )
    return counts


def _sources(
    files: Sequence[ListedFile], counts: Sequence[int], a_file: ListedFrames
) -> tuple[ListedFrames | AbsentFrames, ...]:
    """Frames of each file that has some; of the first one that is there in any case."""
    sources: list[ListedFrames | AbsentFrames] = []
    for file, n_events in zip(files, counts, strict=True):
        if file.n_events is None and n_events:
            sources.append(AbsentFrames(source=a_file, n_absent=n_events))
        elif n_events or file.link == a_file.data_path:
            sources.append(replace(a_file, data_path=file.link, n_events=n_events))
    return tuple(sources)


def _warnings(files: Sequence[ListedFile], counts: Sequence[int], *, announced: int) -> list[str]:
    """What is missing of a run, and what becomes of it."""
    warnings = []
    after = 1 + max(place for place, file in enumerate(files) if file.n_events is not None)
    within = [file for file in files[:after] if file.n_events is None]
    if within:
        n_lost = sum(counts) - sum(file.n_events or 0 for file in files)
        warnings.append(
            f"{_few(within)}: not there or damaged, so that {n_lost} events are undecided; fetch "
            f"{'it' if len(within) == 1 else 'them'} again"
        )
    if files[after:]:
        of_all = f" of {announced}" if announced else ""
        warnings.append(
            f"{_few(files[after:])}: not there, so that the run is the {sum(counts)}{of_all} "
            "events of the files before; fetch what was written"
        )
    return [plain_text(text) for text in warnings]


def _few(files: Sequence[ListedFile]) -> str:
    """Names of a few of the files, and how many more there are."""
    return few_of([file.name for file in files])


def _announced(file: Hdf5File) -> int:
    """Events that a collection was to have; zero if the master does not say."""
    product = 1
    for name in ("nimages", "ntrigger"):
        dataset = file.dataset(f"{SETTINGS}/{name}")
        if dataset is None or dataset.size != 1 or dataset.dtype.kind not in "iu":
            return 0
        product *= int(file.read(dataset).ravel()[0])
    return product


def _master_of(path: Path) -> str:
    """Name of the master beside a file that lists it; empty if there is none."""
    stem = OF_A_MASTER.fullmatch(path.stem)
    master = path.with_name(f"{stem[1]}_master{path.suffix}") if stem else path
    if stem is None or not master.is_file():
        return ""
    try:
        with open_hdf5(master) as file:
            listed = listed_names(file)
    except SfxReduceError:
        return ""
    return master.name if path.name in listed else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedFrames(CxiFrames):
    """Frames of one of the files that a master lists, with the detector of the master.

    Parameters
    ----------
    samples : tuple of str
        Paths of frames in the master that its mask is made from if it has none.
    """

    samples: tuple[str, ...]

    def _facts(self) -> FrameFacts:
        stamp = FileStamp.of(self.path)
        return _of_listed(stamp, self.data_path, self.samples, self.roots, self.mask_good_is)


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsentFrames(WrappedFrames):
    """Events of a file that cannot be read; all else is as in one that can be.

    Parameters
    ----------
    n_absent : int
        Number of the events.
    """

    n_absent: int

    @property
    def n_events(self) -> int:
        """Number of events."""
        return self.n_absent

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """No pixels, and the reason; see `sfxreduce.run.run.FrameSource.read`."""
        shape = self.detector.frame_shape if window is None else window.shape
        pixels = np.zeros((len(events), *shape), self.dtype)
        reasons = np.full(len(events), Reason.FILE_UNREADABLE, np.uint32)
        return Reading(pixels=pixels, reasons=reasons)


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterFrames(JoinedFrames):
    """Frames of the files that a master lists, in its order. See `JoinedFrames`.

    Parameters
    ----------
    master : str
        Path of the master.
    n_stored : int
        Bytes of all files.
    files : tuple of Path
        The master and what it leads to.
    unmovable : tuple of str
        See `sfxreduce.run.run.LeadsOn`.
    roots : tuple of str
        Folders that links may lead into, besides that of the master.
    """

    master: str
    n_stored: int
    files: tuple[Path, ...]
    unmovable: tuple[str, ...]
    roots: tuple[str, ...]

    @property
    def path(self) -> str:
        """The master."""
        return self.master

    @property
    def detector(self) -> Detector:
        """Geometry and mask of the master."""
        return self.sources[0].detector

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return self.n_stored

    @property
    def inputs(self) -> tuple[Path, ...]:
        """All files."""
        return self.files

    def lacking_only(self, owner: int) -> NDArray[np.bool_]:  # noqa: ARG002 - JoinedFrames' signature
        """Nothing: a file of other panels would not be listed."""
        return np.zeros((), np.bool_)

    @property
    def lacking(self) -> NDArray[np.bool_]:
        """Nothing: a panel that was never written is a hole."""
        return np.zeros(self.frame_shape, np.bool_)


@lru_cache(maxsize=4)
def _shared(
    stamp: FileStamp, samples: tuple[str, ...], roots: tuple[str, ...], mask_good_is: int | None
) -> FrameFacts:
    """What all files of a master share, looked up once a process."""
    with open_hdf5(stamp.path, roots) as file:
        path, frames = find_frames(file, samples[0])
        detector = read_detector(
            file, frames.shape[1:], frames_path=path, mask_good_is=mask_good_is
        )
        if not has_mask(file, frames_path=path):
            refuse_polarity(file, mask_good_is)
        detector = masked_by_values(detector, file, path, list(_spread(file, samples)))
        none = np.zeros((0, len(detector.panels)), np.bool_)
        return FrameFacts(
            path=path,
            dtype=frames.dtype.newbyteorder("="),
            events_per_chunk=int(frames.chunks[0]) if frames.chunks else 1,
            detector=detector,
            missing=none,
            marked=none,
            lacking=np.zeros(detector.frame_shape, np.bool_),
            fill=fill_of(frames),
        )


def _spread(file: Hdf5File, samples: Sequence[str]) -> Iterator[tuple[h5py.Dataset, int]]:
    """Some events of each of these frames."""
    for link in samples:
        frames = file.dataset(link)
        n_events = 0 if frames is None else int(frames.shape[0])
        count = min(n_events, -(-MASK_FRAMES // len(samples)))
        for event in np.linspace(0, max(n_events - 1, 0), count).astype(int):
            yield frames, int(event)


@lru_cache(maxsize=1024)
def _of_listed(
    stamp: FileStamp,
    link: str,
    samples: tuple[str, ...],
    roots: tuple[str, ...],
    mask_good_is: int | None,
) -> FrameFacts:
    """What is known of one file of a master, looked up once a process."""
    shared = _shared(stamp, samples, roots, mask_good_is)
    with open_hdf5(stamp.path, roots) as file:
        path, frames = find_frames(file, link)
        if math.prod(frames.shape[1:]) != math.prod(shared.detector.frame_shape):
            raise SchemaError(f"{stamp.path}: {link}: expected frames as in {samples[0]}")
        missing = find_missing(file, frames, len(shared.detector.panels))
        return replace(
            shared,
            path=path,
            dtype=frames.dtype.newbyteorder("="),
            events_per_chunk=int(frames.chunks[0]) if frames.chunks else 1,
            missing=missing,
            marked=np.zeros_like(missing),
        )
