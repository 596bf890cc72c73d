"""What a CXI or NXmx file says about its detector: place, scale and mask of the pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import h5py
import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SchemaError, SourceError
from sfxreduce.io.readers.hdf5.file import Hdf5File
from sfxreduce.io.readers.hdf5.guard import check_chunks
from sfxreduce.io.readers.hdf5.modules import read_modules
from sfxreduce.io.readers.hdf5.nexus import NXMX, seen_from
from sfxreduce.io.readers.hdf5.units import (
    MOST_DISTANCE_M,
    MOST_PIXEL_M,
    in_metres,
    in_pixels,
)
from sfxreduce.io.readers.hdf5.unwritten import find_holes, find_missing
from sfxreduce.run.detector import Detector, Panel, PixelFlag, Sensor

__all__ = ["axes_of_mask", "has_mask", "read_detector", "read_mask", "underload_of"]

CXI = "/entry_1/instrument_1/detector_1"

DISTANCE = (f"{CXI}/distance", f"{NXMX}/distance", f"{NXMX}/detector_distance")
PIXEL_SIZE = (f"{CXI}/x_pixel_size", f"{NXMX}/x_pixel_size")
ADU_PER_PHOTON = (f"{CXI}/adu_per_photon", f"{NXMX}/adu_per_photon")
SATURATION = (f"{CXI}/saturation_value", f"{NXMX}/saturation_value")

CXI_MASKS = ("/entry_1/data_1/mask", f"{CXI}/mask", f"{CXI}/mask_shared")
NXMX_MASKS = (f"{NXMX}/pixel_mask", f"{NXMX}/detectorSpecific/pixel_mask")
NXMX_GAP = 0x1

# "Has signal" (CXI 1.6) marks pixels with something on them. They are the last ones to leave out.
HAS_SIGNAL = 0x1000

MOST_MASKS = 16

LEAST_AREA = 0.1
"""Area of a pixel as seen along the beam, of its own: a module seen from the side has none."""


def read_detector(
    file: Hdf5File,
    frame_shape: tuple[int, ...],
    *,
    frames_path: str = "",
    mask_good_is: int | None = None,
) -> Detector:
    """Put a detector together from what the file says.

    Without a geometry in the file the beam is at the centre of the frame; panels are then stacked
    along y, in the order of the file. With one, `corner_position` gives the corner of every panel
    and `basis_vectors` its slow and fast steps, both in metres from the beam [1]_, and
    `module_identifier` the name of each; or the modules of a NeXus detector do.

    Parameters
    ----------
    frame_shape : tuple of int
        (y, x) or (panel, y, x) of a frame in the file. A frame of rank 2 with the names of several
        panels is a slab, (panel * y, x); the detector then has the panels apart.
    frames_path : str
        Of the frames, which says of which detector they are; see `seen_from`.
    mask_good_is : int, optional
        See `read_mask`.

    Raises
    ------
    SchemaError
        If the mask has another shape than a frame, or leaves no good pixel.
    SourceError
        If the file is damaged.

    References
    ----------
    .. [1] F. R. N. C. Maia, Nat. Methods 9 (2012) 854. doi:10.1038/nmeth.2110
    """
    file = seen_from(file, frames_path)
    pixel_size = _length(file, PIXEL_SIZE, most=MOST_PIXEL_M)
    panels = _placed_panels(file, frame_shape, pixel_size)
    sensors: tuple[Sensor, ...] = ()
    if not panels:
        panels, sensors, pixel_size = _by_modules(file, frame_shape, pixel_size)
    stacked = len(frame_shape) == 3 or len(panels) > 1
    n_y, n_x = frame_shape[-2:]
    panel_shape = (n_y // len(panels), n_x) if len(frame_shape) == 2 else (n_y, n_x)
    detector = Detector(
        name=_name(file),
        panel_shape=panel_shape,
        panels=panels,
        stacked=stacked,
        pixel_size_m=pixel_size,
        distance_m=_length(file, DISTANCE, most=MOST_DISTANCE_M),
        adu_per_photon=_positive(file, ADU_PER_PHOTON),
        saturation_adu=_positive(file, SATURATION),
        sensors=sensors,
    )
    mask = read_mask(file, detector.frame_shape, good_is=mask_good_is)
    mask = detector.mask if mask is None else mask
    # Pixels of no module have no place.
    return detector.with_mask(np.where(detector.covered(), mask, np.uint32(PixelFlag.GAP)))


def has_mask(file: Hdf5File, *, frames_path: str = "") -> bool:
    """Whether the file has a mask for frames, even one that calls every pixel good."""
    return seen_from(file, frames_path).dataset(*CXI_MASKS, *NXMX_MASKS) is not None


def underload_of(file: Hdf5File, *, frames_path: str = "") -> float:
    """Lowest value that is a measurement, the highest of several; NaN if the file says none."""
    values = _numbers(seen_from(file, frames_path), f"{NXMX}/underload_value")
    known = values[np.isfinite(values)] if values is not None else np.zeros(0)
    return float(known.max()) if known.size else math.nan


def _name(file: Hdf5File) -> str:
    """Name of the detector."""
    dataset = file.dataset(f"{CXI}/description", f"{NXMX}/description")
    if dataset is None or dataset.shape not in ((), (1,)):
        return "detector_1"
    return str(file.read(dataset).ravel()[0])


def _positive(file: Hdf5File, paths: tuple[str, ...]) -> float:
    """Read a number that means something only above zero; NaN if there is none.

    Of one for each event, or each panel, it is the lowest: of a saturation no full pixel is missed.
    """
    values = _numbers(file, *paths)
    known = np.zeros(0) if values is None else values[np.isfinite(values) & (values > 0)]
    return float(known.min()) if known.size else math.nan


def _length(file: Hdf5File, paths: tuple[str, ...], *, most: float) -> float:
    """Read a length above zero in metres; NaN if there is none."""
    values, dataset = _numbers(file, *paths), file.dataset(*paths)
    if values is None or dataset is None or values.size == 0:
        return math.nan
    known = values[np.isfinite(values) & (values > 0)]
    return float(np.median(in_metres(file, dataset, known, most=most))) if known.size else math.nan


def _beam(file: Hdf5File, path: str, pixel_size: float) -> float:
    """Read the beam's place on the detector in pixels; NaN if it is not known."""
    values, dataset = _numbers(file, path), file.dataset(path)
    if values is None or dataset is None or values.size == 0:
        return math.nan
    value = float(in_pixels(file, dataset, values.ravel()[:1], pixel_size=pixel_size)[0])
    # A length divided by a length leaves noise in the last digits; see `_xy`.
    value = round(value, 9)
    return value if math.isfinite(value) and value > 0 else math.nan


def _numbers(file: Hdf5File, *paths: str) -> NDArray[np.float64] | None:
    """Read the first of these datasets that holds numbers, or None."""
    dataset = file.dataset(*paths)
    if dataset is None or dataset.dtype.kind not in "iuf" or find_holes(file, dataset).any():
        return None
    return np.asarray(file.read(dataset), np.float64)


def _default_panels(
    file: Hdf5File, frame_shape: tuple[int, ...], pixel_size: float
) -> tuple[Panel, ...]:
    """Panels as a slab along y with the beam at `beam_center_x`, `beam_center_y` or its centre."""
    n_panels = frame_shape[0] if len(frame_shape) == 3 else 1
    n_y, n_x = frame_shape[-2:]
    beam_x = _beam(file, f"{NXMX}/beam_center_x", pixel_size)
    beam_y = _beam(file, f"{NXMX}/beam_center_y", pixel_size)
    left = -n_x / 2 if math.isnan(beam_x) else -beam_x
    top = -n_panels * n_y / 2 if math.isnan(beam_y) else -beam_y
    return tuple(Panel(name=f"p{i}", corner=(left, top + i * n_y)) for i in range(n_panels))


def _by_modules(
    file: Hdf5File, frame_shape: tuple[int, ...], pixel_size: float
) -> tuple[tuple[Panel, ...], tuple[Sensor, ...], float]:
    """Panels where the modules of a NeXus detector lie, or else by the beam; size of a pixel.

    Sensors where modules are no whole panels.
    """
    panels = _default_panels(file, frame_shape, pixel_size)
    sensors, side = read_modules(file, frame_shape)
    if not sensors or (len(sensors) == 1 and not _has_beam(file, sensors[0], side)):
        return panels, (), pixel_size
    n_y, n_x = frame_shape[-2:]
    whole = [((i * n_y, (i + 1) * n_y), (0, n_x)) for i in range(len(panels))]
    sensors = tuple(sorted(sensors, key=lambda sensor: (sensor.rows, sensor.columns)))
    if [(sensor.rows, sensor.columns) for sensor in sensors] != whole:
        return panels, sensors, side
    placed = (Panel(name=s.name, corner=s.corner, fast=s.fast, slow=s.slow) for s in sensors)
    return tuple(placed), (), side


def _has_beam(file: Hdf5File, sensor: Sensor, side: float) -> bool:
    """Whether a lone module lies where the beam says, if it does: zeros are written for unknown."""
    if not any(sensor.corner):
        return False
    steps = np.array([sensor.fast, sensor.slow]).T
    told = [_beam(file, f"{NXMX}/beam_center_{axis}", side) for axis in "xy"]
    if abs(np.linalg.det(steps)) < LEAST_AREA:
        return False
    beam = np.linalg.solve(steps, -np.array(sensor.corner))
    return not any(abs(one - other) > 1 for one, other in zip(beam, told, strict=True))


def _placed_panels(
    file: Hdf5File, frame_shape: tuple[int, ...], pixel_size: float
) -> tuple[Panel, ...]:
    """Panels where the file puts them; none if it does not."""
    corners = _numbers(file, f"{CXI}/corner_position")
    if corners is None or corners.shape[-1:] != (3,) or not np.isfinite(corners).all():
        return ()
    corners = _in_metres(file, f"{CXI}/corner_position", corners.reshape(-1, 3))
    names = _panel_names(file, frame_shape)
    # Zeros are what a program writes that has to write a corner and does not know it.
    if math.isnan(pixel_size) or len(corners) != len(names) or not corners[:, :2].any():
        return ()
    steps = _numbers(file, f"{CXI}/basis_vectors")
    if steps is None or steps.size != len(corners) * 6 or not np.isfinite(steps).all():
        steps = np.tile([[0.0, pixel_size, 0.0], [pixel_size, 0.0, 0.0]], (len(corners), 1, 1))
    else:
        steps = _in_metres(file, f"{CXI}/basis_vectors", steps)
    places = zip(names, corners / pixel_size, steps.reshape(-1, 2, 3) / pixel_size, strict=True)
    return tuple(
        Panel(name=name, corner=_xy(corner), fast=_xy(fast), slow=_xy(slow))
        for name, corner, (slow, fast) in places
    )


def _in_metres(file: Hdf5File, path: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lengths of a dataset in metres, whatever they are written in."""
    dataset = file.dataset(path)
    return values if dataset is None else in_metres(file, dataset, values, most=MOST_DISTANCE_M)


def _panel_names(file: Hdf5File, frame_shape: tuple[int, ...]) -> list[str]:
    """Names of the panels; only these tell a slab of panels from one panel."""
    default = [f"p{i}" for i in range(frame_shape[0] if len(frame_shape) == 3 else 1)]
    dataset = file.dataset(f"{CXI}/module_identifier")
    if dataset is None or dataset.ndim != 1 or h5py.check_string_dtype(dataset.dtype) is None:
        return default
    names = [str(name) for name in file.read(dataset)]
    divides = len(frame_shape) == 2 and bool(names) and frame_shape[0] % len(names) == 0
    return names if divides or len(names) == len(default) else default


def _xy(vector: NDArray[np.float64]) -> tuple[float, float]:
    """First two components in pixels, as plain numbers."""
    # Metres divided by metres leave noise in the last digits, which could move a panel by a pixel
    # where the picture is assembled.
    return round(float(vector[0]), 9), round(float(vector[1]), 9)


def axes_of_mask(shape: tuple[int, ...], frame_shape: tuple[int, ...]) -> int | None:
    """Axes of a mask in front of those of a frame: one of events, or none.

    Panels may lie one below the other in either of them. Any other shape of as many pixels is one
    of other pixels.

    Returns
    -------
    int or None
        None if it is a mask of other frames.

    Examples
    --------
    >>> [axes_of_mask(shape, (2, 3, 4)) for shape in ((2, 3, 4), (6, 4), (9, 6, 4), (4, 6))]
    [0, 0, 1, None]
    """
    forms = (frame_shape, (math.prod(frame_shape[:-1]), frame_shape[-1]))
    if shape in forms or (shape[:1] == (1,) and shape[1:] in forms):
        return 0
    return 1 if shape[1:] in forms else None


def read_mask(
    file: Hdf5File,
    frame_shape: tuple[int, ...],
    *,
    paths: tuple[str, ...] = (),
    good_is: int | None = None,
) -> NDArray[np.uint32] | None:
    """Mask of a run in `PixelFlag` bits, or None if the file has none.

    Parameters
    ----------
    paths : tuple of str
        Where it may be; by default where CXI and NXmx keep it.
    good_is : int, optional
        0 or 1: value of good pixels; by default zero.

    Raises
    ------
    SchemaError
        If it is no mask of such frames, or has no good pixel.
    SourceError
        If it was not written whole.
    """
    of_cxi = file.dataset(*(paths or CXI_MASKS))
    nxmx = of_cxi is None and not paths
    dataset = file.dataset(*NXMX_MASKS) if nxmx else of_cxi
    if dataset is None:
        return None
    where = f"{file.path}: {dataset.name}"
    if dataset.dtype.kind not in "biuf":
        raise SchemaError(f"{where}: expected a mask of numbers, found {dataset.dtype}")
    axes = axes_of_mask(dataset.shape, frame_shape)
    if axes is None:
        raise SchemaError(
            f"{where}: expected a mask of the shape of a frame, {frame_shape}, found "
            f"{dataset.shape}; repair the mask or take it out of the file"
        )
    flags = partial(_flags, nxmx=nxmx, good_is=good_is)
    if axes:
        mask = _common_flags(file, dataset, flags, frame_shape)
    elif find_holes(file, dataset).any():
        raise SourceError(f"{where} is a mask with parts that were never written; fetch it again")
    else:
        mask = flags(file.read(dataset))
    if mask.all():
        good = good_is or 0
        raise SchemaError(
            f"{where}: expected {good} at good pixels, found no {good} at all; if the mask is the "
            f"other way round, give --mask-good-is {1 - good}"
        )
    return mask.reshape(frame_shape)


def _flags(values: NDArray[np.generic], *, nxmx: bool, good_is: int | None) -> NDArray[np.uint32]:
    """Turn a mask into `PixelFlag` bits; what is not zero is bad, or good if one is."""
    if good_is == 1:
        good = np.isfinite(values) & (values != 0)
        return np.where(good, np.uint32(0), np.uint32(PixelFlag.BAD))
    if values.dtype.kind in "bf":
        return np.where(values != 0, np.uint32(PixelFlag.BAD), np.uint32(0))
    bits = values.astype(np.uint32)
    if not nxmx:
        bits[bits == HAS_SIGNAL] = 0
        return bits
    flags = np.where(bits == 0, np.uint32(0), np.uint32(PixelFlag.BAD))
    flags[bits == NXMX_GAP] = PixelFlag.GAP
    return flags


def _common_flags(
    file: Hdf5File,
    dataset: h5py.Dataset,
    flags: Callable[[NDArray[np.generic]], NDArray[np.uint32]],
    frame_shape: tuple[int, ...],
) -> NDArray[np.uint32]:
    """Flags that a pixel has in every event looked at, in the shape of a frame.

    A run has one mask. A pixel that is bad in some events only stays good: leaving it out
    everywhere could hide Bragg peaks and lose hits, while a bad pixel more in one event at worst
    keeps a miss. Of each panel at most `MOST_MASKS` events, spread evenly over those that have a
    mask of it, are looked at; a panel that no event has a mask of, one that was off say, is good.
    """
    n_panels = frame_shape[0] if len(frame_shape) == 3 else 1
    there = ~find_missing(file, dataset, n_panels)
    if not there.any():
        raise SourceError(f"{file.path}: {dataset.name} is a mask that was never written")
    chosen = np.zeros_like(there)
    for panel in range(n_panels):
        events = np.flatnonzero(there[:, panel])
        spread = np.linspace(0, events.size - 1, min(events.size, MOST_MASKS)).astype(int)
        chosen[events[spread], panel] = True
    shape = n_panels, math.prod(frame_shape) // n_panels
    always_bad = np.tile(np.any(there, axis=0).reshape(-1, 1), shape[1])
    common = np.zeros(shape, np.uint32)
    for event in np.flatnonzero(chosen.any(axis=1)).tolist():
        file.attempt(partial(check_chunks, dataset, event, event + 1), dataset.name)
        values = file.attempt(partial(dataset.__getitem__, event), dataset.name)
        mask = flags(values).reshape(n_panels, -1) * chosen[event][:, np.newaxis]
        always_bad &= (mask != 0) | ~chosen[event][:, np.newaxis]
        common |= mask
    return np.where(always_bad, common, 0).astype(np.uint32).reshape(frame_shape)
