"""Which file and row holds an event's picture of each module, in a run of the European XFEL.

Every module of a detector writes files of its own, in trains of pulses. The package EXtra-data [1]_
knows how those files say which train their rows are of; it is needed for that, and installed with
``sfxreduce[euxfel]``.

References
----------
.. [1] https://extra-data.readthedocs.io, BSD-3-Clause
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import RunNotFound, SchemaError, SourceError, UsageError
from sfxreduce.io.readers.hdf5.file import HDF5_ERRORS
from sfxreduce.run.columns import MISSING_TIME

__all__ = ["EventRows", "index_run", "run_files"]

MODULES = {"AGIPD1M": 16, "AGIPD500K": 8, "LPD1M": 16, "DSSC1M": 16}
"""Modules of each kind of detector, which its name tells."""

MODULE = re.compile(r"(?P<detector>[^/]+)/(?:DET|CORR)/(?P<number>\d+)CH\d+:\w+")
"""A data source: a module of a detector, raw or corrected."""

IMAGES = "INSTRUMENT/{source}/image/{key}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModuleFile:
    """Rows of one module in one file.

    Parameters
    ----------
    source : str
        Name of the module's data source in the file.
    keys : ndarray of uint64
        Train and pulse of each row, shape (row, 2).
    rows : ndarray of int64
        Where it stands in the datasets of the file.
    cells, times : ndarray of int64
        Memory cell of each row, -1 if unknown; time of its train in nanoseconds.
    """

    path: str
    source: str
    module: int
    keys: NDArray[np.uint64]
    rows: NDArray[np.int64]
    cells: NDArray[np.int64]
    times: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EventRows:
    """Where the modules of each event lie.

    Parameters
    ----------
    files : tuple of (str, str)
        Path of each file, and the data source in it.
    train, pulse : ndarray of uint64
        Of each event, ascending, shape (event,).
    cell, time_ns : ndarray of int64
        Memory cell, -1 if unknown, and time of the train, shape (event,).
    file, row : ndarray of int32, int64
        Shape (event, module): number of the file, -1 if the module has no picture of the event, and
        the row in its datasets.
    """

    files: tuple[tuple[str, str], ...]
    train: NDArray[np.uint64]
    pulse: NDArray[np.uint64]
    cell: NDArray[np.int64]
    time_ns: NDArray[np.int64]
    file: NDArray[np.int32]
    row: NDArray[np.int64]


def run_files(folder: Path) -> tuple[Path, ...]:
    """Files of a run; those that only link to others are left out.

    Raises
    ------
    RunNotFound
        If there are none.
    """
    files = sorted(path for path in folder.glob("*.h5") if "OVERVIEW" not in path.name.upper())
    if not files:
        raise RunNotFound(
            f"{folder}: expected a folder with the HDF5 files of a run of the European XFEL, found "
            "none; check the path given to --in"
        )
    return tuple(files)


def index_run(files: Sequence[Path], detector: str) -> EventRows:
    """Put the events of a detector in order of their trains and pulses.

    Parameters
    ----------
    detector : str
        As in the names of its data sources, ``SPB_DET_AGIPD1M-1``.

    Raises
    ------
    UsageError
        If EXtra-data is not installed, or there is no such detector, or its data are raw.
    SourceError
        If a file is damaged.
    """
    n_modules = _n_modules(detector)
    found: list[ModuleFile] = []
    others: set[str] = set()
    raw = 0
    for path in files:
        for source, module, part in _modules_in(path):
            if source != detector:
                others.add(source)
            elif part is None:
                raw += 1
            else:
                found.append(part)
                if module >= n_modules:
                    raise SchemaError(f"{path}: expected no module {module} of {detector}")
    where = files[0].parent
    if not found and raw:
        raise UsageError(
            f"{where}: {detector} has raw data there, which are not calibrated; give the folder of "
            "the corrected ones, proc/rNNNN in place of raw/rNNNN"
        )
    if not found:
        raise UsageError(
            f"{where}: expected a detector '{detector}', found "
            f"{', '.join(sorted(others)) or 'none'}; name one with --source"
        )
    return _in_order(found, n_modules)


def _n_modules(detector: str) -> int:
    for kind, count in MODULES.items():
        if kind in detector:
            return count
    raise UsageError(
        f"--source: expected a detector of {', '.join(MODULES)}, found '{detector}'; of others "
        "give the virtual CXI file that 'extra-data-make-virtual-cxi' writes"
    )


def _modules_in(path: Path) -> Iterator[tuple[str, int, ModuleFile | None]]:
    """Modules of detectors in a file: detector, number, and rows, or None of those that are raw."""
    try:
        from extra_data.file_access import FileAccess, FileStructureError
    except ImportError as error:
        raise UsageError(
            "--source: runs of the European XFEL are read with EXtra-data, which is not installed; "
            "pip install 'sfxreduce[euxfel]'"
        ) from error
    try:
        access = FileAccess(str(path))
        for source in sorted(access.instrument_sources):
            named = MODULE.fullmatch(source)
            if named is None or "image" not in access.index_groups(source):
                continue
            module = int(named["number"])
            yield named["detector"], module, _rows(access, str(path), source, module)
        access.close()
    except (*HDF5_ERRORS, IndexError, FileStructureError) as error:
        raise SourceError(
            f"{path}: expected a file of the European XFEL, found one that cannot be read "
            f"({' '.join(str(error).split())}); fetch it again"
        ) from error


def _rows(access: Any, path: str, source: str, module: int) -> ModuleFile | None:
    """Rows of a module in a file; None if they are raw, with an axis of data and gain."""
    file = access.file
    data = file[IMAGES.format(source=source, key="data")]
    if data.ndim != 3:
        return None
    firsts, counts = access.get_index(source, "image")
    spans = [np.arange(f, f + n) for f, n in zip(firsts.tolist(), counts.tolist(), strict=True)]
    rows = np.concatenate([np.zeros(0, np.int64), *spans])
    trains = np.repeat(access.train_ids, counts.astype(np.int64))
    times = np.full(len(access.train_ids), MISSING_TIME)
    if "INDEX/timestamp" in file:
        stored = file["INDEX/timestamp"][: times.size].astype(np.int64)
        times[: stored.size] = np.where(stored > 0, stored, MISSING_TIME)
    # A row that was announced and never came is no picture.
    there = rows < len(data)
    rows, trains = rows[there], trains[there]
    pulses = file[IMAGES.format(source=source, key="pulseId")][()].ravel()[rows]
    name = IMAGES.format(source=source, key="cellId")
    cells = file[name][()].ravel()[rows] if name in file else np.full(rows.size, -1)
    return ModuleFile(
        path=path,
        source=source,
        module=module,
        keys=np.stack([trains, pulses], axis=1).astype(np.uint64),
        rows=rows,
        cells=cells.astype(np.int64),
        times=np.repeat(times, counts.astype(np.int64))[there],
    )


def _in_order(parts: Sequence[ModuleFile], n_modules: int) -> EventRows:
    """Events of all modules, each once."""
    keys = np.concatenate([part.keys for part in parts])
    events, first, place = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    place = place.ravel()
    file = np.full((len(events), n_modules), -1, np.int32)
    row = np.zeros((len(events), n_modules), np.int64)
    start = 0
    for number, part in enumerate(parts):
        here = place[start : start + len(part.keys)]
        file[here, part.module], row[here, part.module] = number, part.rows
        start += len(part.keys)
    return EventRows(
        files=tuple((part.path, part.source) for part in parts),
        train=events[:, 0],
        pulse=events[:, 1],
        cell=np.concatenate([part.cells for part in parts])[first],
        time_ns=np.concatenate([part.times for part in parts])[first],
        file=file,
        row=row,
    )
