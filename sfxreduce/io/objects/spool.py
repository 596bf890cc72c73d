"""The run of an object store as a folder here, in which files get their bytes when they are read.

Every object has its file from the start, with its size and a mark instead of its bytes. Whoever
opens such a file through `sfxreduce.io.files.safe_read.open_regular` gets it with its bytes, which
are fetched then, once for all processes of a machine. So all that reads a run store, and all that
distrusts it, is one code for both.

The folder lies where temporary files do, belongs to its user alone, and is removed by the last
process that uses it. When the disk gets full, what was fetched first goes first, and is fetched
again if it is read again.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sfxreduce.errors import ObjectStoreError, RunNotFound, SchemaError
from sfxreduce.io.files.durable import why_not_ours
from sfxreduce.io.files.safe_read import (
    MOST_JSON_BYTES,
    TO_BE_FETCHED,
    fetch_with,
    parse_json,
    read_small,
)
from sfxreduce.io.objects.bucket import (
    StoredObject,
    endpoint,
    fetch,
    list_objects,
    name_of,
    version_of_all,
)

__all__ = ["Spool", "open_spool", "spool_of"]

INDEX, METADATA = "objects.json", "zarr.json"

MOST_ATTEMPTS = 5
"""Times that a folder is made that another process removes before it is used."""

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

FEWEST_FREE_BYTES = 1 << 30
FEWEST_FREE_SHARE = 0.05
"""Of the disk: with less free, what was fetched before has to go."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spool:
    """One version of a run, as a folder.

    Parameters
    ----------
    address : str
        Where its objects are.
    version : str
        Of all of them; see `sfxreduce.io.objects.bucket.version_of_all`.
    folder : Path
        The run store that is read.
    objects : mapping
        By what follows the address in their names: those are also the names of the files.
    """

    address: str
    version: str
    folder: Path
    objects: Mapping[str, StoredObject]

    @property
    def n_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(one.size for one in self.objects.values())

    def bring(self, name: str) -> None:
        """Put a file with its bytes in the place of the one that has none.

        Raises
        ------
        ObjectStoreError
            If they cannot be fetched, or there is no room for them.
        """
        wanted, path = self.objects[name], self.folder / name
        self._make_room(wanted.size)
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder.parent, delete=False) as file:
                try:
                    fetch(self.address, name, wanted, file)
                    file.flush()
                    os.fchmod(file.fileno(), stat.S_IRUSR)
                    Path(file.name).replace(path)
                except BaseException:
                    Path(file.name).unlink()
                    raise
        except OSError as error:
            raise ObjectStoreError(
                f"{self.address}/{name}: cannot be kept in {self.folder.parent} "
                f"({error.strerror}); set TMPDIR to a folder with room for a few shards a worker"
            ) from error

    def _make_room(self, n_bytes: int) -> None:
        """Let go of what was fetched first, until there is room."""
        disk = shutil.disk_usage(self.folder)
        lacking = max(FEWEST_FREE_BYTES, int(disk.total * FEWEST_FREE_SHARE)) + n_bytes - disk.free
        if lacking <= 0:
            return
        there = []
        for name in self.objects:
            # What is small is needed all the time.
            facts = (self.folder / name).stat() if name.startswith("frames/c/") else None
            if facts is not None and not facts.st_mode & TO_BE_FETCHED:
                there.append((facts.st_mtime_ns, name))
        for _, name in sorted(there):
            if lacking <= 0:
                return
            hidden = _hidden(self)
            _mark(hidden, self.objects[name].size)
            hidden.replace(self.folder / name)
            lacking -= self.objects[name].size


def open_spool(address: str) -> Spool:
    """List a run, and make its folder, or find it.

    Raises
    ------
    SfxReduceError
        See `sfxreduce.io.objects.bucket.list_objects`.
    """
    objects = list_objects(address)
    version = version_of_all(objects)
    return _spool(address, version) or _spool_of(address, version, objects)


def spool_of(address: str, version: str) -> Spool:
    """Folder of one version of a run, in any process of any machine.

    Raises
    ------
    ObjectStoreError
        If the run is another one by now.
    """
    found = _spool(address, version)
    if found is None:
        try:
            objects = list_objects(address)
        except RunNotFound:
            objects = {}
        if version_of_all(objects) != version:
            raise ObjectStoreError(
                f"{address}: was changed or removed while it was read; nothing was published, "
                "start again once the run is complete"
            )
        found = _spool_of(address, version, objects)
    return found


_spools: dict[Path, Spool] = {}
"""What this process reads, by the folder of each."""


def _spool(address: str, version: str) -> Spool | None:
    """Folder that this process has already, or that another one has made here."""
    place = _place(address, version)
    return _spools.get(place) or (_opened(address, version) if place.exists() else None)


def _spool_of(address: str, version: str, objects: Mapping[str, StoredObject]) -> Spool:
    """Make the folder of a run, which another process may make, or remove, at the same time."""
    for _ in range(MOST_ATTEMPTS):
        found = _made(address, version, objects)
        if found is not None:
            _bring_metadata(found)
            return found
    raise ObjectStoreError(
        f"{address}: what is fetched of it is removed at once; set TMPDIR to a folder of yours"
    )


def _made(address: str, version: str, objects: Mapping[str, StoredObject]) -> Spool | None:
    """Make the folder of a run under another name, and let it appear."""
    place = _place(address, version)
    try:
        made = Path(tempfile.mkdtemp(prefix=".", dir=place.parent))
        lock = os.open(made, FOLDER)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            _fill(made / _last(address), objects)
            listed = {name: [one.size, one.etag] for name, one in objects.items()}
            (made / INDEX).write_text(json.dumps(listed))
            # Another process may have made it meanwhile: then it is not empty.
            with suppress(OSError):
                made.rename(place)
            return _opened(address, version)
        finally:
            os.close(lock)
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise ObjectStoreError(
            f"{address}: its files cannot be made in {place.parent} ({error.strerror}); set TMPDIR "
            "to a folder with room"
        ) from error


def _opened(address: str, version: str) -> Spool | None:
    """Use a folder that is there: until this process ends nobody removes it."""
    place = _place(address, version)
    try:
        lock = os.open(place, FOLDER)
    except OSError:
        return None
    # Programs that tidy up leave locked folders alone, too.
    fcntl.flock(lock, fcntl.LOCK_SH)
    if not (place / INDEX).exists():  # removed before it was locked
        os.close(lock)
        return None
    listed = parse_json(read_small(place / INDEX, most_bytes=MOST_JSON_BYTES))
    spool = Spool(
        address=address,
        version=version,
        folder=place / _last(address),
        objects={name: StoredObject(*facts) for name, facts in listed.items()},
    )
    _spools[place] = spool
    fetch_with(_bring_file)
    atexit.register(_remove, place, lock)
    _sweep(place.parent)
    return spool


def _bring_file(path: Path | str, marked: int) -> bool:
    """Fetch a file of a run that this process has open; whether it is one."""
    for spool in list(_spools.values()):
        name = os.path.relpath(path, spool.folder)
        if name in spool.objects:
            # Another process may be at it; what it puts there has no mark.
            fcntl.flock(marked, fcntl.LOCK_EX)
            now = (spool.folder / name).stat()
            if os.path.samestat(now, os.fstat(marked)):
                spool.bring(name)
            return True
    return False


def _bring_metadata(spool: Spool) -> None:
    """Put all metadata in its place at once, as far as the root has a copy of it.

    It is one request instead of one for each column. `sfxreduce.io.store.guard` judges it when it
    is read, as it would judge the originals.
    """
    if METADATA not in spool.objects:
        return
    try:
        root = parse_json(read_small(spool.folder / METADATA, most_bytes=MOST_JSON_BYTES))
        copies = dict((root.get("consolidated_metadata") or {}).get("metadata", {}))
    except (AttributeError, TypeError, ValueError):
        return  # whoever opens the store says what is wrong with it
    for node, document in copies.items():
        name = f"{node}/{METADATA}"
        if name in spool.objects:
            hidden = _hidden(spool)
            hidden.write_text(json.dumps(document))
            hidden.replace(spool.folder / name)


def _fill(folder: Path, objects: Mapping[str, StoredObject]) -> None:
    """Make the files of a run, without their bytes."""
    for name, one in objects.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _mark(path, one.size)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise SchemaError(
                f"{name!a:.80}: expected a file or a folder, found an object that is both"
            ) from error


def _mark(path: Path, size: int) -> None:
    """Make a file of a size that takes no room, and is to be fetched."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, stat.S_IRUSR)
    try:
        os.ftruncate(file, size)
        os.fchmod(file, stat.S_IRUSR | TO_BE_FETCHED)
    finally:
        os.close(file)


def _hidden(spool: Spool) -> Path:
    """Name for a file that is made before it takes the place of another one."""
    return spool.folder.parent / f".{secrets.token_hex(8)}"


def _last(address: str) -> str:
    """Name of the run, as a folder has it."""
    return name_of(address)[1].rpartition("/")[2]


def _place(address: str, version: str) -> Path:
    """Where a version of a run lies on this machine, for this user and this store."""
    held = hashlib.sha256(f"{endpoint()}\0{address}\0{version}".encode()).hexdigest()
    return _base(tempfile.gettempdir()) / held[:32]


@lru_cache(maxsize=4)
def _base(temporary: str) -> Path:
    """Folder of all runs of this user, open to nobody else.

    Raises
    ------
    ObjectStoreError
        If it is another's, or cannot be made.
    """
    base = Path(os.path.realpath(temporary)) / f"sfxreduce-objects-{os.geteuid()}"
    try:
        base.mkdir(mode=0o700, exist_ok=True)
        why = why_not_ours(base)
    except OSError as error:
        why = str(error.strerror)
    if why:
        raise ObjectStoreError(
            f"{base}: {why}; set TMPDIR to a folder of yours for what is fetched from object stores"
        )
    return base


def _remove(place: Path, lock: int) -> None:
    """Remove a folder unless another process uses it; the lock is given back."""
    with suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # First that by which others know that it is whole.
        (place / INDEX).unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)
    with suppress(OSError):
        os.close(lock)


def _sweep(base: Path) -> None:
    """Remove what processes left behind that were killed."""
    for place in base.iterdir():
        with suppress(OSError):
            _remove(place, os.open(place, FOLDER))
