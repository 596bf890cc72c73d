"""The record that a run store has of itself, in a CXI file that was made of one.

See `sfxreduce.io.store.in_hdf5`. A file that says something else by now than when the record was
written is believed, not the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.errors import SchemaError
from sfxreduce.io.files.safe_read import parse_json
from sfxreduce.io.readers.hdf5.file import Hdf5File
from sfxreduce.io.store.in_hdf5 import COMMON_MASK_PATH, RECORD_PATH, detector_digest
from sfxreduce.io.store.metadata import detector_from_json, illegal_value
from sfxreduce.io.store.names import PANEL_MISSING, SCHEMA, SCHEMA_VERSION
from sfxreduce.run.detector import Detector

__all__ = ["StoreRecord", "read_record"]

MOST_ROW_BYTES = 1 << 20
"""Bytes an event of a column: a record must not make a column of the frames, which are megabytes.
Chosen, not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRecord:
    """What a file says of the run store that it was made of; nothing if it was made of none.

    Parameters
    ----------
    datasets : tuple of str
        Paths of all that was written with the record: what else is there was added later.
    """

    experiment: str = ""
    name: str = ""
    provenance: str = ""
    detector: Mapping[str, Any] | None = None
    detector_sha256: str = ""
    columns: Mapping[str, Any]
    truth: Mapping[str, Any]
    datasets: tuple[str, ...] = ()

    def detector_of(self, file: Hdf5File, plain: Detector) -> Detector:
        """Detector of the record, with the mask of the file.

        Parameters
        ----------
        plain : Detector
            As the file has it, which is believed if it was changed since.
        """
        if self.detector is None or self.detector_sha256 != detector_digest(
            lambda path: _values(file, path)
        ):
            return plain
        blank = np.zeros(0, np.uint32)
        recorded = detector_from_json(self.detector, mask=blank, where=file.path)
        # Of panels one below the other the file alone may not say that they are several.
        if _slab(recorded) != _slab(plain):
            return plain
        mask, common = plain.mask.ravel(), _values(file, COMMON_MASK_PATH)
        # Of a mask for each event it may be left open which bits all of them share.
        if common is not None and np.array_equal(common.ravel() != 0, mask != 0):
            mask = common.ravel().astype(np.uint32)
        return replace(recorded, mask=mask.reshape(recorded.frame_shape))

    def columns_of(self, file: Hdf5File, n_events: int) -> xr.Dataset:
        """Columns of the record that the file still has for its events."""
        columns = xr.Dataset()
        for name, facts in self.columns.items():
            dims = tuple(map(str, facts["dims"]))
            dataset = file.dataset(str(facts["path"]))
            if dataset is None or dims[:1] != ("event",) or dataset.shape[:1] != (n_events,):
                continue
            row = dataset.size // max(n_events, 1) * dataset.dtype.itemsize
            if dataset.ndim == len(dims) and row <= MOST_ROW_BYTES:
                columns[name] = (dims, file.read(dataset), dict(facts["attributes"]))
        return columns

    def truth_of(self, file: Hdf5File, n_events: int) -> xr.Dataset | None:
        """Truth of the record; None if it has none, or the file has it of other events by now."""
        truth = xr.Dataset()
        for name, facts in self.truth.items():
            values, dims = _values(file, str(facts["path"])), tuple(map(str, facts["dims"]))
            if values is None or values.ndim != len(dims):
                return None
            truth[name] = (dims, values, dict(facts["attributes"]))
        return truth if truth.sizes.get("event") == n_events else None

    def marked(
        self, file: Hdf5File, missing: NDArray[np.bool_], dtype: np.dtype[np.generic]
    ) -> tuple[NDArray[np.bool_], float]:
        """Panels of events that the store lacked pixels of, and what stands in these pixels.

        Parameters
        ----------
        missing : ndarray of bool
            Shape (event, panel): those that the file lacks.
        dtype : dtype
            Of a pixel.
        """
        column = self.columns_of(file, len(missing)).get(PANEL_MISSING)
        if column is None or column.shape != missing.shape or column.dtype != np.bool_:
            return np.zeros(missing.shape, np.bool_), illegal_value(dtype)
        fill = column.attrs.get("fill_value")
        return column.values, fill if isinstance(fill, int) else illegal_value(dtype)


def read_record(file: Hdf5File) -> StoreRecord:
    """Read the record of a file.

    Raises
    ------
    SchemaError
        If it is garbled.
    """
    dataset = file.dataset(RECORD_PATH)
    if dataset is None or dataset.shape or h5py.check_string_dtype(dataset.dtype) is None:
        return StoreRecord(columns={}, truth={})
    try:
        facts = parse_json(str(file.read(dataset)[()]).encode())
        if (facts["schema"], facts["schema_version"]) != (SCHEMA, SCHEMA_VERSION):
            return StoreRecord(columns={}, truth={})
        columns, truth = facts["columns"], facts["truth"]
        for column in (*columns.values(), *truth.values()):
            _ = column["path"], [*column["dims"]], dict(column["attributes"])
        return StoreRecord(
            experiment=str(facts["experiment"]),
            name=str(facts["run"]),
            provenance=str(facts["provenance"]),
            detector=dict(facts["detector"]),
            detector_sha256=str(facts["detector_sha256"]),
            columns=columns,
            truth=truth,
            datasets=tuple(map(str, facts["datasets"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SchemaError(
            f"{file.path}: {RECORD_PATH} is garbled ({error}); take the group out of the file, or "
            "convert the run again"
        ) from error


def _slab(detector: Detector) -> tuple[int, int]:
    """Rows and columns of a frame with its panels one below the other."""
    return len(detector.panels) * detector.panel_shape[0], detector.panel_shape[1]


def _values(file: Hdf5File, path: str) -> NDArray[Any] | None:
    """Values of a dataset, text as str; None if there is none."""
    dataset = file.dataset(path)
    return None if dataset is None else file.read(dataset)
