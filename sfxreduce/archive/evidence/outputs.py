"""Which reduced stores were made from a run, by what they say of their source."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from sfxreduce.archive.evidence.folder import SUFFIX
from sfxreduce.errors import SfxReduceError
from sfxreduce.io.files.durable import disk_bytes
from sfxreduce.io.readers.zarr.run import read_manifest
from sfxreduce.io.store.manifest import Manifest
from sfxreduce.io.store.names import MANIFEST_GROUP

__all__ = ["made_from", "outputs_beside", "sources_of", "stores_below"]


def outputs_beside(run: Path) -> tuple[Path, ...]:
    """Reduced stores in the folder of a run that were made from it, the youngest last.

    Parameters
    ----------
    run : Path
        Absolute.
    """
    return made_from(run, sources_of(stores_below(run.parent, 1)))


def stores_below(root: Path, depth: int) -> Iterator[Path]:
    """Zarr stores; evidence, which may hold stores of its own, is not entered.

    Parameters
    ----------
    depth : int
        Levels of folders that are looked into. One that cannot be listed is passed over.
    """
    try:
        folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.is_symlink())
    except OSError:
        return
    for path in folders:
        if (path / "zarr.json").exists():
            yield path
        elif depth > 1 and not path.name.endswith(SUFFIX):
            yield from stores_below(path, depth - 1)


def sources_of(stores: Iterable[Path]) -> dict[Path, str]:
    """Real path of the run that each reduced store was made from; others are left out."""
    found = {}
    for store in stores:
        if (store / MANIFEST_GROUP).exists():
            with suppress(SfxReduceError):
                found[store] = _place_of_source(store, read_manifest(store))
    return found


def made_from(run: Path, sources: Mapping[Path, str]) -> tuple[Path, ...]:
    """Reduced stores of a run, the youngest last.

    Parameters
    ----------
    sources : mapping of Path to str
        As `sources_of` gives it.
    """
    place = os.path.realpath(run)
    found = [store for store, source in sources.items() if source == place]
    return tuple(sorted(found, key=lambda store: (_age(store), str(store))))


def _place_of_source(store: Path, manifest: Manifest) -> str:
    """Where the source of a store is: as it says, or beside it, if both were moved together."""
    named = Path(manifest.source)
    beside = store.parent / named.name
    if beside != named and beside.exists():
        with suppress(OSError):
            if disk_bytes(beside) == manifest.source_bytes:
                return os.path.realpath(beside)
    return os.path.realpath(named)


def _age(store: Path) -> int:
    return (store / MANIFEST_GROUP / "zarr.json").stat().st_mtime_ns
