"""Per-event data of an HDF5 file that have no column of their own: small ones come along."""

from __future__ import annotations

import re
from collections.abc import Collection

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.errors import SfxReduceError
from sfxreduce.io.readers.hdf5.file import Hdf5File
from sfxreduce.io.readers.hdf5.unwritten import find_holes
from sfxreduce.run.columns import EVENT_COLUMNS, plain_text

__all__ = ["read_carried"]

MOST_BYTES = 64
"""Bytes an event of what comes along: a few numbers, or a name. Chosen, not measured."""

MOST_CARRIED = 256
"""Datasets that come along, and that are named where they do not."""

TAKEN = ("score", "source_index", "probability", "reason", "dark", "no_image", "frames", "mask")
GROUPS = ("truth", "ledger", "audit", "conditions", "manifest")
"""Names that mean something else in a store."""


def read_carried(
    file: Hdf5File, n_events: int, *, known: Collection[str], frames: h5py.Dataset | None = None
) -> tuple[xr.Dataset, tuple[str, ...]]:
    """Columns of every dataset whose first axis is the events, and what does not come along.

    Parameters
    ----------
    known : collection of str
        Paths of datasets that are columns already.
    frames : Dataset, optional
        The frames, if they lie in this file.

    Returns
    -------
    tuple of Dataset and tuple of str
        Columns on dimension ``event``, each with its path in the attribute ``path``; and paths of
        datasets that are too large, damaged, or of no plain type.
    """
    found: list[h5py.Dataset] = []

    def note(_: str, item: h5py.Dataset | h5py.Group) -> bool | None:
        if isinstance(item, h5py.Dataset) and item.ndim and item.shape[0] == n_events:
            found.append(item)
        return True if len(found) > 2 * MOST_CARRIED else None

    if n_events:
        file.attempt(lambda: file.handle.visititems(note), "/")
    carried, left = xr.Dataset(), []
    for dataset in found:
        path = str(dataset.name)
        if dataset == frames or path in known or path.startswith("/truth/"):
            continue
        values = _values(file, dataset) if len(carried) < MOST_CARRIED else None
        if values is None:
            left.append(plain_text(path))
            continue
        name = _column_name(path, carried)
        dims = ("event", *(f"{name}_{axis}" for axis in range(1, values.ndim)))
        carried[name] = (dims, values, {"path": plain_text(path)})
    return carried, tuple(left[:MOST_CARRIED])


def _values(file: Hdf5File, dataset: h5py.Dataset) -> NDArray[np.generic] | None:
    """Values of a dataset that comes along; None if it does not."""
    row = dataset.size // dataset.shape[0] * dataset.dtype.itemsize
    text = h5py.check_string_dtype(dataset.dtype) is not None
    if (dataset.dtype.kind not in "biuf" and not text) or row > MOST_BYTES:
        return None
    try:
        holes = find_holes(file, dataset)
        file.check_storage(dataset, 0)
        values = file.read(dataset)
    except SfxReduceError:
        # It is in nobody's way: the run is read without it.
        return None
    if text:
        plain = np.array([plain_text(str(item)) for item in values.ravel()], object)
        long = any(len(item.encode()) > MOST_BYTES for item in plain)
        return None if long or holes.any() else plain.reshape(values.shape)
    if holes.any() and values.dtype.kind != "f":
        return None
    if holes.any():
        values[holes] = np.nan
    return values.astype(values.dtype.newbyteorder("="))


def _column_name(path: str, others: Collection[object]) -> str:
    """Name of a dataset's column: its last part in snake case, or all of its path.

    Examples
    --------
    >>> _column_name("/LCLS/detector_1/EncoderValue", []), _column_name("/x/score", [])
    ('encoder_value', 'x_score')
    """
    taken = {*others, *TAKEN, *GROUPS, *(column.name for column in EVENT_COLUMNS)}
    parts = [
        re.sub(r"[^0-9A-Za-z]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", part)).lower()
        for part in path.strip("/").split("/")
    ]
    name = parts[-1] if parts[-1] not in taken else "_".join(parts)
    while name in taken:
        name += "_"
    return name
