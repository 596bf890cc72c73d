"""Groups of an HDF5 file by what they are, NeXus class or place in a CXI entry, not by their name.

NeXus files name their groups as they like; `NX_class` says what one is [1]_. What a run has to know
of its detector is looked for under fixed names, which are given another meaning here.

References
----------
.. [1] M. Könnecke et al., J. Appl. Cryst. 48 (2015) 301. doi:10.1107/S1600576714027575
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice

import h5py

from sfxreduce.errors import SchemaError
from sfxreduce.io.readers.hdf5.file import MOST_LINKS, Hdf5File

__all__ = ["BEAM", "CXI_FRAMES", "NEXUS_FRAMES", "NXMX", "are_same", "frames_by_class", "seen_from"]

NXMX = "/entry/instrument/detector"
BEAM = "/entry/instrument/beam"

CXI_FRAMES = ("/entry_1/data_1/data", "/entry_1/instrument_1/detector_1/data")
NEXUS_FRAMES = ("/entry/data/data",)

MOST_CHILDREN = 1000
"""Members of a group whose class is looked at. Chosen."""

LEAST_SIDE = 64
"""Pixels on a side of the smallest frames that are found by class. Chosen: cameras have more."""

PLACES = ("distance", "detector_distance", "x_pixel_size", "pixel_mask", "depends_on")
"""What a detector of frames says, and a diode does not."""

ENERGIES = ("incident_energy", "incident_wavelength")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RenamedFile(Hdf5File):
    """An open file in which groups are found under other names than their own.

    Parameters
    ----------
    renamed : mapping of str to str or None
        Beginnings of paths, and what they stand for; the longest one counts. What stands for None
        is of other frames, and not there.
    """

    renamed: Mapping[str, str | None]

    def find(self, path: str) -> h5py.Dataset | h5py.Group | None:
        """Walk to an object. See `Hdf5File.find`."""
        for old in sorted(self.renamed, key=len, reverse=True):
            if path == old or path.startswith(f"{old}/"):
                new = self.renamed[old]
                return None if new is None else Hdf5File.find(self, new + path[len(old) :])
        return Hdf5File.find(self, path)


def seen_from(file: Hdf5File, frames_path: str) -> Hdf5File:
    """The file as seen from its frames: their entry and detector, and its beam.

    Parameters
    ----------
    frames_path : str
        Of the frames. Those of a CXI ``data_2`` are of ``detector_2``; in a NeXus file the detector
        is that with the frames, or the only one.

    Raises
    ------
    SchemaError
        If there are several detectors, and nothing says of which one the frames are.
    """
    renamed: dict[str, str | None]
    cxi = re.fullmatch(r"/?entry_(\d+)/(?:data_|instrument_\d+/detector_)(\d+)/data", frames_path)
    if cxi is not None:
        entry, number = f"/entry_{cxi[1]}", cxi[2]
        renamed = {
            "/entry_1": entry,
            "/entry_1/data_1": f"{entry}/data_{number}",
            "/entry_1/instrument_1/detector_1": f"{entry}/instrument_1/detector_{number}",
        }
        if _has_others(file, frames_path, NEXUS_FRAMES):
            renamed["/entry"] = None
    else:
        entry = _entry_of(file, frames_path)
        renamed = {"/entry": entry}
        detector, beam = _detector_in(file, entry, frames_path), _beam_in(file, entry)
        renamed |= {NXMX: detector} if detector else {}
        renamed |= {BEAM: beam} if beam else {}
        if _has_others(file, frames_path, CXI_FRAMES):
            renamed["/entry_1"] = None
    if all(old == new for old, new in renamed.items()):
        return file
    return RenamedFile(
        handle=file.handle,
        roots=file.roots,
        opened=file.opened,
        named=file.named,
        stack=file.stack,
        renamed=renamed,
    )


def _has_others(file: Hdf5File, frames_path: str, paths: Iterable[str]) -> bool:
    """Whether there are other frames than these at one of these paths."""
    frames, others = file.dataset(frames_path), map(file.dataset, paths)
    return any(
        other is not None and (frames is None or not are_same(frames, other)) for other in others
    )


def of_class(file: Hdf5File, parent: str, wanted: str) -> Iterator[str]:
    """Paths of the groups in a group that have a NeXus class; of the first `MOST_CHILDREN`.

    Groups behind links into other files are left out.
    """
    _, group = file.walk(file.handle, parent, MOST_LINKS)
    if not isinstance(group, h5py.Group):
        return
    for name in file.attempt(lambda: list(islice(group, MOST_CHILDREN)), parent):
        link = file.attempt(partial(group.get, name, getlink=True), parent)
        if isinstance(link, h5py.ExternalLink):
            continue
        path = f"{parent.rstrip('/')}/{name}"
        _, item = file.walk(file.handle, path, MOST_LINKS)
        if isinstance(item, h5py.Group) and _class_of(file, item) == wanted:
            yield path


def frames_by_class(file: Hdf5File) -> Iterator[tuple[str, h5py.Dataset]]:
    """Frames of NXdata and NXdetector groups, and their paths; the same ones come once.

    Arrays with a side below `LEAST_SIDE` are no frames, but profiles or spectra.
    """
    found: list[h5py.Dataset] = []
    for entry in of_class(file, "/", "NXentry"):
        for group in of_class(file, entry, "NXdata"):
            _, item = file.walk(file.handle, group, MOST_LINKS)
            signal = file.attempt(partial(item.attrs.get, "signal", "data"), group) if item else ""
            name = signal.decode(errors="replace") if isinstance(signal, bytes) else str(signal)
            yield from _new_frames(file, f"{group}/{name}", found)
        for instrument in _instruments(file, entry):
            for detector in of_class(file, instrument, "NXdetector"):
                yield from _new_frames(file, f"{detector}/data", found)


def _new_frames(
    file: Hdf5File, path: str, found: list[h5py.Dataset]
) -> Iterator[tuple[str, h5py.Dataset]]:
    frames = file.dataset(path)
    if frames is None or frames.ndim not in (3, 4) or min(frames.shape[-2:]) < LEAST_SIDE:
        return
    if not any(are_same(frames, one) for one in found):
        found.append(frames)
        yield path, frames


def are_same(one: h5py.Dataset, other: h5py.Dataset) -> bool:
    """Whether two datasets hold the same frames: one object, or a view of the other's sources."""
    if one == other:
        return True
    sources = [
        {(part.file_name, part.dset_name) for part in dataset.virtual_sources()}
        if dataset.is_virtual
        else {(".", str(dataset.name))}
        for dataset in (one, other)
    ]
    return one.file == other.file and sources[0] == sources[1]


def _class_of(file: Hdf5File, group: h5py.Group) -> str:
    value = file.attempt(lambda: group.attrs.get("NX_class", ""), str(group.name))
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _entry_of(file: Hdf5File, frames_path: str) -> str:
    """Entry that frames lie in, or else the only one there is."""
    entries = list(of_class(file, "/", "NXentry"))
    own = "/" + frames_path.strip("/").split("/", 1)[0]
    if own in entries or len(entries) != 1:
        return own if own in entries else "/entry"
    return entries[0]


def _instruments(file: Hdf5File, entry: str) -> list[str]:
    named = f"{entry}/instrument"
    found = list(of_class(file, entry, "NXinstrument"))
    return found if named in found or file.find(named) is None else [named, *found]


def _detector_in(file: Hdf5File, entry: str, frames_path: str) -> str:
    """Path of the detector of frames; empty if there is none."""
    found = [
        path
        for instrument in _instruments(file, entry)
        for path in of_class(file, instrument, "NXdetector")
    ]
    frames = file.dataset(frames_path)
    for path in found:
        own = file.walk(file.handle, f"{path}/data", MOST_LINKS)[1]
        named = frames_path.split("/")[-2:-1] == path.split("/")[-1:]
        if frames_path.startswith(f"{path}/") or named or (own is not None and own == frames):
            return path
    placed = [p for p in found if any(file.find(f"{p}/{name}") is not None for name in PLACES)]
    usual = f"{entry}/instrument/detector"
    if usual in found or file.find(usual) is not None:
        return usual
    if len(placed) > 1:
        raise SchemaError(
            f"{file.path}: expected one detector, found {' and '.join(placed)}; name the frames "
            "of one with --data-path, as they stand in its group"
        )
    return placed[0] if placed else found[0] if len(found) == 1 else ""


def _beam_in(file: Hdf5File, entry: str) -> str:
    """Path of the beam, in the instrument or else in the sample; empty if there is none."""
    groups = [*_instruments(file, entry), *of_class(file, entry, "NXsample")]
    found = [path for group in groups for path in of_class(file, group, "NXbeam")]
    named = f"{entry}/instrument/beam"
    for path in (named, *found):
        if any(file.find(f"{path}/{name}") is not None for name in ENERGIES):
            return path
    return ""
