"""Hits as an NXmx file that DIALS reads: the frames themselves, or a master that links to them.

The layout is that of the NeXus application definition NXmx [1]_, in the reading that the package
nxmx and DIALS have of it: a frame is one picture, its panels one below the other, with an
NXdetector_module for each sensor. NeXus and CrystFEL have the same laboratory: x to the left seen
along the beam, y up, z downstream. The same input gives the same bytes.

References
----------
.. [1] H. J. Bernstein et al., IUCrJ 7 (2020) 784. doi:10.1107/S2052252520008672
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from sfxreduce.io.geometry.statements import EV_ANGSTROM
from sfxreduce.io.store.metadata import illegal_value
from sfxreduce.io.writers.hdf5 import (
    frames_of,
    gzipped,
    put,
    text,
    write_carried,
    write_hdf5,
    write_times,
)
from sfxreduce.io.writers.nxmx_content import (
    NxmxContent,
    NxmxModule,
    modules_of,
    nxmx_mask,
    trusted_range,
)

__all__ = ["write_nxmx"]

DETECTOR = "/entry/instrument/detector"
DISTANCE_AXIS = f"{DETECTOR}/transformations/distance"
DATA = "/entry/data/data"

GROUPS = {
    "/entry": "NXentry",
    "/entry/sample": "NXsample",
    "/entry/source": "NXsource",
    "/entry/instrument": "NXinstrument",
    "/entry/instrument/beam": "NXbeam",
    DETECTOR: "NXdetector",
    f"{DETECTOR}/transformations": "NXtransformations",
    "/entry/data": "NXdata",
}

UNKNOWN = "unknown"
"""Name of what has to have one by the definition, and is not known here."""


def write_nxmx(path: Path, content: NxmxContent) -> int:
    """Write an NXmx file in this process; see `write_nxmx_in_subprocess` for the safe way.

    Frames stay bit for bit. One that cannot be read is left out: its chunk is never written, and
    reads as the value that no detector delivers, which lies outside the range that DIALS trusts. So
    do pixels that are missing of a frame, as a mask of NXmx is one for all events.

    Parameters
    ----------
    path : Path
        Must not exist; nothing is left there after an error.

    Returns
    -------
    int
        Number of frames left out; 0 for a master that links to them.

    Raises
    ------
    OutputExists
        If something lies at the path.
    OutputError
        If the file cannot be written.
    """
    return write_hdf5(path, partial(_write, content=content), n_bytes=content.n_bytes)


def _write(file: h5py.File, content: NxmxContent) -> int:
    """Write everything; returns the number of frames left out."""
    file.attrs.update(_attributes({"NX_class": "NXroot", "default": "entry"}))
    for group, nx_class in GROUPS.items():
        file.create_group(group).attrs.update(_attributes({"NX_class": nx_class}))
    file["/entry"].attrs.update(_attributes({"default": "data"}))
    file["/entry/data"].attrs.update(_attributes({"signal": "data"}))
    words = {
        "/entry/definition": "NXmx",
        "/entry/instrument/name": UNKNOWN,
        "/entry/source/name": UNKNOWN,
        "/entry/sample/name": UNKNOWN,
        # Nothing turns it: every frame is a still of another crystal.
        "/entry/sample/depends_on": ".",
    }
    for name, word in words.items():
        put(file, name, word)
    _write_beam(file, content)
    _write_detector(file, content)
    for number, module in enumerate(modules_of(content.source.detector)):
        _write_module(file.create_group(f"{DETECTOR}/module_{number:03}"), module)
    return _write_events(file, content)


def _attributes(words: Mapping[str, str]) -> dict[str, Any]:
    return {name: np.bytes_(word.encode()) for name, word in words.items()}


def _write_beam(file: h5py.File, content: NxmxContent) -> None:
    """Write energies and wavelengths: one of all events, or each its own where they differ."""
    energies = content.columns["photon_energy_ev"].values
    known = energies[np.isfinite(energies)]
    if not known.size:
        return
    values = np.where(np.isfinite(energies), energies, np.median(known))
    if (values == values[0]).all():
        values = values[0]
    beam = file["/entry/instrument/beam"]
    _measured(beam, "incident_energy", values, "eV")
    _measured(beam, "incident_wavelength", EV_ANGSTROM / values, "angstrom")


def _measured(group: h5py.Group, name: str, value: object, unit: str) -> h5py.Dataset:
    """Write a number with its unit."""
    dataset = put(group, name, np.asarray(value, np.float64))
    dataset.attrs.update(_attributes({"units": unit}))
    return dataset


def _write_detector(file: h5py.File, content: NxmxContent) -> None:
    """Write distance, sensor, trusted values, gain and mask."""
    detector, group = content.source.detector, file[DETECTOR]
    put(group, "description", detector.name)
    put(group, "depends_on", DISTANCE_AXIS)
    put(group, "sensor_material", content.layer.material)
    lengths = {
        "sensor_thickness": content.layer.thickness_m,
        "distance": detector.distance_m,
        "x_pixel_size": detector.pixel_size_m,
        "y_pixel_size": detector.pixel_size_m,
    }
    for name, length in lengths.items():
        _measured(group, name, length, "m")
    axis = _measured(group, "transformations/distance", detector.distance_m, "m")
    _place(axis, vector=(0.0, 0.0, 1.0), depends_on=".")
    low, high = trusted_range(np.dtype(content.source.dtype), detector.saturation_adu)
    put(group, "underload_value", np.int64(low))
    put(group, "saturation_value", np.int64(high))
    # Not in the definition; the reader of this package looks for it.
    put(group, "adu_per_photon", np.float64(detector.adu_per_photon))
    if len(modules := modules_of(detector)) == 1:
        _write_beam_center(group, modules[0])
    mask = nxmx_mask(detector)
    chunk = detector.panel_shape
    file.create_dataset(f"{DETECTOR}/pixel_mask", data=mask, **gzipped(chunk))
    put(group, "pixel_mask_applied", np.int8(0))


def _write_beam_center(group: h5py.Group, module: NxmxModule) -> None:
    """Write where the beam meets the plane of a single sensor, in pixels from its corner."""
    steps = np.array([module.fast, module.slow]).T * module.pixel_size_m
    center = np.linalg.solve(steps[:2], -np.array(module.corner[:2]))
    for name, value in zip(("beam_center_x", "beam_center_y"), center.tolist(), strict=True):
        _measured(group, name, value, "pixel")


def _write_module(group: h5py.Group, module: NxmxModule) -> None:
    """Write which pixels a sensor has, and where it lies."""
    group.attrs.update(_attributes({"NX_class": "NXdetector_module"}))
    origin = module.rows[0], module.columns[0]
    size = module.rows[1] - origin[0], module.columns[1] - origin[1]
    put(group, "data_origin", np.array(origin))
    put(group, "data_size", np.array(size))
    length = math.hypot(*module.corner)
    direction = tuple(x / length for x in module.corner) if length else (0.0, 0.0, 1.0)
    offset = _measured(group, "module_offset", length, "m")
    _place(offset, vector=direction, depends_on=DISTANCE_AXIS)
    for name, vector, pixel in (
        ("fast_pixel_direction", module.fast, module.pixel_size_m[0]),
        ("slow_pixel_direction", module.slow, module.pixel_size_m[1]),
    ):
        _place(_measured(group, name, pixel, "m"), vector=vector, depends_on=str(offset.name))


def _place(axis: h5py.Dataset, *, vector: tuple[float, ...], depends_on: str) -> None:
    """Say along what an axis moves, and from where."""
    axis.attrs["vector"] = np.array(vector)
    axis.attrs["offset"] = np.zeros(3)
    words = {"transformation_type": "translation", "offset_units": "m", "depends_on": depends_on}
    axis.attrs.update(_attributes(words))


def _write_events(file: h5py.File, content: NxmxContent) -> int:
    """Write frames, or link to them, and what is known of each event; returns frames left out."""
    columns = content.columns
    names = text([str(name) for name in columns["event_id"].values])
    put(file, "/entry/data/experiment_identifier", names)
    times = columns["timestamp_ns"].values
    if (known := times[times > 0]).size:
        # By the definition an end that was not observed, but follows from the events.
        for name, time in (("start_time", known.min()), ("end_time_estimated", known.max())):
            moment = np.datetime64(int(time), "ns")
            put(file, f"/entry/{name}", f"{np.datetime_as_string(moment, unit='ms')}Z")
    if content.link:
        file[DATA] = h5py.ExternalLink(*content.link)
        return 0
    write_times(file, columns)
    left_out = _write_frames(file, content)
    write_carried(file, columns)
    return left_out


def _write_frames(file: h5py.File, content: NxmxContent) -> int:
    """Write the frames, one panel a chunk; returns the number left out."""
    source, shape = content.source, content.slab_shape
    dtype, chunk = np.dtype(source.dtype), (1, *source.detector.panel_shape)
    packing = gzipped(chunk)
    if content.codec == "bslz4":
        # What Eiger files have, and nothing besides: DIALS then takes whole chunks off the disk.
        packing = {"chunks": chunk, "track_times": False, **hdf5plugin.Bitshuffle(cname="lz4")}
    if not source.n_events:
        packing = {"track_times": False}
    hole = illegal_value(dtype)
    data = file.create_dataset(
        DATA, shape=(source.n_events, *shape), dtype=dtype, fillvalue=hole, **packing
    )
    left_out = 0
    for event, (frame, missing) in enumerate(frames_of(source)):
        if frame is None:
            left_out += 1
            continue
        whole = frame if missing is None else np.where(missing, dtype.type(hole), frame)
        data[event] = whole.reshape(shape)
    return left_out
