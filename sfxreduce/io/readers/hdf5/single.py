"""HDF5 files in which each image is a dataset of its own: many in a file, or one in each of many.

So SACLA stores its runs (``/tag-211996540/data``), and so did Cheetah (one file an image). Many
files are not opened before their events are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SchemaError, SfxReduceError
from sfxreduce.io.chunks.limits import check_extent, check_frames
from sfxreduce.io.readers.count_mask import MASK_FRAMES, lasting_sentinels
from sfxreduce.io.readers.crop import take_window
from sfxreduce.io.readers.hdf5.detector import has_mask, read_detector
from sfxreduce.io.readers.hdf5.file import FileStamp, Hdf5File, open_hdf5
from sfxreduce.io.readers.hdf5.run import refuse_polarity
from sfxreduce.io.readers.hdf5.units import in_ev
from sfxreduce.io.readers.hdf5.unwritten import find_holes
from sfxreduce.io.readers.inputs import natural_order
from sfxreduce.run.columns import event_columns, plain_text
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Reading, Run
from sfxreduce.run.window import Window

__all__ = ["TAG", "SingleFrames", "is_single", "open_single"]

TAG = "{tag}"
"""Stands for what differs in the paths of images."""

PHOTON_ENERGY = "photon_energy_ev"
PIXEL_SIZE_UM = "/metadata/pixelsize_in_micro_meter"
DISTANCE_MM = "/metadata/detectordistance_in_mm"
"""As SACLA names them; the first beside each image."""


def is_single(path: Path, data_path: str, *, roots: Sequence[str] = ()) -> bool:
    """Whether a path names datasets of one image each: it has a tag, or the dataset is (y, x).

    Raises
    ------
    SfxReduceError
        If the file cannot be read.
    """
    if TAG in data_path:
        return True
    with open_hdf5(path, roots) as file:
        dataset = file.dataset(data_path)
        return dataset is not None and dataset.ndim == 2


def open_single(
    paths: Sequence[Path],
    *,
    data_path: str,
    roots: Sequence[str] = (),
    mask_good_is: int | None = None,
) -> Run:
    """Open a run of images that are datasets of their own, in natural order or that of the files.

    Parameters
    ----------
    paths : sequence of Path
        With a tag in `data_path`, each is opened once and holds an event for each tag; without,
        each holds one event, and only the first is opened.
    data_path : str
        Of an image (y, x) or, with a tag, (panel, y, x); ``{tag}`` stands for one part of it that
        differs.
    mask_good_is : int, optional
        Value of good pixels in the mask; zero if not given.

    Raises
    ------
    SchemaError
        If there are no such images.
    SfxReduceError
        If a file that is opened cannot be read.
    """
    if data_path.count("{") + data_path.count("}") not in (0, 2) or data_path.count(TAG) > 1:
        raise SchemaError(f"--data-path {data_path}: expected one {TAG} at most; it names events")
    places: list[tuple[int, str, str]] = []
    energies: list[float] = []
    for number, path in enumerate(paths):
        if TAG not in data_path:
            places.append((number, path.stem, data_path))
            energies.append(math.nan)
            continue
        with open_hdf5(path, roots) as file:
            tags = _tags(file, data_path)
            places += [(number, *tag) for tag in tags]
            energies += [_energy(file, where) for _, where in tags]
    if not places:
        raise SchemaError(f"{paths[0]}: expected images at {data_path}, found none; check it")
    source = _source(paths, places, roots=tuple(roots), mask_good_is=mask_good_is)
    # Made now, not on the first worker: it says early what is wrong with the first images.
    _ = source.detector
    return Run(
        source=source,
        columns=event_columns(
            len(places),
            event_id=[name for _, name, _ in places],
            photon_energy_ev=np.array(energies),
            source_file=[str(paths[number]) for number, *_ in places],
            source_event=_positions([number for number, *_ in places]),
        ),
        name=plain_text(paths[0].stem),
        provenance=plain_text(f"read from {data_path} of {len(paths)} files"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleFrames:
    """Images in HDF5 files. Holds names only; each process opens the files itself.

    Parameters
    ----------
    files : tuple of str
        Real paths are looked up when they are read.
    owners : tuple of int
        File of each event.
    datasets : tuple of str
        Image of each event within it.
    frame_shape : tuple of int
        (y, x) or (panel, y, x).
    dtype : dtype
        Of a pixel, in the machine's own byte order.
    n_bytes : int
        Of all files.
    """

    files: tuple[str, ...]
    owners: tuple[int, ...]
    datasets: tuple[str, ...]
    frame_shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    n_bytes: int
    roots: tuple[str, ...] = ()
    mask_good_is: int | None = None

    @property
    def path(self) -> str:
        """The file, or the first and the last of many."""
        first, last = self.files[0], self.files[-1]
        return first if len(self.files) == 1 else f"{first} ... {last} ({len(self.files)} files)"

    @property
    def n_events(self) -> int:
        """Number of images."""
        return len(self.owners)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The files."""
        return tuple(Path(path) for path in self.files)

    @property
    def detector(self) -> Detector:
        """Geometry of the first file, mask from a few images if it has none."""
        return _detector(self)

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """Read events; see `sfxreduce.run.run.FrameSource.read`."""
        frames = np.zeros((len(events), *self.frame_shape), self.dtype)
        reasons = np.full(len(events), Reason.FILE_UNREADABLE, np.uint32)
        for owner, group in groupby(range(len(events)), key=lambda at: self.owners[events[at]]):
            # Of a file that cannot be opened any more, every event is flagged.
            with suppress(SfxReduceError), open_hdf5(self.files[owner], self.roots) as file:
                for at in group:
                    reasons[at] = self._read(file, self.datasets[events[at]], frames[at])
        pixels = frames if window is None else take_window(frames, self.detector, window)
        pixels[reasons != 0] = 0
        return Reading(pixels=pixels, reasons=reasons)

    def _read(self, file: Hdf5File, path: str, frame: NDArray[np.generic]) -> Reason:
        """Read one image; returns why it cannot be."""
        try:
            dataset = file.dataset(path)
            if dataset is None or find_holes(file, dataset).any():
                return Reason.DATA_HOLE
            if (dataset.shape, dataset.dtype.newbyteorder("=")) != (self.frame_shape, self.dtype):
                return Reason.UNEXPECTED_FORMAT
            frame[...] = file.read(dataset)
        except SfxReduceError:
            return Reason.READ_ERROR
        return Reason(0)


def _tags(file: Hdf5File, data_path: str) -> list[tuple[str, str]]:
    """Tags of a file and the paths of their images, in natural order.

    Where the tag is only a part of a name, ``/tag-{tag}/data``, an object of that name is an event
    even if its image is missing; where it is all of it, whatever holds an image is one.
    """
    steps = [step for step in data_path.split("/") if step]
    place = next(n for n, step in enumerate(steps) if TAG in step)
    group = file.find("/".join(["", *steps[:place]]) or "/")
    if not isinstance(group, h5py.Group):
        return []
    before, after = (re.escape(part) for part in steps[place].split(TAG))
    names = file.attempt(lambda: list(group), str(group.name))
    found = []
    for name in sorted(names, key=natural_order):
        match = re.fullmatch(f"{before}(.+){after}", name)
        path = "/".join(["", *steps[:place], name, *steps[place + 1 :]])
        if match and (steps[place] != TAG or file.dataset(path) is not None):
            found.append((match[1], path))
    return found


def _energy(file: Hdf5File, path: str) -> float:
    """Photon energy of an image in eV, as it stands beside it; NaN if it does not."""
    dataset = file.dataset(f"{path.rpartition('/')[0]}/{PHOTON_ENERGY}")
    if dataset is None or dataset.size != 1 or dataset.dtype.kind not in "iuf":
        return math.nan
    values = np.asarray(file.read(dataset), np.float64).ravel()
    return float(in_ev(file, dataset, values, usual="eV")[0])


def _positions(owners: Sequence[int]) -> NDArray[np.int64]:
    """Position of each event among those of its file."""
    counted = [range(len(list(group))) for _, group in groupby(owners)]
    return np.array([at for positions in counted for at in positions], np.int64)


def _source(
    paths: Sequence[Path],
    places: Sequence[tuple[int, str, str]],
    *,
    roots: tuple[str, ...],
    mask_good_is: int | None,
) -> SingleFrames:
    """The source, in the form of the first image."""
    number, _, where = places[0]
    with open_hdf5(paths[number], roots) as file:
        first = file.dataset(where)
        if first is None or first.ndim not in (2, 3) or first.dtype.kind not in "iuf":
            raise SchemaError(
                f"{paths[number]}: expected an image of numbers (y, x) at {where}, found "
                f"{'none' if first is None else f'{first.dtype} {first.shape}'}"
            )
        named = f"{file.path}: {where}"
        check_frames(first.shape, first.dtype, where=named)
        check_extent((1, *first.shape), first.dtype, stored=file.stored_bytes, where=named)
        shape, dtype = tuple(map(int, first.shape)), first.dtype.newbyteorder("=")
    return SingleFrames(
        files=tuple(map(str, paths)),
        owners=tuple(number for number, *_ in places),
        datasets=tuple(where for *_, where in places),
        frame_shape=shape,
        dtype=dtype,
        n_bytes=sum(FileStamp.of(path).n_bytes for path in paths),
        roots=roots,
        mask_good_is=mask_good_is,
    )


@lru_cache(maxsize=4)
def _detector(source: SingleFrames) -> Detector:
    """Detector of a run, made once a process."""
    where = source.datasets[0]
    with open_hdf5(source.files[source.owners[0]], source.roots) as file:
        good_is = source.mask_good_is
        detector = read_detector(file, source.frame_shape, frames_path=where, mask_good_is=good_is)
        pixel_um, distance_mm = _number(file, PIXEL_SIZE_UM), _number(file, DISTANCE_MM)
        if math.isnan(detector.pixel_size_m):
            detector = replace(detector, pixel_size_m=pixel_um / 1e6)
        if math.isnan(detector.distance_m):
            detector = replace(detector, distance_m=distance_mm / 1e3)
        if has_mask(file, frames_path=where):
            return detector
        refuse_polarity(file, good_is)
    spread = np.linspace(0, source.n_events - 1, min(source.n_events, MASK_FRAMES)).astype(int)
    reading = source.read(spread.tolist())
    sample = [frame for frame, why in zip(reading.pixels, reading.reasons, strict=True) if not why]
    mask = lasting_sentinels(sample, count_cutoff=detector.saturation_adu) if sample else None
    return detector if mask is None else detector.with_mask(mask.reshape(detector.frame_shape))


def _number(file: Hdf5File, path: str) -> float:
    """First number of a dataset, if it is above zero; NaN if there is none."""
    dataset = file.dataset(path)
    if dataset is None or dataset.size == 0 or dataset.dtype.kind not in "iuf":
        return math.nan
    value = float(np.asarray(file.read(dataset)).ravel()[0])
    return value if value > 0 else math.nan
