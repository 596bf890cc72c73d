"""Foreign HDF5 files, opened with suspicion.

An HDF5 file can name other files, and lets a failing disk look like an absent dataset, in both
cases without a word. So every path is walked link by link, and nothing outside the folder of the
file is followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TypeVar

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import LeadsOutside, RunNotFound, SchemaError, SourceError, UnfinishedRun
from sfxreduce.io.files.being_written import hdf5_writer
from sfxreduce.io.readers.hdf5.guard import check_dataset, check_whole

__all__ = [
    "FILTERS_FROM",
    "HDF5_ERRORS",
    "FileStamp",
    "Hdf5File",
    "VirtualPart",
    "open_hdf5",
]

T = TypeVar("T")


class VirtualPart(Protocol):
    """One mapping of a virtual dataset, as `h5py.Dataset.virtual_sources` gives it."""

    file_name: str
    dset_name: str
    vspace: h5py.h5s.SpaceID
    src_space: h5py.h5s.SpaceID


# Damage and input/output errors surface as any of these; a KeyError is no sign of absence.
HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError)
MOST_LINKS = 16

# Without a lock if that can be had: a reader must not stand in anyone's way.
LOCKING = (False, None, True)

# The cache must hold a chunk of several frames, or each of its events would decompress it again.
CHUNK_CACHE_BYTES = 64 << 20

FILTERS_FROM = hdf5plugin.__name__
"""Package whose import registers the compression filters found in facility files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStamp:
    """Which file a path led to, so that one that was replaced is looked at anew.

    Parameters
    ----------
    path : str
        Real path, without symbolic links.
    """

    path: str
    n_bytes: int
    modified_ns: int
    inode: int

    @classmethod
    def of(cls, path: str | Path) -> FileStamp:
        """Look at a path.

        Raises
        ------
        RunNotFound
            If nothing lies there.
        SourceError
            If it is not a file, or may not be looked at.
        """
        real = Path(os.path.realpath(path))
        try:
            stat = real.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunNotFound(f"{path}: expected a file, found none; check the path") from error
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
        # Opening a pipe or a device would wait for ever.
        if not real.is_file():
            raise SourceError(f"{path}: expected a file, found something else; check the path")
        return cls(
            path=str(real),
            n_bytes=stat.st_size,
            modified_ns=stat.st_mtime_ns,
            inode=stat.st_ino,
        )


@contextmanager
def open_hdf5(path: str | Path, roots: Sequence[str] = ()) -> Iterator[Hdf5File]:
    """Open a file for reading, until the block ends.

    Nothing stays open: HDF5 lets no one else in the process open a file with other settings, and
    its handles do not survive a fork.

    Parameters
    ----------
    roots : sequence of str
        Folders that links may lead into, besides that of the file.

    Raises
    ------
    RunNotFound
        If nothing lies at the path.
    SourceError
        If the file is truncated, damaged or not HDF5.
    """
    _fix_plugins()
    stamp = FileStamp.of(path)
    with ExitStack() as stack:
        handle = stack.enter_context(_open(stamp))
        allowed = (Path(stamp.path).parent, *(Path(os.path.realpath(root)) for root in roots))
        opened = {stamp.path: handle}
        yield Hdf5File(handle=handle, roots=allowed, opened=opened, named={}, stack=stack)


@lru_cache(maxsize=1)
def _fix_plugins() -> None:
    """Let HDF5 load filters from the folder of hdf5plugin only, whatever the environment says."""
    for _ in range(h5py.h5pl.size()):
        h5py.h5pl.remove(0)
    h5py.h5pl.append(os.fsencode(hdf5plugin.PLUGIN_PATH))


def _open(stamp: FileStamp) -> h5py.File:
    """Open the file behind a stamp."""
    # A writer that lets others read meanwhile is asked for that only if it is there.
    swmr = False
    for locking in LOCKING:
        try:
            return h5py.File(
                stamp.path, "r", locking=locking, swmr=swmr, rdcc_nbytes=CHUNK_CACHE_BYTES
            )
        except HDF5_ERRORS as error:
            # Someone else in this process has the file open, and HDF5 wants it opened as they did.
            failed = error
            writer = hdf5_writer(Path(stamp.path))
            if writer.startswith("SWMR"):
                swmr = True
            elif writer:
                raise UnfinishedRun(stamp.path, [writer]) from error
            elif "file locking" not in str(error):
                break
    raise SourceError(
        f"{stamp.path}: expected a whole HDF5 file, found {stamp.n_bytes} bytes that cannot be "
        f"opened as one ({_cause(failed)}); fetch the file again"
    ) from failed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hdf5File:
    """An open HDF5 file and the folders that its links may not leave.

    Parameters
    ----------
    roots : tuple of Path
        Real paths of the folders, its own first.
    opened : dict of str to h5py.File
        This file and those it led to, by their real paths.
    named : dict of str to str
        Paths by which those were named, and why a copy of all files in another folder would not
        lead there; empty where it would.
    stack : ExitStack
        Closes them.
    """

    handle: h5py.File
    roots: tuple[Path, ...]
    opened: dict[str, h5py.File]
    named: dict[str, str]
    stack: ExitStack

    @property
    def path(self) -> str:
        """Real path of the file."""
        return str(self.handle.filename)

    def find(self, path: str) -> h5py.Dataset | h5py.Group | None:
        """Walk to an object, one link after the other.

        Returns
        -------
        Dataset, Group or None
            None if the file has no such path, or if a link on the way leads nowhere.

        Raises
        ------
        SourceError
            If the file is damaged on the way.
        LeadsOutside
            If a link or a virtual source leaves the folder of the file.
        SchemaError
            If the dataset's values lie in an external file, or are packed in a way that is refused.
        """
        file, found = self.walk(self.handle, path, MOST_LINKS)
        if isinstance(found, h5py.Dataset):
            file.check_storage(found, MOST_LINKS)
        return found

    def trusted(self, path: str) -> h5py.Dataset:
        """Walk to a dataset that `find` has found and checked before.

        Raises
        ------
        SourceError
            If it is no longer there.
        """
        _, found = self.walk(self.handle, path, MOST_LINKS)
        if not isinstance(found, h5py.Dataset):
            raise SourceError(f"{self.path}: {path} was there before and is gone; open it again")
        return found

    def dataset(self, *paths: str) -> h5py.Dataset | None:
        """Return the first of these paths that is a dataset, or None; raises what `find` raises."""
        for path in paths:
            found = self.find(path)
            if isinstance(found, h5py.Dataset):
                return found
        return None

    def read(self, dataset: h5py.Dataset) -> NDArray[np.generic]:
        """Read a small dataset whole; text comes as str.

        Raises
        ------
        SourceError
            If it cannot be read.
        SchemaError
            If it is far larger than what is stored; see `check_whole`.
        """
        self.attempt(lambda: check_whole(dataset, self.path), str(dataset.name))
        text = h5py.check_string_dtype(dataset.dtype) is not None
        view = dataset.asstr(errors="replace") if text else dataset
        values = self.attempt(lambda: view[()], str(dataset.name))
        return np.asarray(values, object) if text else np.asarray(values)

    def attempt(self, act: Callable[[], T], name: str) -> T:
        """Do something with the file.

        Raises
        ------
        SourceError
            If HDF5 cannot do it: the file is damaged, or the disk fails.
        """
        try:
            return act()
        except HDF5_ERRORS as error:
            raise SourceError(
                f"{self.path}: {name} cannot be read ({_cause(error)}); the file or its disk is "
                "damaged, fetch it again"
            ) from error

    def walk(
        self, group: h5py.Group, path: str, links_left: int
    ) -> tuple[Hdf5File, h5py.Dataset | h5py.Group | None]:
        """Walk from a group; returns also the file in which the object turned out to lie."""
        file: Hdf5File = self
        here: h5py.Dataset | h5py.Group | None = self.handle if path.startswith("/") else group
        for name in filter(lambda part: part not in ("", "."), path.split("/")):
            if not isinstance(here, h5py.Group):
                return file, None
            file, here = file.step(here, name, links_left)
        return file, here

    def step(
        self, group: h5py.Group, name: str, links_left: int
    ) -> tuple[Hdf5File, h5py.Dataset | h5py.Group | None]:
        """Follow one link of a group."""
        where = f"{group.name.rstrip('/')}/{name}"
        # `name in group` and `group.get(name)` say "absent" when the disk fails; this raises.
        if not self.attempt(lambda: group.id.links.exists(name.encode()), where):
            return self, None
        link = self.attempt(lambda: group.get(name, getlink=True), where)
        if isinstance(link, h5py.HardLink):
            return self, self.attempt(lambda: group[name], where)
        if links_left == 0:
            raise SchemaError(
                f"{self.path}: {where} is the end of more than {MOST_LINKS} links, perhaps a "
                "circle; link to the data themselves"
            )
        if isinstance(link, h5py.SoftLink):
            return self.walk(group, link.path, links_left - 1)
        other = self.sibling(link.filename, where)
        if other is None:
            return self, None
        return other.walk(other.handle, link.path, links_left - 1)

    def sibling(self, name: str, where: str) -> Hdf5File | None:
        """Open a file that this one names; None if it is not there.

        Raises
        ------
        LeadsOutside
            If it lies outside the folder.
        """
        named = os.path.normpath(Path(self.path).parent / name)
        target = Path(os.path.realpath(named))
        if not any(target.is_relative_to(root) for root in self.roots):
            raise LeadsOutside(
                f"{self.path}: {where} leads to {name}, outside the folder {self.roots[0]}; only "
                "files in the folder of the file and below are followed; move it there, or name "
                "its folder with --root"
            )
        self.named[named] = ""
        if Path(name).is_absolute():
            self.named[named] = f"{self.path}: {where} leads to {name}, an absolute path"
        elif named != str(target):
            self.named[named] = f"{self.path}: {where} leads to {name} over a symbolic link"
        if str(target) not in self.opened:
            try:
                stamp = FileStamp.of(target)
            except RunNotFound:
                self.named[named] = f"{self.path}: {where} leads to {name}, which is not there"
                return None
            self.opened[str(target)] = self.stack.enter_context(_open(stamp))
        return replace(self, handle=self.opened[str(target)])

    def stored_bytes(self) -> int:
        """Bytes of this file and of those it led to so far."""
        return sum(os.stat(name).st_size for name in self.opened)  # noqa: PTH116 - names only

    def owner(self, dataset: h5py.Dataset) -> Hdf5File:
        """Return the file that a dataset lies in, which a link may have led to."""
        return replace(self, handle=self.opened[str(dataset.file.filename)])

    def check_storage(self, dataset: h5py.Dataset, links_left: int) -> None:
        """Refuse a dataset whose bytes lie outside the folder of the file.

        Raises
        ------
        SchemaError
            If its storage is a raw external file, or a virtual source leaves the folder, or it is
            packed in a way that is refused; see `check_dataset`.
        """
        if self.attempt(lambda: dataset.external, str(dataset.name)):
            raise SchemaError(
                f"{self.path}: {dataset.name} keeps its values in a raw external file, which could "
                "be any file; repack the dataset into the HDF5 file"
            )
        self.attempt(lambda: check_dataset(dataset, self.path), str(dataset.name))
        if dataset.is_virtual:
            for part in self.attempt(dataset.virtual_sources, str(dataset.name)):
                self.source(dataset, part, links_left)

    def source(
        self, dataset: h5py.Dataset, part: VirtualPart, links_left: int
    ) -> tuple[Hdf5File, h5py.Dataset] | None:
        """Find the dataset behind one part of a virtual dataset of this file.

        Returns
        -------
        tuple of (Hdf5File, Dataset) or None
            None if it is not there.
        """
        if "%b" in part.file_name or links_left == 0:
            raise SchemaError(
                f"{self.path}: {dataset.name} is a virtual dataset over {part.file_name}, a "
                "pattern or a long chain, neither of which is followed; name every source file"
            )
        same = part.file_name == "."
        other = self if same else self.sibling(part.file_name, str(dataset.name))
        if other is None:
            return None
        file, found = other.walk(other.handle, part.dset_name, links_left - 1)
        if not isinstance(found, h5py.Dataset):
            return None
        file.check_storage(found, links_left - 1)
        return file, found


def _cause(error: Exception) -> str:
    """What the system said, out of the paragraph that the HDF5 library makes of it."""
    text = " ".join(str(error.args[-1] if error.args else error).split())
    said = re.search(r"error message = '([^']+)'", text)
    return said.group(1) if said else text or type(error).__name__
