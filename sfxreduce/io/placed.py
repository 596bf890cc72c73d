"""A run whose pixels lie where a geometry file says, CrystFEL's or a detector in NeXus form."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.errors import RunNotFound, SchemaError, UsageError
from sfxreduce.io.chunks.layout import Layout
from sfxreduce.io.files.safe_read import read_small
from sfxreduce.io.geometry.crystfel import (
    CrystfelGeometry,
    parse_geometry,
)
from sfxreduce.io.geometry.patch import with_value
from sfxreduce.io.geometry.statements import GeometryValue
from sfxreduce.io.masks import (
    GivenMask,
    bad_by_geometry,
    bad_by_mask_file,
    bad_by_masks,
    bad_by_value,
    frame_extent,
    panel_rows,
)
from sfxreduce.io.readers.hdf5.detector import read_detector
from sfxreduce.io.readers.hdf5.file import open_hdf5
from sfxreduce.io.readers.hdf5.master import MasterFrames
from sfxreduce.io.readers.hdf5.run import CxiFrames
from sfxreduce.io.readers.hdf5.unwritten import find_holes
from sfxreduce.io.sandbox.source import UntrustedFrames
from sfxreduce.io.writers.shards import TiledSource
from sfxreduce.run.detector import Detector, PixelFlag, Sensor
from sfxreduce.run.run import FrameSource, Reading, Run, WrappedFrames, decoded_share, read_into
from sfxreduce.run.window import Box, Window

__all__ = [
    "PlacedFrames",
    "detector_of_geometry",
    "place_run",
    "read_geometry",
    "with_mask",
    "with_values",
]

MOST_GEOMETRY_BYTES = 4 << 20
"""Longest geometry file that is read: that of 16 million pixels in 256 chips takes 0.1 MB."""

NUMBERS = ("pixel_size_m", "distance_m", "adu_per_photon", "saturation_adu")

POSSIBLE = {
    "distance_m": (1e-3, 50.0),
    "pixel_size_m": (1e-7, 1e-2),
    "adu_per_photon": (1e-9, 1e9),
    "photon_energy_ev": (100.0, 200_000.0),
}
"""What a number may be: outside, it is in another unit. X-rays have 0.1 to 200 keV."""

NEXUS_SUFFIXES = (".nxs", ".h5", ".hdf5", ".cxi")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What a geometry file says of a detector; small, because every task brings it along.

    Parameters
    ----------
    pixel_size_m, distance_m, adu_per_photon, saturation_adu : float or None
        None where it does not say.
    crystfel : bytes
        Text of a CrystFEL geometry file, packed.
    masked : bytes
        Pixels that are bad by it, or by a mask of the user, in the order of a frame: bits, packed.
    turned : bool
        Whether good pixels in the mask of the source are those that it marks.
    """

    sensors: tuple[Sensor, ...]
    pixel_size_m: float | None
    distance_m: float | None
    adu_per_photon: float | None
    saturation_adu: float | None
    crystfel: bytes
    masked: bytes
    turned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedFrames(WrappedFrames):
    """A source whose detector is as a geometry file, or the user, says. See `FrameSource`.

    Parameters
    ----------
    geometry : Path or None
        The file, which counts as an input: no output may replace it. None if there is none, and
        numbers or a mask were given.
    mask : Path or None
        The same of a mask.
    """

    geometry: Path | None
    placement: Placement
    mask: Path | None = None

    @property
    def detector(self) -> Detector:
        """Geometry and mask: those of the file, and what else the source masks."""
        return _placed(self.source.detector, self.placement)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file and folder that frames and geometry are read from."""
        return (*self.source.inputs, *filter(None, (self.geometry, self.mask)))

    @property
    def layout(self) -> Layout | None:
        """Layout of the stored tiles; None if there are none."""
        return self.source.layout if isinstance(self.source, TiledSource) else None

    def encoded(self, events: Sequence[int]) -> Iterator[list[bytes | None]]:
        """Stored tiles of events; see `sfxreduce.io.writers.shards.TiledSource`.

        Raises
        ------
        SchemaError
            If there are none.
        """
        if not isinstance(self.source, TiledSource):
            raise SchemaError(f"{self.path}: its frames are not stored in tiles")
        return self.source.encoded(events)

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """Read events; the window lies on the picture that this geometry makes."""
        return self.source.read(events, None if window is None else self._on_source(window))

    def read_into(
        self, events: Sequence[int], window: Window | None, pixels: NDArray[np.generic]
    ) -> NDArray[np.uint32]:
        """Read events into an array of zeros. See `sfxreduce.run.run.ReadsInto`."""
        there = None if window is None else self._on_source(window)
        return read_into(self.source, events, there, pixels)

    def decoded_share(self, window: Window) -> float:
        """See `sfxreduce.run.run.ReadsPartly`."""
        return decoded_share(self.source, self._on_source(window))

    def _on_source(self, window: Window) -> Window:
        """The window for the source, which knows no other picture than its own."""
        placed = self.source.detector.sensors != self.placement.sensors
        return _on(window, self.detector) if placed else window


@dataclass(frozen=True, slots=True, kw_only=True)
class _PlacedWindow(Window):
    """A window that lies on the picture of one detector, whatever source it is read from."""

    placed: Detector

    def gather(self, detector: Detector) -> NDArray[np.int64]:  # noqa: ARG002 - Window's signature
        """Flat index into a source frame. See `Window.gather`."""
        return Window.gather(self, self.placed)

    def boxes(self, detector: Detector) -> tuple[Box, ...]:  # noqa: ARG002 - Window's signature
        """Source rectangles. See `Window.boxes`."""
        return Window.boxes(self, self.placed)


def _on(window: Window, detector: Detector) -> Window:
    return _PlacedWindow(
        name=window.name, tile_shape=window.tile_shape, origins=window.origins, placed=detector
    )


def place_run(run: Run, geometry: Path, *, roots: Sequence[str] = ()) -> Run:
    """Put the pixels of a run where a geometry file says.

    It takes precedence over what the run says of panels, pixel size, distance, gain, saturation and
    photon energy; what it leaves open stays as the run has it. Pixels that the run masks stay
    masked.

    Parameters
    ----------
    geometry : Path
        A CrystFEL geometry file, or an HDF5 file with the detector in NeXus or CXI form.
    roots : sequence of str
        Folders that links of an HDF5 file may lead into, besides its own.

    Raises
    ------
    RunNotFound
        If there is no such file.
    SchemaError
        If it cannot be understood, naming line and column.
    UsageError
        If it is of frames of another shape, or the run is read as untrusted.
    """
    if isinstance(run.source, UntrustedFrames):
        raise UsageError(
            "--geometry does not go with --untrusted: ingest the run with --geometry first, from a "
            "copy that you trust"
        )
    columns = run.columns
    if geometry.suffix.lower() in NEXUS_SUFFIXES:
        placement = _of_nexus(run.detector, geometry, roots)
    else:
        found = read_geometry(geometry)
        columns = _with_energy(run, found)
        placement = _of_crystfel(run, found, columns)
    source = PlacedFrames(source=run.source, geometry=geometry.absolute(), placement=placement)
    return replace(run, source=source, columns=columns)


def with_values(
    run: Run,
    *,
    distance_m: float | None = None,
    pixel_size_m: float | None = None,
    adu_per_photon: float | None = None,
    photon_energy_ev: float | None = None,
) -> Run:
    """Say what neither a run nor its geometry file does, or what they say wrong.

    Parameters
    ----------
    distance_m, pixel_size_m : float, optional
        Detector distance and side of a pixel in metres.
    adu_per_photon : float, optional
        Gain in detector units.
    photon_energy_ev : float, optional
        Of every event, in eV.

    Raises
    ------
    UsageError
        If a number cannot be meant in these units.
    """
    given = {
        "distance_m": distance_m,
        "pixel_size_m": pixel_size_m,
        "adu_per_photon": adu_per_photon,
        "photon_energy_ev": photon_energy_ev,
    }
    known: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for name, value in known.items():
        low, high = POSSIBLE[name]
        if not low <= value <= high:
            raise UsageError(
                f"--{name.replace('_', '-')}: expected {low:g} to {high:g}, found {value:g}"
            )
    columns = run.columns
    if "photon_energy_ev" in known:
        energies = np.full(run.n_events, known.pop("photon_energy_ev"))
        attributes = columns["photon_energy_ev"].attrs
        columns = columns.assign(photon_energy_ev=("event", energies, attributes))
    detector, source = run.detector, run.source
    text = _amended(detector, {**known, "photon_energy_ev": photon_energy_ev})
    placed = _as_placed(source)
    crystfel = zlib.compress(text.encode())
    placement = replace(placed.placement, crystfel=crystfel, **known)
    return replace(run, source=replace(placed, placement=placement), columns=columns)


def with_mask(run: Run, given: GivenMask, *, turned: bool = False) -> Run:
    """Mask what a mask of the user calls bad, besides what the run masks.

    Parameters
    ----------
    given : GivenMask
        Without a file only `turned` counts.
    turned : bool
        Take the pixels that the run masks for good, and the others for bad.

    Raises
    ------
    RunNotFound, SourceError
        See `bad_by_mask_file`.
    UsageError
        If the mask does not fit the run, leaves it no good pixel, or the run is read as untrusted.
    """
    if isinstance(run.source, UntrustedFrames):
        raise UsageError(
            "--mask does not go with --untrusted: ingest the run with --mask first, from a copy "
            "that you trust"
        )
    placed = _as_placed(run.source)
    if turned:
        placed = replace(placed, placement=replace(placed.placement, turned=True))
    if given.file:
        detector = placed.detector
        bad = bad_by_mask_file(given, detector)
        old = _unpacked(placed.placement.masked, bad.size)
        placement = replace(placed.placement, masked=_packed(bad.reshape(-1) | old))
        placed = replace(placed, placement=placement, mask=given.named[0].absolute())
    if not placed.detector.good().any():
        raise UsageError(
            f"{run.path}: expected good pixels, found none with --mask and --mask-good-is as they "
            "are; is the mask the other way round?"
        )
    return replace(run, source=placed)


def _as_placed(source: FrameSource) -> PlacedFrames:
    """A source that may be placed otherwise; nothing is, so far, where it was not before."""
    if isinstance(source, PlacedFrames):
        return source
    detector = source.detector
    placement = Placement(
        sensors=detector.sensors,
        pixel_size_m=None,
        distance_m=None,
        adu_per_photon=None,
        saturation_adu=None,
        crystfel=zlib.compress(detector.crystfel.encode()),
        masked=_packed(np.zeros(detector.mask.size, np.bool_)),
    )
    return PlacedFrames(source=source, geometry=None, placement=placement)


def _amended(detector: Detector, known: Mapping[str, float | None]) -> str:
    """Text of the geometry file that placed a detector, with these numbers in it."""
    text = detector.crystfel
    if not text:
        return ""
    panels = parse_geometry(text, file=detector.name).panels
    offset = float(np.mean([panel.offset_m for panel in panels]))
    pixel, gain = known.get("pixel_size_m"), known.get("adu_per_photon")
    distance, energy = known.get("distance_m"), known.get("photon_energy_ev")
    if pixel is not None and len({panel.res for panel in panels}) > 1:
        raise UsageError("--pixel-size-m: the geometry file has pixels of several sizes; drop it")
    statements = {
        "clen": None if distance is None else f"{distance - offset!r} m",
        "res": None if pixel is None else repr(1 / pixel),
        "adu_per_photon": None if gain is None else repr(gain),
        "photon_energy": None if energy is None else f"{energy!r} eV",
    }
    for name, value in statements.items():
        text = text if value is None else with_value(text, name, value)
    return text


def read_geometry(path: Path) -> CrystfelGeometry:
    """Read and parse a CrystFEL geometry file; see `parse_geometry`.

    Raises
    ------
    RunNotFound
        If there is no such file.
    """
    try:
        text = read_small(path, most_bytes=MOST_GEOMETRY_BYTES).decode()
    except OSError as error:
        raise RunNotFound(
            f"{path}: cannot be read ({error.strerror}); check the path given to --geometry"
        ) from error
    except UnicodeDecodeError as error:
        raise SchemaError(
            f"{path}: expected a CrystFEL geometry file, found bytes that are no text"
        ) from error
    return parse_geometry(text, file=str(path))


def detector_of_geometry(found: CrystfelGeometry) -> Detector:
    """Detector of a geometry file alone, with frames as large as its panels need."""
    rows, columns, height = frame_extent(found)
    n_panels = rows // height
    bare = Detector.unplaced("", (n_panels, height, columns) if n_panels > 1 else (rows, columns))
    sensors = _sensors(found, bare, of="")
    detector = replace(bare, sensors=sensors, pixel_size_m=1 / found.panels[0].res)
    return detector.with_mask(bad_by_geometry(found, detector).astype(np.uint32) * PixelFlag.BAD)


@lru_cache(maxsize=4)
def _placed(detector: Detector, placement: Placement) -> Detector:
    """The detector of a run as a geometry file places it, made once a process."""
    known = {
        name: getattr(placement, name) for name in NUMBERS if getattr(placement, name) is not None
    }
    placed = replace(
        detector,
        sensors=placement.sensors,
        crystfel=zlib.decompress(placement.crystfel).decode(),
        **known,
    )
    mask = detector.mask.copy()
    if placement.turned:
        mask = np.where(mask == 0, np.uint32(PixelFlag.BAD), np.uint32(0))
    masked = _unpacked(placement.masked, mask.size)
    mask.reshape(-1)[masked] |= np.uint32(PixelFlag.BAD)
    mask[~placed.covered()] = PixelFlag.GAP
    return placed.with_mask(mask)


def _unpacked(masked: bytes, n_pixels: int) -> NDArray[np.bool_]:
    bits = np.frombuffer(zlib.decompress(masked), np.uint8)
    return np.unpackbits(bits, count=n_pixels).astype(bool)


def _packed(masked: NDArray[np.bool_]) -> bytes:
    return zlib.compress(np.packbits(masked.reshape(-1)).tobytes(), 1)


def _of_nexus(detector: Detector, path: Path, roots: Sequence[str]) -> Placement:
    """Placement by the detector of an HDF5 file."""
    with open_hdf5(path, roots) as file:
        found = read_detector(file, detector.frame_shape)
    if found.is_assumed:
        raise SchemaError(
            f"{path}: expected the places of {len(found.panels)} panels, found none; give a "
            "CrystFEL geometry file"
        )
    numbers = (found.pixel_size_m, found.distance_m, found.adu_per_photon, found.saturation_adu)
    known = [value if math.isfinite(value) else None for value in numbers]
    return Placement(
        sensors=found.placed(),
        pixel_size_m=known[0],
        distance_m=known[1],
        adu_per_photon=known[2],
        saturation_adu=known[3],
        crystfel=zlib.compress(b""),
        masked=_packed(found.mask != 0),
    )


def _of_crystfel(run: Run, found: CrystfelGeometry, columns: xr.Dataset) -> Placement:
    """Placement by a CrystFEL geometry file."""
    detector = run.detector
    sensors = _sensors(found, detector, of=run.path)
    placed = replace(detector, sensors=sensors)
    masked = bad_by_geometry(found, placed) | bad_by_masks(run, found, placed)
    masked |= bad_by_value(run, found, placed)
    energies = columns["photon_energy_ev"].values
    known = energies[np.isfinite(energies)]
    saturation = min(panel.max_adu for panel in found.panels)
    if (masked | ~placed.covered()).all():
        raise SchemaError(f"{found.file}: expected good pixels, found none of {run.path}")
    return Placement(
        sensors=sensors,
        pixel_size_m=1 / found.panels[0].res,
        distance_m=_distance(run, found),
        adu_per_photon=_gain(found, float(np.median(known)) if known.size else math.nan),
        saturation_adu=saturation if math.isfinite(saturation) else None,
        crystfel=zlib.compress(found.text.encode()),
        masked=_packed(masked),
    )


def _sensors(found: CrystfelGeometry, detector: Detector, *, of: str) -> tuple[Sensor, ...]:
    """Panels of a geometry file as sensors of a detector, in pixels of the first one's size."""
    rows, columns, height = frame_extent(found)
    n_y, n_x = detector.panel_shape
    frame = (len(detector.panels) * n_y, n_x)
    if (rows, columns) != frame or (found.panels[0].modules and detector.stacked and height != n_y):
        modules = f"{rows // height} x " if rows != height else ""
        raise UsageError(
            f"{found.file}: its panels make frames of {modules}{height} x {columns} pixels, those "
            f"of {of} are {' x '.join(map(str, detector.frame_shape))}; give the geometry of this "
            "detector, with no_index for panels to leave out"
        )
    shift = [_known(quantity) for quantity in found.shift]
    res = found.panels[0].res
    taken = np.zeros(frame, np.bool_)
    sensors = []
    for panel in found.panels:
        where = slice(*panel_rows(panel, height)), slice(*panel.fs)
        if taken[where].any():
            raise SchemaError(f"{found.file}: panel '{panel.name}' has pixels of another panel")
        taken[where] = True
        scale = res / panel.res
        corner = [c * scale + s * res for c, s in zip(panel.corner, shift, strict=True)]
        sensors.append(
            Sensor(
                name=panel.name,
                corner=(corner[0], corner[1]),
                fast=(panel.fast[0] * scale, panel.fast[1] * scale),
                slow=(panel.slow[0] * scale, panel.slow[1] * scale),
                rows=panel_rows(panel, height),
                columns=panel.fs,
            )
        )
    return tuple(sensors)


def _known(quantity: GeometryValue) -> float:
    """Shift of the detector, zero where it is left to the data: it then differs by event."""
    return 0.0 if math.isnan(quantity.value) else quantity.value


def _gain(found: CrystfelGeometry, energy_ev: float) -> float | None:
    """ADU a photon, the median of the panels; None if the file does not say."""
    gains = [
        value * (energy_ev if unit == "eV" else 1.0)
        for value, unit in (panel.gain for panel in found.panels)
    ]
    gain = float(np.median(gains))
    return gain if math.isfinite(gain) and gain > 0 else None


def _distance(run: Run, found: CrystfelGeometry) -> float | None:
    """Distance of the detector in metres, the mean offset of its panels included."""
    offset = float(np.mean([panel.offset_m for panel in found.panels]))
    if found.distance is None:
        return None
    if not found.distance.path:
        return found.distance.value + offset
    stored = _per_event(run, found.distance)
    if stored is None:
        return None
    known = stored[np.isfinite(stored)]
    return float(np.median(known)) + offset if known.size else None


def _with_energy(run: Run, found: CrystfelGeometry) -> xr.Dataset:
    """Columns with the photon energies that the file gives, or says where to find."""
    if found.energy is None:
        return run.columns
    values: NDArray[np.float64] | None = np.full(run.n_events, found.energy.value)
    if found.energy.path:
        values = _per_event(run, found.energy)
    if values is None:
        return run.columns
    attributes = run.columns["photon_energy_ev"].attrs
    return run.columns.assign(photon_energy_ev=("event", values, attributes))


def _per_event(run: Run, quantity: GeometryValue) -> NDArray[np.float64] | None:
    """Metres or eV of every event from the file of the frames; None if it is not to be had."""
    source = run.source
    if not isinstance(source, CxiFrames | MasterFrames):
        return None
    with open_hdf5(source.path, source.roots) as file:
        dataset = file.dataset(quantity.path)
        if dataset is None or dataset.dtype.kind not in "iuf":
            return None
        if dataset.size != 1 and dataset.shape not in ((run.n_events,), (run.n_events, 1)):
            return None
        stored = np.asarray(file.read(dataset), np.float64).ravel()
        stored = np.where(find_holes(file, dataset), np.nan, stored)
    return np.array([quantity.of(value) for value in np.broadcast_to(stored, run.n_events)])
