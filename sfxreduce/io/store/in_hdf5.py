"""What a run store says of itself, as one group of an HDF5 file: CXI has no place for all of it.

The group ``/sfxreduce`` holds the record, JSON in the dataset ``run``, and columns that the format
has no dataset for. The record counts as long as the file says the same of its detector as when it
was written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

__all__ = ["COLUMNS_GROUP", "COMMON_MASK_PATH", "RECORD_PATH", "detector_digest"]

RECORD_PATH = "/sfxreduce/run"
COLUMNS_GROUP = "/sfxreduce/columns"
COMMON_MASK_PATH = "/sfxreduce/mask"
"""The mask of the run, where that of the file has an axis of events."""

_DETECTOR = "/entry_1/instrument_1/detector_1"
DETECTOR_PATHS = (
    f"{_DETECTOR}/description",
    f"{_DETECTOR}/distance",
    f"{_DETECTOR}/x_pixel_size",
    f"{_DETECTOR}/y_pixel_size",
    f"{_DETECTOR}/adu_per_photon",
    f"{_DETECTOR}/saturation_value",
    f"{_DETECTOR}/corner_position",
    f"{_DETECTOR}/basis_vectors",
    f"{_DETECTOR}/module_identifier",
)
"""Datasets that say where the pixels lie and what they count."""


def detector_digest(read: Callable[[str], NDArray[Any] | None]) -> str:
    """SHA-256 of what the file says of its detector, in hexadecimal.

    Parameters
    ----------
    read : callable
        Values of the dataset at a path, text as str; None if there is no such dataset.
    """
    digest = hashlib.sha256()
    for path in DETECTOR_PATHS:
        values = read(path)
        digest.update(f"{path} {None if values is None else values.tolist()!r}\n".encode())
    return digest.hexdigest()
