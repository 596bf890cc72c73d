"""What goes into an NXmx file: events, where each sensor lies, and what it is made of."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.errors import UsageError
from sfxreduce.io.geometry.crystfel import parse_geometry
from sfxreduce.io.store.metadata import illegal_value
from sfxreduce.run.detector import Detector, PixelFlag
from sfxreduce.run.run import FrameSource

__all__ = [
    "NxmxContent",
    "NxmxModule",
    "SensorLayer",
    "check_nxmx_codec",
    "modules_of",
    "nxmx_mask",
    "parse_sensor",
    "trusted_range",
]

NXMX_CODECS = ("gzip", "bslz4")

MATERIALS = ("Si", "CdTe", "GaAs")
"""Those whose attenuation DIALS 3.12 looks up; a file that names another is refused by it."""

THICKNESS_UNITS: Mapping[str, float] = {"um": 1e-6, "µm": 1e-6, "μm": 1e-6, "mm": 1e-3, "m": 1.0}
THICKNESS_M = (1e-6, 1e-2)
"""Layers that absorb X-rays are 10 um to a few mm: outside, the number is in another unit."""

SENSORS: Mapping[str, tuple[str, float]] = {
    "agipd": ("Si", 500e-6),
    "cspad": ("Si", 500e-6),
    "eiger": ("Si", 450e-6),
    "epix10k": ("Si", 500e-6),
    "jungfrau": ("Si", 320e-6),
    "pilatus": ("Si", 320e-6),
}
"""Layers of common detectors in metres, as most are built: AGIPD (Allahgholi et al., J. Synchrotron
Rad. 26 (2019) 74), CSPAD (Blaj et al., J. Synchrotron Rad. 22 (2015) 577), EIGER (Casanas et al.,
Acta Cryst. D 72 (2016) 1036), ePix10k (van Driel et al., J. Synchrotron Rad. 27 (2020) 608),
JUNGFRAU (Mozzanica et al., J. Instrum. 11 (2016) C02047), PILATUS (Henrich et al., Nucl. Instrum.
Methods A 607 (2009) 247)."""

ONE_BUILD = ("agipd", "cspad", "epix10k", "jungfrau")
"""Those whose name says it; others are sold with several sensors, and the user has to say it."""

MOST_SKEW = 1e-3
"""Cosine between the axes of a pixel up to which they are turned to a right angle, half of it each;
DIALS refuses more than 1e-6. Geometries are refined to 1e-4 or better, and 1e-3 moves a pixel of a
panel of 200 by less than 0.1."""

# Bits of NXmx: a gap, dead, over-responding, noisy; the last is left for whatever users mask.
NXMX_BITS: Mapping[PixelFlag, int] = {
    PixelFlag.GAP: 0x1,
    PixelFlag.DEAD: 0x2,
    PixelFlag.HOT: 0x8,
    PixelFlag.NOISY: 0x10,
}
NXMX_USER = 0x100

MOST_DIALS = 2**31 - 1
"""DIALS holds pixels as 32 bits with a sign."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorLayer:
    """What the photons are absorbed in: spots of slanting rays lie deeper in it.

    Parameters
    ----------
    material : str
        One of `MATERIALS`.
    thickness_m : float
        In metres.
    """

    material: str
    thickness_m: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NxmxModule:
    """A flat sensor in the laboratory: x to the left seen along the beam, y up, z downstream.

    These axes are those of CrystFEL and of NeXus alike.

    Parameters
    ----------
    rows, columns : tuple of int
        First one and the one after the last, in a frame whose panels lie one below the other.
    corner : tuple of float
        (x, y) of the outer corner of its first pixel in metres, and how far it lies behind the
        detector's distance.
    fast, slow : tuple of float
        Directions of length 1.
    pixel_size_m : tuple of float
        Along fast and slow.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    corner: tuple[float, float, float]
    fast: tuple[float, float, float]
    slow: tuple[float, float, float]
    pixel_size_m: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NxmxContent:
    """What goes into an NXmx file.

    Parameters
    ----------
    source : FrameSource
        Frames of the events to write, all of them, in order.
    columns : Dataset
        `EVENT_COLUMNS` of these events.
    codec : str
        How frames are packed, one of `NXMX_CODECS`.
    link : tuple of str, optional
        A file, as seen from the folder of the one to write, and the dataset in it that holds the
        frames, panels one below the other. Without it they are written.

    Raises
    ------
    UsageError
        If there is no such codec, or the axes of a sensor are not at a right angle.
    """

    source: FrameSource
    columns: xr.Dataset
    layer: SensorLayer
    codec: str = "gzip"
    link: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        check_nxmx_codec(self.codec)
        modules_of(self.source.detector)

    @property
    def slab_shape(self) -> tuple[int, int]:
        """Shape (y, x) of a frame in the file, panels one below the other."""
        n_y, n_x = self.source.detector.panel_shape
        return len(self.source.detector.panels) * n_y, n_x

    @property
    def n_bytes(self) -> int:
        """Bytes of all that is written, before it is packed."""
        pixels = math.prod(self.slab_shape)
        frames = 0 if self.link else self.source.n_events * pixels * self.source.dtype.itemsize
        return frames + 4 * pixels


def check_nxmx_codec(name: str) -> None:
    """Refuse a codec that frames cannot be packed with.

    Raises
    ------
    UsageError
        If it is none of `NXMX_CODECS`.
    """
    if name not in NXMX_CODECS:
        raise UsageError(
            f"--nxmx-codec: expected one of {', '.join(NXMX_CODECS)}, found '{name}'; choose one"
        )


def parse_sensor(text: str, *, detector: str) -> SensorLayer:
    """Sensitive layer by what the user says, else by the detector's name.

    Parameters
    ----------
    text : str
        Material and thickness, "Si:320um", or one of `SENSORS`; empty to go by the detector.
    detector : str
        Its name.

    Raises
    ------
    UsageError
        If the text is neither, or nothing is known of the detector.

    Examples
    --------
    >>> parse_sensor("CdTe:0.75 mm", detector="")
    SensorLayer(material='CdTe', thickness_m=0.00075)
    >>> parse_sensor("", detector="jungfrau-4m").thickness_m
    0.00032
    """
    known = ", ".join(SENSORS)
    if text.lower() in SENSORS:
        material, thickness_m = SENSORS[text.lower()]
        return SensorLayer(material=material, thickness_m=thickness_m)
    if not text:
        name = re.split(r"[^a-z0-9]", detector.lower())[0]
        if name not in ONE_BUILD:
            raise UsageError(
                "NXmx: DIALS needs the material and thickness of the sensor, which nothing says "
                f"of '{detector}'; give them as --sensor Si:320um, or one of {known}"
            )
        return parse_sensor(name, detector=detector)
    found = re.fullmatch(r"(\w+):([0-9.]+) ?(\w+)", text)
    if found is None or found[1] not in MATERIALS or found[3] not in THICKNESS_UNITS:
        raise UsageError(
            f"--sensor: expected {', '.join(MATERIALS)} and a thickness in um or mm, as Si:320um, "
            f"or one of {known}, found '{text}'"
        )
    try:
        thickness_m = round(float(found[2]) * THICKNESS_UNITS[found[3]], 12)
    except ValueError:
        thickness_m = math.nan
    low, high = THICKNESS_M
    if not low <= thickness_m <= high:
        raise UsageError(
            f"--sensor: expected a thickness from {low * 1e6:g} um to {high * 1e3:g} mm, found "
            f"'{text}'"
        )
    return SensorLayer(material=found[1], thickness_m=thickness_m)


def modules_of(detector: Detector) -> tuple[NxmxModule, ...]:
    """Sensors of a detector in the laboratory.

    Raises
    ------
    UsageError
        If the axes of one are far from a right angle, which DIALS refuses.
    """
    placed, pixel = detector.placed(), detector.pixel_size_m
    depths = _depths(detector)
    modules = []
    for sensor, (behind, fast_z, slow_z) in zip(placed, depths, strict=True):
        fast = np.array([*sensor.fast, fast_z]) * pixel
        slow = np.array([*sensor.slow, slow_z]) * pixel
        sizes = float(np.linalg.norm(fast)), float(np.linalg.norm(slow))
        f, s = fast / sizes[0], slow / sizes[1]
        skew = float(f @ s)
        if abs(skew) > MOST_SKEW:
            raise UsageError(
                f"NXmx: expected the axes of panel '{sensor.name}' at a right angle, which DIALS "
                f"asks for, found {math.degrees(math.acos(skew)):.3f} degrees; correct fs and ss "
                "in the geometry file"
            )
        f, s = _at_right_angle(f, s, skew)
        modules.append(
            NxmxModule(
                rows=sensor.rows,
                columns=sensor.columns,
                corner=(sensor.corner[0] * pixel, sensor.corner[1] * pixel, behind),
                fast=_vector(f),
                slow=_vector(s),
                pixel_size_m=sizes,
            )
        )
    return tuple(modules)


def _depths(detector: Detector) -> list[tuple[float, float, float]]:
    """Offset of each sensor along the beam in metres, and the steps of its axes in pixels there."""
    if not detector.crystfel:
        return [(0.0, 0.0, 0.0) for _ in detector.placed()]
    panels = parse_geometry(detector.crystfel, file=detector.name).panels
    # The detector's distance is the mean of its panels'.
    middle = float(np.mean([panel.offset_m for panel in panels]))
    res = panels[0].res
    return [
        (
            panel.offset_m - middle,
            panel.fast[2] * res / panel.res,
            panel.slow[2] * res / panel.res,
        )
        for panel in panels
    ]


def _at_right_angle(
    fast: NDArray[np.float64], slow: NDArray[np.float64], skew: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Turn two directions, each by half, until they are at a right angle."""
    if not skew:
        return fast, slow
    middle, across = fast + slow, fast - slow
    middle, across = middle / np.linalg.norm(middle), across / np.linalg.norm(across)
    return (middle + across) / math.sqrt(2), (middle - across) / math.sqrt(2)


def _vector(values: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = values.tolist()
    return x, y, z


def nxmx_mask(detector: Detector) -> NDArray[np.uint32]:
    """Mask in the bits of NXmx, panels one below the other; zero is good.

    Examples
    --------
    >>> mask = np.array([[0, 0x200], [0x80, 0x4]], np.uint32)
    >>> nxmx_mask(Detector.centred("camera", (2, 2)).with_mask(mask)).tolist()
    [[0, 1], [256, 8]]
    """
    mask = detector.mask.reshape(-1, detector.panel_shape[1])
    bits = np.zeros(mask.shape, np.uint32)
    for flag, bit in NXMX_BITS.items():
        bits[(mask & np.uint32(flag)) != 0] |= np.uint32(bit)
    bits[(mask != 0) & (bits == 0)] = NXMX_USER
    return bits


def trusted_range(dtype: np.dtype[np.generic], saturation_adu: float) -> tuple[int, int]:
    """Lowest and highest value that is a measurement.

    Parameters
    ----------
    saturation_adu : float
        Full scale of the detector; NaN if unknown.

    Examples
    --------
    >>> trusted_range(np.dtype("int16"), 16383.0), trusted_range(np.dtype("uint16"), 65535.0)
    ((-32767, 16383), (0, 65534))
    """
    low, high = -MOST_DIALS, MOST_DIALS
    if dtype.kind in "iu":
        limits = np.iinfo(dtype.str)
        # What a frame that cannot be read is filled with is at one end.
        hole = illegal_value(dtype)
        low = max(low, int(limits.min) + (hole == limits.min))
        high = min(high, int(limits.max) - (hole == limits.max))
    return low, high if math.isnan(saturation_adu) else min(high, math.floor(saturation_adu))
