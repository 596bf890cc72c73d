"""All that is known of a run in its CXI file: the record that a run store has of itself.

See `sfxreduce.io.store.in_hdf5` for what it is made of.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.io.store.in_hdf5 import (
    COLUMNS_GROUP,
    COMMON_MASK_PATH,
    RECORD_PATH,
    detector_digest,
)
from sfxreduce.io.store.metadata import detector_to_json
from sfxreduce.io.store.names import SCHEMA, SCHEMA_VERSION
from sfxreduce.io.writers.hdf5 import put, put_column, text
from sfxreduce.io.writers.zarr import plain_attributes
from sfxreduce.run.columns import EVENT_COLUMNS
from sfxreduce.run.run import Run

__all__ = ["write_record"]


def write_record(file: h5py.File, run: Run, *, carried: Collection[str]) -> None:
    """Write a run's truth, the columns that have no dataset yet, and the record.

    Parameters
    ----------
    file : File
        A CXI file that is complete but for these.
    carried : collection of str
        Datasets in it that are columns of the run, under the names that they had in its source.
    """
    truth = _write_truth(file, run.truth)
    mask, stored = run.detector.mask, file["/entry_1/data_1/mask"]
    if stored.size != mask.size:
        packing = {"compression": "gzip", "shuffle": True, "fletcher32": True}
        chunk = (*(1 for _ in mask.shape[:-2]), *mask.shape[-2:])
        file.create_dataset(COMMON_MASK_PATH, data=mask, chunks=chunk, track_times=False, **packing)
    columns = {}
    needed = {column.name for column in EVENT_COLUMNS}
    # A store lists its arrays in any order.
    for name, column in sorted(run.columns.reset_coords().items(), key=_name):
        if name in needed:
            continue
        path = str(column.attrs.get("path", ""))
        if path not in carried:
            path = f"{COLUMNS_GROUP}/{name}"
            put_column(file, path, column.values)
        columns[str(name)] = _facts(path, column)
    record = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "experiment": run.experiment,
        "run": run.name,
        "provenance": run.provenance,
        "detector": detector_to_json(run.detector),
        "detector_sha256": detector_digest(lambda path: _values(file, path)),
        "columns": columns,
        "truth": truth,
        "datasets": _datasets(file),
    }
    put(file, RECORD_PATH, text([json.dumps(record)])[0])


def _facts(path: str, variable: xr.DataArray) -> dict[str, Any]:
    """Where a variable is, and what its dataset does not say of it."""
    attributes = plain_attributes(variable.attrs)
    return {"path": path, "dims": [*map(str, variable.dims)], "attributes": attributes}


def _write_truth(file: h5py.File, truth: xr.Dataset | None) -> dict[str, Any]:
    """Write what is known of the events; returns what the record says of it."""
    facts: dict[str, Any] = {}
    known = xr.Dataset() if truth is None else truth.reset_coords()
    for name, variable in sorted(known.items(), key=_name):
        facts[str(name)] = _facts(f"/truth/{name}", variable)
        dataset = put_column(file, f"/truth/{name}", variable.values)
        for key, value in facts[str(name)]["attributes"].items():
            if isinstance(value, str | int | float) or _is_flat(value):
                dataset.attrs[key] = _of_one_length(value)
    return facts


def _name(item: tuple[Any, xr.DataArray]) -> str:
    return str(item[0])


def _of_one_length(value: Any) -> Any:
    """Text of one length: that of any length lies in a heap with bytes of whatever was there."""
    if isinstance(value, str):
        return text([value])[0]
    return text([*value]) if isinstance(value, list) and isinstance(value[0], str) else value


def _is_flat(value: object) -> bool:
    """Whether an attribute is a list of text, or one of numbers."""
    if not isinstance(value, list) or not value:
        return False
    return any(all(isinstance(item, kind) for item in value) for kind in (str, int | float))


def _values(file: h5py.File, path: str) -> NDArray[Any] | None:
    """Values of a dataset, text as str; None if there is none."""
    dataset = file.get(path)
    if not isinstance(dataset, h5py.Dataset):
        return None
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    return np.asarray((dataset.asstr() if is_text else dataset)[()])


def _datasets(file: h5py.File) -> list[str]:
    """Paths of all datasets."""
    names: list[str] = []

    def note(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            names.append(f"/{name}")

    file.visititems(note)
    return names
