"""A run whose pixels lie where a geometry file says, CrystFEL's or a detector in NeXus form."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.errors import RunNotFound, SchemaError, SourceError, UsageError
from sfxreduce.io.chunks.layout import Layout
from sfxreduce.io.files.safe_read import read_small
from sfxreduce.io.geometry.crystfel import (
    BadRegion,
    CrystfelGeometry,
    GeometryPanel,
    MaskPart,
    parse_geometry,
)
from sfxreduce.io.geometry.patch import with_value
from sfxreduce.io.geometry.statements import GeometryValue
from sfxreduce.io.readers.count_mask import MASK_FRAMES
from sfxreduce.io.readers.hdf5.detector import read_detector
from sfxreduce.io.readers.hdf5.file import Hdf5File, open_hdf5
from sfxreduce.io.readers.hdf5.master import MasterFrames
from sfxreduce.io.readers.hdf5.run import CxiFrames
from sfxreduce.io.readers.hdf5.unwritten import find_holes
from sfxreduce.io.sandbox.source import UntrustedFrames
from sfxreduce.io.writers.shards import TiledSource
from sfxreduce.run.detector import Detector, PixelFlag, Sensor
from sfxreduce.run.run import Reading, Run, WrappedFrames
from sfxreduce.run.window import Box, Window

__all__ = ["PlacedFrames", "detector_of_geometry", "place_run", "read_geometry", "with_values"]

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
        Pixels that are bad by it, in the order of a frame: bits, packed.
    """

    sensors: tuple[Sensor, ...]
    pixel_size_m: float | None
    distance_m: float | None
    adu_per_photon: float | None
    saturation_adu: float | None
    crystfel: bytes
    masked: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedFrames(WrappedFrames):
    """A source whose detector is as a geometry file, or the user, says. See `FrameSource`.

    Parameters
    ----------
    geometry : Path or None
        The file, which counts as an input: no output may replace it. None if there is none, and
        numbers were given.
    """

    geometry: Path | None
    placement: Placement

    @property
    def detector(self) -> Detector:
        """Geometry and mask: those of the file, and what else the source masks."""
        return _placed(self.source.detector, self.placement)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every file and folder that frames and geometry are read from."""
        return (*self.source.inputs, *((self.geometry,) if self.geometry else ()))

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
        placed = self.source.detector.sensors != self.placement.sensors
        if window is None or not placed:
            return self.source.read(events, window)
        return self.source.read(events, _on(window, self.detector))


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
    known = {name: value for name, value in given.items() if value is not None}
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
    old = source.placement if isinstance(source, PlacedFrames) else None
    numbers: dict[str, float | None] = {name: getattr(old, name, None) for name in NUMBERS}
    placement = Placement(
        sensors=detector.sensors,
        crystfel=zlib.compress(text.encode()),
        masked=_packed(np.zeros(detector.mask.size, np.bool_)) if old is None else old.masked,
        **{**numbers, **known},
    )
    placed = (
        replace(source, placement=placement)
        if isinstance(source, PlacedFrames)
        else PlacedFrames(source=source, geometry=None, placement=placement)
    )
    return replace(run, source=placed, columns=columns)


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
    rows, columns, height = _extent(found)
    n_panels = rows // height
    bare = Detector.unplaced("", (n_panels, height, columns) if n_panels > 1 else (rows, columns))
    sensors = _sensors(found, bare, of="")
    detector = replace(bare, sensors=sensors, pixel_size_m=1 / found.panels[0].res)
    return detector.with_mask(_bad_by_geometry(found, detector).astype(np.uint32) * PixelFlag.BAD)


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
    bits = np.frombuffer(zlib.decompress(placement.masked), np.uint8)
    masked = np.unpackbits(bits, count=detector.mask.size).astype(bool)
    mask = detector.mask.copy()
    mask.reshape(-1)[masked] |= np.uint32(PixelFlag.BAD)
    mask[~placed.covered()] = PixelFlag.GAP
    return placed.with_mask(mask)


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
    masked = _bad_by_geometry(found, placed) | _bad_by_masks(run, found, placed)
    masked |= _bad_by_value(run, found, placed)
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


def _extent(found: CrystfelGeometry) -> tuple[int, int, int]:
    """Rows and columns of a frame whose panels lie one below the other, and rows of a module."""
    modules = [panel.modules for panel in found.panels]
    if len({len(fixed) for fixed in modules}) > 1 or len(modules[0]) > 1:
        raise SchemaError(
            f"{found.file}: expected all panels with the same axes, at most one of them with a "
            f"fixed index, found indices {sorted(set(modules))[:4]}"
        )
    if len({panel.data for panel in found.panels}) > 1:
        raise SchemaError(
            f"{found.file}: expected all panels in one dataset, found "
            f"{', '.join(sorted({panel.data for panel in found.panels})[:3])}"
        )
    height = max(panel.ss[1] for panel in found.panels)
    n_modules = 1 + max((fixed[0] for fixed in modules if fixed), default=0)
    return n_modules * height, max(panel.fs[1] for panel in found.panels), height


def _rows(panel: GeometryPanel, height: int) -> tuple[int, int]:
    """Rows of a panel in a frame whose panels lie one below the other."""
    first = panel.modules[0] * height if panel.modules else 0
    return first + panel.ss[0], first + panel.ss[1]


def _sensors(found: CrystfelGeometry, detector: Detector, *, of: str) -> tuple[Sensor, ...]:
    """Panels of a geometry file as sensors of a detector, in pixels of the first one's size."""
    rows, columns, height = _extent(found)
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
        where = slice(*_rows(panel, height)), slice(*panel.fs)
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
                rows=_rows(panel, height),
                columns=panel.fs,
            )
        )
    return tuple(sensors)


def _known(quantity: GeometryValue) -> float:
    """Shift of the detector, zero where it is left to the data: it then differs by event."""
    return 0.0 if math.isnan(quantity.value) else quantity.value


def _bad_by_geometry(found: CrystfelGeometry, detector: Detector) -> NDArray[np.bool_]:
    """Pixels that the file calls bad by their place, in the shape of a frame."""
    height = _extent(found)[2]
    bad = np.zeros((len(detector.panels) * detector.panel_shape[0], detector.panel_shape[1]), bool)
    for panel in found.panels:
        top, bottom = _rows(panel, height)
        pixels = bad[top:bottom, slice(*panel.fs)]
        edge = panel.edge_pixels
        inner = pixels[edge : pixels.shape[0] - edge, edge : pixels.shape[1] - edge]
        good = np.zeros_like(pixels)
        if not panel.no_index and inner.size:
            good[edge : edge + inner.shape[0], edge : edge + inner.shape[1]] = True
        pixels[~good] = True
        for region in found.bad:
            pixels[_in_region(region, panel, pixels.shape)] = True
    return bad.reshape(detector.frame_shape)


def _in_region(
    region: BadRegion, panel: GeometryPanel, shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Pixels of a panel in a bad region, first row and column of the panel first."""
    ss, fs = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    (low, lower), (high, higher) = region.low, region.high
    if region.panel:
        if region.panel != panel.name:
            return np.zeros(shape, np.bool_)
        fs, ss = fs + panel.fs[0], ss + panel.ss[0]
        return (fs >= low) & (fs <= high) & (ss >= lower) & (ss <= higher)
    # CrystFEL looks at the corner of a pixel, and takes the limits for pixels of the panel.
    x = fs * panel.fast[0] + ss * panel.slow[0] + panel.corner[0]
    y = fs * panel.fast[1] + ss * panel.slow[1] + panel.corner[1]
    return (x > low) & (x < high) & (y > lower) & (y < higher)


def _bad_by_masks(run: Run, found: CrystfelGeometry, detector: Detector) -> NDArray[np.bool_]:
    """Pixels that the masks named in the file call bad, in the shape of a frame."""
    height = _extent(found)[2]
    bad = np.zeros((len(detector.panels) * detector.panel_shape[0], detector.panel_shape[1]), bool)
    parts = {part for panel in found.panels for part in panel.masks}
    for part in sorted(parts, key=lambda part: (part.file, part.data)):
        marked = _bad_by_mask(run, part, detector, file=found.file)
        for panel in found.panels:
            if marked is not None and part in panel.masks:
                where = slice(*_rows(panel, height)), slice(*panel.fs)
                bad[where] |= marked[where]
    return bad.reshape(detector.frame_shape)


def _bad_by_mask(
    run: Run, part: MaskPart, detector: Detector, *, file: str
) -> NDArray[np.bool_] | None:
    """Pixels that one mask calls bad, panels one below the other; None if it is not to be had.

    A mask in the file of the frames is of the source: without that file, in a run store say, its
    mask stands in.
    """
    source = run.source
    if part.file:
        with open_hdf5(part.file) as mask_file:
            return _marked(mask_file, part, detector, needed=file)
    if isinstance(source, CxiFrames | MasterFrames):
        with open_hdf5(source.path, source.roots) as data_file:
            return _marked(data_file, part, detector)
    return None


def _marked(
    file: Hdf5File, part: MaskPart, detector: Detector, *, needed: str = ""
) -> NDArray[np.bool_] | None:
    """Pixels that a dataset calls bad; in one mask an event, those that the first calls bad."""
    dataset = file.dataset(part.data)
    if dataset is None:
        if not needed:
            return None
        raise SchemaError(
            f"{needed}: {file.path} has no mask {part.data}; check mask_file and mask"
        )
    if find_holes(file, dataset).any():
        raise SourceError(f"{file.path}: {part.data} was not written whole; fetch it again")
    shape, n_pixels = detector.frame_shape, detector.mask.size
    if dataset.size == n_pixels:
        values = file.read(dataset)
    elif dataset.ndim > 2 and dataset.size == dataset.shape[0] * n_pixels:
        values = file.attempt(lambda: np.asarray(dataset[0]), part.data)
    else:
        raise SchemaError(
            f"{file.path}: {part.data}: expected a mask of {shape}, found {dataset.shape}"
        )
    bits = values.reshape(-1, detector.panel_shape[1]).astype(np.int64)
    bad: NDArray[np.bool_] = (bits & part.good_bits) != part.good_bits
    bad |= (bits & part.bad_bits) != 0
    return bad


def _bad_by_value(run: Run, found: CrystfelGeometry, detector: Detector) -> NDArray[np.bool_]:
    """Pixels whose value is flagged in every frame that is looked at, as a run has one mask."""
    slab = (len(detector.panels) * detector.panel_shape[0], detector.panel_shape[1])
    bad = np.zeros(slab, np.bool_)
    if not any(panel.flags for panel in found.panels) or not run.n_events:
        return bad.reshape(detector.frame_shape)
    count = min(run.n_events, MASK_FRAMES)
    reading = run.source.read(np.linspace(0, run.n_events - 1, count).astype(int).tolist())
    frames = reading.pixels[reading.reasons == 0].reshape(-1, *slab)
    height = _extent(found)[2]
    for panel in found.panels if len(frames) else ():
        where = slice(*_rows(panel, height)), slice(*panel.fs)
        for kind, value in panel.flags:
            pixels = frames[:, *where]
            flagged = {"lessthan": np.less, "morethan": np.greater, "equal": np.equal}[kind]
            bad[where] |= flagged(pixels, value).all(axis=0)
    return bad.reshape(detector.frame_shape)


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
