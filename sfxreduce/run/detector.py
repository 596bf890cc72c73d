"""Where pixels lie, which of them can be trusted, and which of them a scorer looks at.

Two pictures of one frame are used. The *source* frame is what the detector delivers: ``(y, x)``,
or ``(panel, y, x)`` for detectors read out panel by panel. The *assembled* picture puts every
panel where it stands: row and column are the laboratory's y and x in whole pixels. Windows are
regions of the assembled picture, because "the central 350 x 350 pixels" mean nothing before
assembly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntFlag
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SchemaError

__all__ = ["LEAST_USABLE", "Detector", "Panel", "PixelFlag", "Sensor"]

MOST_FRAME_PIXELS = 2**26
"""Pixels of the largest frame: four times the largest camera; its mask takes 256 MiB."""

MOST_PICTURE_PIXELS = 100
"""Pixels of the largest assembled picture, for each pixel of a frame."""

LEAST_USABLE = 0.5
"""Share of the pixels that must be usable for a score: what was not seen must not be rejected.
Chosen, not measured; of any camera, a mask that is the other way round leaves less."""

SLABS = ((1480, 1552), (5632, 384), (4096, 1024), (8192, 512))
"""Shapes (y, x) in which CSPAD, ePix10k 2M, Jungfrau 4M and octal MPCCD panels are stored in one
array: the picture that such a frame makes is not what the detector saw."""


class PixelFlag(IntFlag):
    """Bits of a pixel mask; zero is a good pixel.

    The values are those of the CXI file format, version 1.6 [1]_.

    References
    ----------
    .. [1] F. R. N. C. Maia, Nat. Methods 9 (2012) 854. doi:10.1038/nmeth.2110
    """

    INVALID = 0x1
    SATURATED = 0x2
    HOT = 0x4
    DEAD = 0x8
    SHADOWED = 0x10
    BAD = 0x80
    GAP = 0x200
    NOISY = 0x400


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One flat sensor.

    Parameters
    ----------
    corner : tuple of float
        (x, y) of the outer corner of the panel's first pixel, in pixels, from the beam.
    fast, slow : tuple of float
        (x, y) steps in pixels from one pixel to the next along the panel's x and y axes.
    """

    name: str
    corner: tuple[float, float]
    fast: tuple[float, float] = (1.0, 0.0)
    slow: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensor(Panel):
    """A rectangle of a frame's pixels that lies in one plane; a panel may hold several.

    Parameters
    ----------
    rows, columns : tuple of int
        First one and the one after the last, in a frame whose panels lie one below the other.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detector:
    """Panels, their place, and their mask.

    Parameters
    ----------
    panel_shape : tuple of int
        (y, x) pixels of one panel; all panels of a detector are alike.
    stacked : bool
        Whether frames carry a panel axis, ``(panel, y, x)``; a single panel may go without.
    pixel_size_m, distance_m : float
        Side of a pixel and detector distance in metres; NaN if unknown.
    adu_per_photon, saturation_adu : float
        Gain and full scale in detector units; NaN if unknown.
    mask : ndarray of uint32, optional
        `PixelFlag` bits in the shape of a frame; good everywhere if not given.
    sensors : tuple of Sensor
        Where the pixels lie if a geometry file says it, which takes precedence over the places of
        `panels`; pixels of no sensor have no place. None if each panel is one.
    crystfel : str
        Text of that file if it is CrystFEL's; empty without one.

    Raises
    ------
    SchemaError
        If the panels, the sensors, the mask and the frame shape contradict each other.
    """

    name: str
    panel_shape: tuple[int, int]
    panels: tuple[Panel, ...]
    stacked: bool = False
    pixel_size_m: float = math.nan
    distance_m: float = math.nan
    adu_per_photon: float = math.nan
    saturation_adu: float = math.nan
    mask: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32), repr=False)
    sensors: tuple[Sensor, ...] = field(default=(), repr=False)
    crystfel: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not self.panels or min(self.panel_shape) < 1:
            raise SchemaError(
                f"detector '{self.name}': expected panels with pixels, found {len(self.panels)} "
                f"panels of {self.panel_shape}; give at least one panel of one pixel"
            )
        if len(self.panels) > 1 and not self.stacked:
            raise SchemaError(
                f"detector '{self.name}': {len(self.panels)} panels need frames of shape "
                "(panel, y, x); set stacked=True"
            )
        if math.prod(self.frame_shape) > MOST_FRAME_PIXELS:
            raise SchemaError(
                f"detector '{self.name}': expected at most {MOST_FRAME_PIXELS} pixels in a frame, "
                f"found a frame of {self.frame_shape}; are its axes in order?"
            )
        mask = np.asarray(self.mask, np.uint32)
        if mask.size == 0:
            mask = np.zeros(self.frame_shape, np.uint32)
        if mask.shape != self.frame_shape:
            raise SchemaError(
                f"detector '{self.name}': expected a mask of shape {self.frame_shape}, found "
                f"{mask.shape}; a mask has the shape of one frame"
            )
        mask.setflags(write=False)
        object.__setattr__(self, "mask", mask)
        n_rows, n_columns = len(self.panels) * self.panel_shape[0], self.panel_shape[1]
        for sensor in self.sensors:
            (top, bottom), (left, right) = sensor.rows, sensor.columns
            if not (0 <= top < bottom <= n_rows and 0 <= left < right <= n_columns):
                raise SchemaError(
                    f"detector '{self.name}': expected sensors within {n_rows} x {n_columns} "
                    f"pixels, found '{sensor.name}' in rows {top} to {bottom - 1}, columns {left} "
                    f"to {right - 1}"
                )

    @classmethod
    def centred(
        cls,
        name: str,
        frame_shape: Sequence[int],
        *,
        pixel_size_m: float = math.nan,
        distance_m: float = math.nan,
        adu_per_photon: float = math.nan,
        saturation_adu: float = math.nan,
    ) -> Detector:
        """Detector of one panel with the beam at its centre.

        Parameters
        ----------
        frame_shape : sequence of int
            (y, x).
        pixel_size_m, distance_m, adu_per_photon, saturation_adu : float
            As of the class.

        Examples
        --------
        >>> Detector.centred("camera", (1750, 1750), distance_m=0.15).frame_shape
        (1750, 1750)
        """
        n_y, n_x = (int(n) for n in frame_shape)
        return cls(
            name=name,
            panel_shape=(n_y, n_x),
            panels=(Panel(name="p0", corner=(-n_x / 2, -n_y / 2)),),
            pixel_size_m=pixel_size_m,
            distance_m=distance_m,
            adu_per_photon=adu_per_photon,
            saturation_adu=saturation_adu,
        )

    @classmethod
    def unplaced(cls, name: str, frame_shape: Sequence[int]) -> Detector:
        """Detector of which only the frame's shape is known.

        One panel has the beam at its centre; several are stacked along y, as slabs are.

        Parameters
        ----------
        frame_shape : sequence of int
            (y, x) or (panel, y, x).

        Examples
        --------
        >>> Detector.unplaced("slabs", (4, 100, 200)).assembly().shape
        (400, 200)
        """
        if len(frame_shape) == 2:
            return cls.centred(name, frame_shape)
        n_panels, n_y, n_x = (int(n) for n in frame_shape)
        panels = tuple(
            Panel(name=f"p{p}", corner=(-n_x / 2, (p - n_panels / 2) * n_y))
            for p in range(n_panels)
        )
        return cls(name=name, panel_shape=(n_y, n_x), panels=panels, stacked=True)

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of a source frame: (y, x) or (panel, y, x)."""
        return (len(self.panels), *self.panel_shape) if self.stacked else self.panel_shape

    @property
    def frame_dims(self) -> tuple[str, ...]:
        """Names of the axes of a source frame."""
        return ("panel", "y", "x") if self.stacked else ("y", "x")

    def with_mask(self, mask: NDArray[np.uint32]) -> Detector:
        """Return the same detector with another mask, of the shape of a frame."""
        return replace(self, mask=mask)

    def good(self) -> NDArray[np.bool_]:
        """Pixels that can be trusted, in the shape of a frame."""
        return np.equal(self.mask, 0)

    def usable_share(self) -> float:
        """Share of the pixels that can be trusted, gaps between the panels aside."""
        n_pixels = int(np.count_nonzero(self.mask != PixelFlag.GAP))
        return int(np.count_nonzero(self.mask == 0)) / (n_pixels or 1)

    def is_usable(self) -> bool:
        """Whether enough pixels can be trusted to score whole frames: at least `LEAST_USABLE`."""
        return self.usable_share() >= LEAST_USABLE

    @property
    def is_assumed(self) -> bool:
        """Whether its panels lie where nothing says that they do.

        So it is with several, each right below the one before, which no detector is built like, and
        with a frame of several panels that is taken for one picture.
        """
        if self.sensors:
            return False
        first, n_y = self.panels[0], self.panel_shape[0]
        stack = [
            Panel(name=panel.name, corner=(first.corner[0], first.corner[1] + place * n_y))
            for place, panel in enumerate(self.panels)
        ]
        return self.panels == tuple(stack) and (len(stack) > 1 or self.panel_shape in SLABS)

    @property
    def geometry(self) -> str:
        """Whether the places of its pixels are "given" or "assumed"."""
        return "assumed" if self.is_assumed else "given"

    def placed(self) -> tuple[Sensor, ...]:
        """Rectangles of pixels that lie in one plane each: the sensors, or every panel whole."""
        n_y, n_x = self.panel_shape
        return self.sensors or tuple(
            Sensor(
                name=panel.name,
                corner=panel.corner,
                fast=panel.fast,
                slow=panel.slow,
                rows=(place * n_y, (place + 1) * n_y),
                columns=(0, n_x),
            )
            for place, panel in enumerate(self.panels)
        )

    def covered(self) -> NDArray[np.bool_]:
        """Pixels that have a place, in the shape of a frame."""
        n_y, n_x = self.panel_shape
        covered = np.zeros((len(self.panels) * n_y, n_x), np.bool_)
        for sensor in self.placed():
            covered[slice(*sensor.rows), slice(*sensor.columns)] = True
        return covered.reshape(self.frame_shape)

    def positions(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Centres of all pixels, (x, y) in pixels from the beam, each in the shape of a frame.

        NaN where a pixel belongs to no sensor.
        """
        n_y, n_x = self.panel_shape
        x, y = np.full((2, len(self.panels) * n_y, n_x), np.nan)
        for sensor in self.placed():
            rows, columns = slice(*sensor.rows), slice(*sensor.columns)
            size = x[rows, columns].shape
            j, i = np.meshgrid(*(np.arange(n) + 0.5 for n in size), indexing="ij")
            x[rows, columns] = sensor.corner[0] + i * sensor.fast[0] + j * sensor.slow[0]
            y[rows, columns] = sensor.corner[1] + i * sensor.fast[1] + j * sensor.slow[1]
        return x.reshape(self.frame_shape), y.reshape(self.frame_shape)

    def radius(self) -> NDArray[np.float64]:
        """Distance of every pixel's centre from the beam in pixels, in the shape of a frame.

        Pixels of no sensor, which are masked, are as far away as the farthest of the others.
        """
        radius: NDArray[np.float64] = np.hypot(*self.positions())
        covered = self.covered()
        radius[~covered] = radius[covered].max()
        return radius

    def assembly(self) -> NDArray[np.int64]:
        """Which source pixel shows at each place of the assembled picture.

        Worked out once and kept: do not write into it.

        Returns
        -------
        ndarray of int64
            Shape (row, column) of the assembled picture; a flat index into a source frame, or -1
            where no panel is.

        Raises
        ------
        SchemaError
            If the panels lie so far apart that their places cannot be meant in pixels.
        """
        return _assembly(self.name, self.panel_shape, self.panels, self.stacked, self.sensors)

    def assembled_positions(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Place of every pixel's centre in the assembled picture, (row, column), fractions kept.

        The whole part is the row and column at which `assembly` shows the pixel; NaN where it has
        no place.
        """
        covered = self.covered()
        x, y = self.positions()
        return y - y[covered].min() + 0.5, x - x[covered].min() + 0.5


@lru_cache(maxsize=4)
def _assembly(
    name: str,
    panel_shape: tuple[int, int],
    panels: tuple[Panel, ...],
    stacked: bool,
    sensors: tuple[Sensor, ...],
) -> NDArray[np.int64]:
    """See `Detector.assembly`. It is the same for every mask, and a run may have several."""
    detector = Detector(
        name=name, panel_shape=panel_shape, panels=panels, stacked=stacked, sensors=sensors
    )
    covered = detector.covered()
    places = [place[covered] for place in detector.assembled_positions()]
    n_rows, n_columns = (float(place.max()) for place in places)
    # Corners in millimetres would ask for terabytes. Not "more than", so that NaN is caught.
    if not n_rows * n_columns <= MOST_PICTURE_PIXELS * detector.mask.size:
        raise SchemaError(
            f"detector '{detector.name}': expected corner positions of the panels that make a "
            f"picture of about the frame's {detector.mask.size} pixels, found one of "
            f"{n_rows:.3g} x {n_columns:.3g}; are corners and pixel size in metres?"
        )
    row, column = (place.astype(np.int64) for place in places)
    picture = np.full((int(row.max()) + 1, int(column.max()) + 1), -1, np.int64)
    picture[row, column] = np.flatnonzero(covered)
    picture.setflags(write=False)
    return picture
