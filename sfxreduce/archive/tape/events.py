"""Events of a run by name, and those of an archived run with no more recalled than they need."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from sfxreduce.archive.tape.holding import Holding, fetch_files
from sfxreduce.errors import SchemaError, UsageError
from sfxreduce.io.open import HDF5_SUFFIXES, IMAGE_SUFFIXES, PACKING_SUFFIXES, open_run
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.run.run import Run

__all__ = ["find_events", "open_archived"]


def find_events(run: Run, names: Iterable[str]) -> dict[str, int]:
    """Positions of named events in a run, as far as it has them.

    Parameters
    ----------
    names : iterable of str
        What stands in the column ``event_id``, or ``@N`` for the event at position N of the source
        run, from 0.

    Raises
    ------
    UsageError
        If several events have one name.
    """
    ids = np.array([str(name) for name in run.columns["event_id"].values], object)
    source = run.columns.get("source_index")
    index = np.arange(run.n_events) if source is None else source.values
    found = {}
    for name in names:
        places = np.flatnonzero(ids == name)
        if not places.size and re.fullmatch("@[0-9]{1,18}", name):
            places = np.flatnonzero(index == int(name[1:]))
        if places.size > 1:
            raise UsageError(
                f"{run.path}: {places.size} events have the event_id '{name}'; give the position "
                f"in the run, such as @{index[places[0]]}"
            )
        if places.size:
            found[name] = int(places[0])
    return found


def open_archived(
    holding: Holding, names: Iterable[str], *, into: Path, tars: Path
) -> tuple[Run, int]:
    """Recall what is needed to read some events of a run, and open it.

    Of a run store all but the shards is recalled, and those shards that hold the events. Of other
    formats everything is: which file holds which event is known only once they are there.

    Parameters
    ----------
    names : iterable of str
        See `find_events`.
    into : Path
        Empty folder that takes the run's place.
    tars : Path
        Folder for the packages that they are read out of.

    Returns
    -------
    tuple of Run and int
        The run, of which other events cannot be read, and the bytes that were recalled.

    Raises
    ------
    ArchiveError
        If a file does not come back as it was archived.
    SchemaError
        If what was archived is no run.
    """
    paths = [file.path for file in holding.files]
    roots = [PurePosixPath(path).parent for path in paths if _name(path) == "zarr.json"]
    if not roots:
        n_bytes = fetch_files(holding, paths, into=into, tars=tars)
        files = [into / holding.opened] if holding.opened else _openable(into, paths)
        return open_run(files, data_path=holding.data_path), n_bytes
    root = min(roots, key=lambda folder: len(folder.parts))
    chunks = str(root / "frames" / "c") + "/"
    others = [path for path in paths if not path.startswith(chunks)]
    n_bytes = fetch_files(holding, others, into=into, tars=tars)
    run = open_run(into / root, data_path=holding.data_path)
    layout = run.source.layout if isinstance(run.source, ZarrFrames) else None
    shards = {path for path in paths if path.startswith(chunks)}
    if layout is not None:
        events = find_events(run, names).values()
        keys = {layout.shard_key(layout.locate(event)[0]) for event in events}
        # A shard that was never written is a hole in the source, and no loss of the archive.
        shards &= {str(root / "frames" / key) for key in keys}
    return run, n_bytes + fetch_files(holding, sorted(shards), into=into, tars=tars)


def _openable(folder: Path, paths: Iterable[str]) -> list[Path]:
    """Files of a run that hold frames."""
    for known in (HDF5_SUFFIXES, IMAGE_SUFFIXES):
        endings = (*known, *(s + p for s in known for p in PACKING_SUFFIXES))
        chosen = [folder / path for path in sorted(paths) if path.lower().endswith(endings)]
        if chosen:
            return chosen
    raise SchemaError(
        f"archived run: expected a Zarr store, HDF5 or image files, found {sorted(paths)[:5]}"
    )


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]
