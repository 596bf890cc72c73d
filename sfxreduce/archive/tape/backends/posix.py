"""A folder on a second file system as an archive."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from sfxreduce.archive.tape.backends.protocol import Capabilities, check_pool
from sfxreduce.archive.tape.paths import check_path
from sfxreduce.archive.tape.receipts import Copy, Receipt
from sfxreduce.errors import ArchiveError, OutputExists
from sfxreduce.io.files.durable import (
    copy_file,
    drop_cache,
    output_errors,
    sha256_file,
    sweep_partial,
    sync_folder,
)

__all__ = ["PosixBackend"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PosixBackend:
    """An archive that is a folder; each pool is a folder in it.

    A receipt's ``ONTAPE`` means: on that file system, on its disk, and read back from it. Whether
    that is tape, another disk or the same one, only those who mounted it know.

    Parameters
    ----------
    root : Path
        Has to be there.
    name : str
        For receipts.
    separate_devices : bool
        Refuse two pools on one device; a copy's medium is then the device, else the archive's
        folder, with which all pools are lost that are no mount points of their own.
    mounted : bool
        Refuse a folder that is no mount point: with the disk not mounted, copies would go beside
        the originals.

    Raises
    ------
    ArchiveError
        If the folder is not there, or no mount point where it has to be.
    """

    root: Path
    name: str
    separate_devices: bool = False
    mounted: bool = False

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise ArchiveError(
                f"{self.name}: there is no folder {self.root}; mount it, or make it first"
            )
        if self.mounted and not self.root.is_mount():
            raise ArchiveError(f"{self.name}: expected {self.root} to be a mount point; mount it")

    def capabilities(self) -> Capabilities:
        """Say what a folder can do."""
        return Capabilities(tool=_tool(), rereads=True, recalls_from_medium=True)

    def put(self, local: Path, path: str, *, pool: str) -> Receipt:
        """Copy a file into a pool; see `Backend.put`.

        The copy appears under its name whole, on the disk, and read back. One that is there is
        never replaced.

        Raises
        ------
        OutputExists
            If another file lies there.
        OutputError
            If it cannot be written.
        SourceError
            If the local file cannot be read.
        """
        final = self._place(path, pool)
        self._check_devices(pool)
        with output_errors(final):
            if os.path.lexists(final):
                if sha256_file(final) != sha256_file(local):
                    raise OutputExists(
                        f"{final}: another file lies there, and an archive's files are not "
                        "replaced; find out which one is right"
                    )
            else:
                self._make_folders(final.parent)
                sweep_partial(final.parent, below=False)
                copy_file(local, final)
            sync_folder(final.parent)
        return self.query(path, pool=pool)

    def query(self, path: str, *, pool: str) -> Receipt:
        """Read a file as it lies on the disk, and hash it; see `Backend.query`."""
        file = self._existing(path, pool)
        try:
            drop_cache(file)
            value, size = sha256_file(file), file.stat().st_size
        except OSError as error:
            raise ArchiveError(f"{file}: cannot be read ({error.strerror or error})") from error
        return Receipt(
            backend=self.name,
            path=path,
            size=size,
            algorithm="sha256",
            value=value,
            value_source="reread",
            state="ONTAPE",
            copies=(Copy(pool=pool, medium=self._medium(pool), archive_id=str(file)),),
            queried_at_ns=time.time_ns(),
            tool=_tool(),
            raw_sha256=value,
        )

    def recall(self, path: str, into: Path, *, pool: str) -> None:
        """Copy a file back; see `Backend.recall`."""
        file = self._existing(path, pool)
        drop_cache(file)
        with output_errors(into):
            if os.path.lexists(into):
                raise OutputExists(f"{into}: already exists; recall into an empty folder")
            copy_file(file, into)

    def _existing(self, path: str, pool: str) -> Path:
        file = self._place(path, pool)
        if not file.is_file() or file.is_symlink():
            raise ArchiveError(f"{self.name}: there is no file '{path}' in the pool '{pool}'")
        return file

    def _place(self, path: str, pool: str) -> Path:
        """Where a file lies; no link in the pool may lead out of it."""
        folder = self.root / check_pool(pool)
        place = folder / check_path(path, where=self.name)
        if not place.parent.resolve().is_relative_to(self.root.resolve() / pool):
            raise ArchiveError(f"{place}: a link leads out of the pool; it is not followed")
        return place

    def _make_folders(self, folder: Path) -> None:
        """Make folders below the root, each brought to the disk with its name."""
        missing = [folder, *folder.parents]
        for parent in reversed(missing[: missing.index(self.root)]):
            if not parent.is_dir():
                parent.mkdir(exist_ok=True)
                sync_folder(parent.parent)

    def _medium(self, pool: str) -> str:
        facts, device = self.root.stat(), (self.root / pool).stat().st_dev
        if self.separate_devices or device != facts.st_dev:
            return f"device {device}"
        # By number: one folder may have several names, and be mounted twice.
        return f"folder {facts.st_ino} of device {device}"

    def _check_devices(self, pool: str) -> None:
        """Refuse a second pool on a device, where that was asked for."""
        if not self.separate_devices:
            return
        ours = self.root / pool
        device = (ours if ours.is_dir() else self.root).stat().st_dev
        for other in sorted(self.root.iterdir()):
            if other.name != pool and other.is_dir() and other.stat().st_dev == device:
                raise ArchiveError(
                    f"{self.name}: the pools '{pool}' and '{other.name}' lie on one device; mount "
                    "each on a device of its own"
                )


def _tool() -> str:
    return f"sfxreduce {version('sfxreduce')} posix"
