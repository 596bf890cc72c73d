"""Per-event columns and truth of a CXI or NXmx file; what is not there is marked as missing."""

from __future__ import annotations

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.errors import SourceError
from sfxreduce.io.readers.hdf5.file import Hdf5File
from sfxreduce.io.readers.hdf5.nexus import BEAM, NXMX, seen_from
from sfxreduce.io.readers.hdf5.units import in_ev, in_mj
from sfxreduce.io.readers.hdf5.unwritten import find_holes
from sfxreduce.run.columns import MISSING_TIME, event_columns

__all__ = ["COLUMN_PATHS", "read_columns", "read_truth"]

EVENT_IDS = (
    "/entry_1/data_1/experiment_identifier",
    "/entry_1/instrument_1/detector_1/experiment_identifier",
    "/entry/data/experiment_identifier",
)
SECONDS = "/LCLS/machineTime"
NANOSECONDS = "/LCLS/machineTimeNanoSeconds"

PLAIN = (str, int, float, bool)
STORAGE = {
    *("_FillValue", "missing_value", "scale_factor", "add_offset", "coordinates"),
    *("DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME", "DIMENSION_LABELS"),
    *("_Netcdf4Coordinates", "_Netcdf4Dimid", "_nc3_strict", "_ARRAY_DIMENSIONS"),
}
"""Attributes by which netCDF and HDF5 say how values are stored; elsewhere they mean nothing, or
would change the values."""

FLOAT_OR_NONE = NDArray[np.float64] | None


PHOTON_ENERGY = {
    "/LCLS/photon_energy_eV": "eV",
    "/entry_1/instrument_1/source_1/energy": "J",
    f"{BEAM}/incident_energy": "eV",
    f"{BEAM}/incident_wavelength": "angstrom",
    f"{NXMX}/detectorSpecific/photon_energy": "eV",
}
"""Where photon energies may stand, and the unit of those that say none."""

PULSE_ENERGY = {
    "/LCLS/pulse_energy_mJ": "mJ",
    "/entry_1/instrument_1/source_1/pulse_energy": "J",
    "/LCLS/f_11_ENRC": "mJ",  # gas detector, as Cheetah names it
}
"""The same of pulse energies."""

COLUMN_PATHS = (*EVENT_IDS, SECONDS, NANOSECONDS, *PHOTON_ENERGY, *PULSE_ENERGY)
"""Datasets that columns are made of."""

SPECTRUM_WEIGHTS = f"{BEAM}/incident_wavelength_weights"
"""With it, wavelengths are the lines of one spectrum, not those of events."""


def read_columns(file: Hdf5File, n_events: int, *, path: str, frames_path: str = "") -> xr.Dataset:
    """Columns of a run.

    A dataset of another length than the run, or one number where every event needs its own, says
    nothing about an event: the column is then missing, never filled from a neighbour.

    Parameters
    ----------
    path : str
        Of the file, as the user gave it.
    frames_path : str
        Of the frames, which says of which entry and beam they are; see `seen_from`.

    Raises
    ------
    SourceError
        If the file is damaged.
    """
    file = seen_from(file, frames_path)
    return event_columns(
        n_events,
        event_id=_event_ids(file, n_events, stem=path.rsplit("/", 1)[-1].rsplit(".", 1)[0]),
        timestamp_ns=_timestamps(file, n_events),
        photon_energy_ev=_photon_energies(file, n_events),
        pulse_energy_mj=_pulse_energies(file, n_events),
        source_file=np.full(n_events, path, object),
        source_event=np.arange(n_events),
    )


def read_truth(file: Hdf5File, n_events: int) -> xr.Dataset | None:
    """Carry over the datasets of `/truth`, under their names; None if none is per event.

    A first axis as long as the run is ``event``. Lists of peaks in our own names, ``peak_event``
    and others of its length that begin with ``peak_``, are on ``peak``. Every other axis is named
    after its dataset and its place. Groups within `/truth` and values that are neither numbers nor
    text stay behind.

    Raises
    ------
    SourceError
        If the file is damaged.
    """
    group = file.find("/truth")
    if not isinstance(group, h5py.Group):
        return None
    truth = xr.Dataset()
    n_peaks = _n_peaks(file)
    for name in file.attempt(lambda: sorted(group), "/truth"):
        dataset = file.dataset(f"/truth/{name}")
        if dataset is None or dataset.dtype.kind not in "biufSO":
            continue
        if find_holes(file, dataset).any():
            raise SourceError(
                f"{file.path}: {dataset.name} has values that were never written; fetch the file "
                "again"
            )
        dims = [f"{name}_dim{axis}" for axis in range(dataset.ndim)]
        if dims and name.startswith("peak_") and dataset.shape[0] == n_peaks:
            dims[0] = "peak"
        elif dims and dataset.shape[0] == n_events:
            dims[0] = "event"
        truth[name] = (dims, file.read(dataset), _attributes(file, dataset))
    return truth if "event" in truth.dims else None


def _n_peaks(file: Hdf5File) -> int:
    """Length of the lists of peaks in `/truth`; -1 if there are none."""
    owners = file.dataset("/truth/peak_event")
    if owners is None or owners.ndim != 1 or owners.dtype.kind not in "iu":
        return -1
    return int(owners.shape[0])


def _attributes(file: Hdf5File, dataset: h5py.Dataset) -> dict[str, object]:
    """Attributes that are numbers or text, or flat lists of them, and say nothing of storage."""
    found = file.attempt(lambda: dict(dataset.attrs), str(dataset.name))
    kept: dict[str, object] = {}
    for name, value in found.items():
        plain = value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
        several = isinstance(plain, list)
        parts = [_decoded(part) for part in plain] if several else [_decoded(plain)]
        if name not in STORAGE and all(isinstance(part, PLAIN) for part in parts):
            kept[name] = parts if several else parts[0]
    return kept


def _decoded(value: object) -> object:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _event_ids(file: Hdf5File, n_events: int, *, stem: str) -> NDArray[np.object_]:
    """Names of the events: those of the file, or the file's own name and a number."""
    made = np.array([f"{stem}-{i}" for i in range(n_events)], object)
    for path in EVENT_IDS:
        dataset = file.dataset(path)
        if dataset is None or h5py.check_string_dtype(dataset.dtype) is None:
            continue
        if dataset.shape in ((n_events,), (n_events, 1)):
            found = file.read(dataset).ravel()
            return np.where(found == "", made, found)
    return made


def _timestamps(file: Hdf5File, n_events: int) -> NDArray[np.int64]:
    """Nanoseconds since 1970; what is absent or zero is missing."""
    seconds = _per_event(file, SECONDS, n_events)
    nanoseconds = _per_event(file, NANOSECONDS, n_events)
    if seconds is None:
        return np.full(n_events, MISSING_TIME)
    # Where nothing else tells the fraction of a second, it is in the seconds.
    fraction = np.rint(np.where(np.isfinite(seconds), seconds, 0) % 1 * 1e9)
    rest = np.minimum(fraction, 999_999_999) if nanoseconds is None else nanoseconds
    known = (seconds > 0) & (seconds < 2**33) & (rest >= 0) & (rest < 1e9)
    whole = np.where(known, seconds, 0).astype(np.int64) * 1_000_000_000
    return np.where(known, whole + np.where(known, rest, 0).astype(np.int64), MISSING_TIME)


def _photon_energies(file: Hdf5File, n_events: int) -> NDArray[np.float64]:
    """Energies from the first place that has any; one number may stand for all events."""
    for path, usual in PHOTON_ENERGY.items():
        values = _per_event(file, path, n_events, nominal=True)
        dataset = file.dataset(path)
        if values is None or dataset is None:
            continue
        if usual == "angstrom" and dataset.size > 1 and file.find(SPECTRUM_WEIGHTS) is not None:
            continue
        energies = in_ev(file, dataset, values, usual=usual)
        if np.isfinite(energies).any():
            return energies
    return np.full(n_events, np.nan)


def _pulse_energies(file: Hdf5File, n_events: int) -> NDArray[np.float64]:
    """Energies of the pulses from the first place that has any."""
    for path, usual in PULSE_ENERGY.items():
        values = _per_event(file, path, n_events)
        dataset = file.dataset(path)
        if values is None or dataset is None:
            continue
        known = np.isfinite(values) & (values > 0)
        if known.any():
            return in_mj(file, dataset, np.where(known, values, np.nan), usual=usual)
    return np.full(n_events, np.nan)


def _per_event(file: Hdf5File, path: str, n_events: int, *, nominal: bool = False) -> FLOAT_OR_NONE:
    """Read one number an event, NaN where it was never written; None if there is no such column."""
    dataset = file.dataset(path)
    if dataset is None or dataset.dtype.kind not in "iuf":
        return None
    whole_run = nominal and dataset.size == 1
    if not whole_run and dataset.shape not in ((n_events,), (n_events, 1)):
        return None
    values = np.asarray(file.read(dataset), np.float64).ravel()
    values = np.where(find_holes(file, dataset), np.nan, values)
    return np.broadcast_to(values, n_events) if whole_run else values
