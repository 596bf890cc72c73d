"""Run stores in an object store, read as those on a disk are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sfxreduce.errors import SchemaError, SfxReduceError, SourceError
from sfxreduce.io.objects.bucket import list_objects, version_of_all
from sfxreduce.io.objects.spool import open_spool, spool_of
from sfxreduce.io.readers.zarr.run import ZarrFrames, open_zarr
from sfxreduce.run.run import Run

__all__ = ["ObjectFrames", "open_objects"]


@dataclass(frozen=True, slots=True)
class ObjectFrames(ZarrFrames):
    """Frames of one version of a run store below an address. See `ZarrFrames`.

    Each process finds credentials in its own environment; none travel with this.

    Parameters
    ----------
    version : str
        See `sfxreduce.io.objects.bucket.version_of_all`.
    """

    version: str = ""

    @property
    def folder(self) -> Path:
        """Where the run lies on this machine, as far as it has been read."""
        return spool_of(self.path, self.version).folder

    @property
    def n_bytes(self) -> int:
        """Bytes of all objects of the store."""
        return spool_of(self.path, self.version).n_bytes

    @property
    def inputs(self) -> tuple[Path, ...]:
        """None: the frames lie in no file that anybody could touch by its path."""
        return ()

    def has_changed(self) -> bool:
        """See `sfxreduce.run.run.MayChange`; one request for each 1,000 objects."""
        return version_of_all(list_objects(self.path)) != self.version

    def changed_at(self) -> float:
        """See `sfxreduce.run.run.MayChange`; as many requests."""
        return max(one.changed_at for one in list_objects(self.path).values())


def open_objects(address: str, *, data_path: str = "") -> Run:
    """Open a run store by its address.

    Parameters
    ----------
    address : str
        As ``s3://bucket/run.zarr``.
    data_path : str
        See `open_zarr`.

    Raises
    ------
    RunNotFound
        If there is nothing at that address.
    ObjectStoreError
        If the store cannot be reached, or denies it.
    SchemaError
        If it is no run store.
    UsageError
        If obstore is not installed.
    """
    address = address.rstrip("/")
    spool = open_spool(address)
    try:
        run = open_zarr(spool.folder, data_path=data_path, lazily=True)
    except (SchemaError, SourceError) as error:
        raise _named(error, spool.folder, address) from error
    return replace(run, source=ObjectFrames(address, data_path, spool.version))


def _named(error: SfxReduceError, folder: Path, address: str) -> SfxReduceError:
    """The same error of an address instead of a folder that nobody has heard of."""
    return type(error)(str(error).replace(str(folder), address))
