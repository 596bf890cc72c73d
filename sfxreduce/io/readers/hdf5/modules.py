"""Where the modules of a NeXus detector lie: rectangles of a frame, moved by chains of motions.

A module names the pixels it has, the directions in which their columns and rows run, and where the
first one lies; each of these is a motion that depends on another one [1]_. The axes are those of
CrystFEL: z along the beam, y upwards.

References
----------
.. [1] H. J. Bernstein et al., IUCrJ 7 (2020) 784. doi:10.1107/S2052252520008672
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import h5py
import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SchemaError
from sfxreduce.io.readers.hdf5.file import Hdf5File
from sfxreduce.io.readers.hdf5.nexus import NXMX, of_class
from sfxreduce.io.readers.hdf5.units import MOST_DISTANCE_M, MOST_PIXEL_M, in_metres, in_radians
from sfxreduce.run.detector import Sensor

__all__ = ["read_modules"]

MOST_MOTIONS = 64
"""Motions of a chain: more are a circle."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Motion:
    """What a chain of motions does to a point: turn it, then shift it; lengths in metres."""

    turn: Vector
    shift: Vector

    def then(self, after: Motion) -> Motion:
        """One motion, and another one after it."""
        return Motion(turn=after.turn @ self.turn, shift=after.turn @ self.shift + after.shift)


def read_modules(file: Hdf5File, frame_shape: tuple[int, ...]) -> tuple[tuple[Sensor, ...], float]:
    """Modules of the detector as sensors, and the side of a pixel in metres.

    Parameters
    ----------
    file : Hdf5File
        As seen from its frames; see `sfxreduce.io.readers.hdf5.nexus.seen_from`.
    frame_shape : tuple of int
        (y, x) or (panel, y, x).

    Returns
    -------
    tuple of Sensor and float
        Without sensors, and NaN, if there are no modules, or they do not say where they lie.

    Raises
    ------
    SchemaError
        If a module lies outside the frames or on another one, or a chain has no end.
    """
    detector = file.find(NXMX)
    if not isinstance(detector, h5py.Group):
        return (), math.nan
    sensors, sides = [], []
    for path in of_class(file, str(detector.name), "NXdetector_module"):
        placed = _sensor(file, path, frame_shape)
        if placed is None:
            return (), math.nan
        sensors.append(placed[0])
        sides.append(placed[1])
    if not sensors or not np.allclose(sides, sides[0], rtol=1e-3):
        return (), math.nan
    _check_apart(file, sensors, frame_shape)
    return tuple(sensors), sides[0]


def _sensor(file: Hdf5File, path: str, frame_shape: tuple[int, ...]) -> tuple[Sensor, float] | None:
    """One module, and the side of its pixels; None if it does not say where it lies."""
    origin, size = (_integers(file, f"{path}/data_{name}") for name in ("origin", "size"))
    fast = _step(file, f"{path}/fast_pixel_direction")
    slow = _step(file, f"{path}/slow_pixel_direction")
    offset = file.dataset(f"{path}/module_offset")
    if origin is None or size is None or offset is None or fast is None or slow is None:
        return None
    if not len(origin) == len(size) == len(frame_shape):
        return None
    start, stop = origin, origin + size
    if (start < 0).any() or (stop <= start).any() or (stop > np.array(frame_shape)).any():
        raise SchemaError(
            f"{file.path}: {path}: expected pixels of frames {frame_shape}, found {start.tolist()} "
            f"to {stop.tolist()}; correct data_origin and data_size"
        )
    if len(start) == 3 and stop[0] - start[0] != 1:
        return None
    place = _chain(file, str(offset.name)).shift
    side = float(np.linalg.norm(fast))
    top = int(start[0]) * frame_shape[1] if len(start) == 3 else 0
    sensor = Sensor(
        name=path.rsplit("/", 1)[-1],
        corner=_pixels(place, side),
        fast=_pixels(fast, side),
        slow=_pixels(slow, side),
        rows=(top + int(start[-2]), top + int(stop[-2])),
        columns=(int(start[-1]), int(stop[-1])),
    )
    return sensor, side


def _integers(file: Hdf5File, path: str) -> NDArray[np.int64] | None:
    dataset = file.dataset(path)
    if dataset is None or dataset.dtype.kind not in "iu":
        return None
    return np.asarray(file.read(dataset)).ravel().astype(np.int64)


def _pixels(vector: Vector, side: float) -> tuple[float, float]:
    # Metres divided by metres leave noise in the last digits.
    return round(float(vector[0] / side), 9), round(float(vector[1] / side), 9)


def _step(file: Hdf5File, path: str) -> Vector | None:
    """Step from pixel to pixel in metres; None if the file does not say it."""
    dataset = file.dataset(path)
    if dataset is None or dataset.dtype.kind not in "iuf" or not dataset.size:
        return None
    side = in_metres(file, dataset, _first(file, dataset), most=MOST_PIXEL_M)
    direction = _vector(file, dataset, "vector")
    if direction is None or not side[0] > 0 or not np.linalg.norm(direction) > 0:
        return None
    turn = _chain(file, _depends_on(file, dataset)).turn
    step: Vector = turn @ direction / np.linalg.norm(direction) * side[0]
    return step


def _first(file: Hdf5File, dataset: h5py.Dataset) -> Vector:
    """First value; of a motion that differs by event, that of the first one."""
    return np.asarray(file.read(dataset), np.float64).ravel()[:1]


def _chain(file: Hdf5File, path: str) -> Motion:
    """All motions from one on, each after the one that depends on it."""
    chain = Motion(turn=np.eye(3), shift=np.zeros(3))
    for _ in range(MOST_MOTIONS):
        dataset = file.dataset(path) if path else None
        if dataset is None:
            return chain
        chain = chain.then(_motion(file, dataset))
        path = _depends_on(file, dataset)
    raise SchemaError(
        f"{file.path}: {path}: expected a chain of motions with an end, found {MOST_MOTIONS} of "
        "them; correct the attributes 'depends_on'"
    )


def _motion(file: Hdf5File, dataset: h5py.Dataset) -> Motion:
    vector, value = _vector(file, dataset, "vector"), _first(file, dataset)
    length = 0.0 if vector is None else float(np.linalg.norm(vector))
    shift = np.zeros(3)
    offset = _vector(file, dataset, "offset")
    if offset is not None and offset.any():
        shift = in_metres(file, dataset, offset, most=MOST_DISTANCE_M, attribute="offset_units")
    kind = file.attempt(lambda: dataset.attrs.get("transformation_type", ""), str(dataset.name))
    name = kind.decode(errors="replace") if isinstance(kind, bytes) else str(kind)
    if vector is None or not length > 0 or not value.size or not np.isfinite(value).all():
        return Motion(turn=np.eye(3), shift=shift)
    axis = vector / length
    if name == "rotation":
        return Motion(turn=_rotation(axis, float(in_radians(file, dataset, value)[0])), shift=shift)
    distance = in_metres(file, dataset, value, most=MOST_DISTANCE_M)
    return Motion(turn=np.eye(3), shift=shift + axis * distance[0])


def _rotation(axis: Vector, angle: float) -> Vector:
    """Matrix of a rotation about a unit vector, by Rodrigues."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn: Vector = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return turn


def _vector(file: Hdf5File, dataset: h5py.Dataset, name: str) -> Vector | None:
    found = file.attempt(lambda: dataset.attrs.get(name), str(dataset.name))
    if found is None:
        return None
    values = np.asarray(found)
    if values.shape != (3,) or values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        return None
    return values.astype(np.float64)


def _depends_on(file: Hdf5File, dataset: h5py.Dataset) -> str:
    """Path of the motion that another one depends on; empty at the end of a chain."""
    found = file.attempt(lambda: dataset.attrs.get("depends_on", "."), str(dataset.name))
    path = found.decode(errors="replace") if isinstance(found, bytes) else str(found)
    if path in ("", "."):
        return ""
    return path if path.startswith("/") else f"{dataset.parent.name}/{path}"


def _check_apart(file: Hdf5File, sensors: list[Sensor], frame_shape: tuple[int, ...]) -> None:
    """Refuse modules that have pixels of one another."""
    taken = np.zeros((math.prod(frame_shape[:-1]), frame_shape[-1]), np.bool_)
    for sensor in sensors:
        pixels = taken[slice(*sensor.rows), slice(*sensor.columns)]
        if pixels.any():
            raise SchemaError(
                f"{file.path}: expected every pixel in one NXdetector_module, found {sensor.name} "
                "with pixels of another one; correct data_origin and data_size"
            )
        pixels[:] = True
