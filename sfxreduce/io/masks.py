"""Pixels of a run that are bad by a mask the user gives, or by a CrystFEL geometry file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import RunNotFound, SchemaError, SourceError, UsageError
from sfxreduce.io.geometry.crystfel import BadRegion, CrystfelGeometry, GeometryPanel, MaskPart
from sfxreduce.io.readers.count_mask import MASK_FRAMES
from sfxreduce.io.readers.hdf5.detector import axes_of_mask, read_mask
from sfxreduce.io.readers.hdf5.file import Hdf5File, open_hdf5
from sfxreduce.io.readers.hdf5.master import MasterFrames
from sfxreduce.io.readers.hdf5.run import CxiFrames
from sfxreduce.io.readers.hdf5.unwritten import find_holes
from sfxreduce.io.readers.images.file import read_image
from sfxreduce.run.detector import Detector
from sfxreduce.run.run import Run

__all__ = [
    "GivenMask",
    "bad_by_geometry",
    "bad_by_mask_file",
    "bad_by_masks",
    "bad_by_value",
    "frame_extent",
    "panel_rows",
]

IMAGE_SUFFIXES = (".tif", ".tiff", ".edf", ".cbf")
HDF5_SUFFIXES = (".h5", ".hdf5", ".cxi", ".nxs")


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenMask:
    """A mask besides that of a run, and which pixels are good.

    Parameters
    ----------
    file : str
        An .npy file, an image, or an HDF5 file with the path of the mask after a colon; without a
        path, where CXI and NXmx keep masks. Empty for none.
    good_is : int, optional
        0 or 1: value of good pixels in that file, or else in the mask of the run; 0 if not given.

    Raises
    ------
    UsageError
        If good pixels are said to be something else.

    Examples
    --------
    >>> GivenMask(file="bad.h5:/mask").named
    (PosixPath('bad.h5'), '/mask')
    """

    file: str = ""
    good_is: int | None = None

    def __post_init__(self) -> None:
        if self.good_is not in (None, 0, 1):
            raise UsageError(f"--mask-good-is: expected 0 or 1, found {self.good_is}")

    @property
    def named(self) -> tuple[Path, str]:
        """The file, and the path in it; a file whose name has a colon is one."""
        name, colon, path = self.file.rpartition(":")
        whole = not colon or not name or Path(self.file).exists()
        return (Path(self.file), "") if whole else (Path(name), path)


def bad_by_mask_file(given: GivenMask, detector: Detector) -> NDArray[np.bool_]:
    """Pixels that a mask of the user calls bad, in the shape of a frame.

    Raises
    ------
    RunNotFound
        If there is no such file.
    UsageError
        If it holds no mask of the shape of a frame, or leaves no good pixel.
    SourceError
        If it is damaged.
    """
    path, inner = given.named
    if not path.is_file():
        raise RunNotFound(f"{path}: no such file; check the path given to --mask")
    try:
        if path.suffix.lower() in HDF5_SUFFIXES:
            return _bad_in_hdf5(path, inner, detector, good_is=given.good_is)
        return _bad_in_array(path, detector, good_is=given.good_is)
    except SchemaError as error:
        raise UsageError(f"--mask: {error}") from error


def _bad_in_hdf5(
    path: Path, inner: str, detector: Detector, *, good_is: int | None
) -> NDArray[np.bool_]:
    paths = (inner,) if inner else ()
    with open_hdf5(path) as file:
        mask = read_mask(file, detector.frame_shape, paths=paths, good_is=good_is)
    if mask is None:
        where = f"a mask at {inner}" if inner else "a mask where CXI or NXmx keep it"
        raise SchemaError(f"{path}: expected {where}, found none; give --mask {path.name}:PATH")
    bad: NDArray[np.bool_] = mask != 0
    return bad


def _bad_in_array(path: Path, detector: Detector, *, good_is: int | None) -> NDArray[np.bool_]:
    values, good = _values_of(path), good_is or 0
    if axes_of_mask(values.shape, detector.frame_shape) != 0:
        raise SchemaError(
            f"{path}: expected a mask of the shape of a frame, {detector.frame_shape}, found "
            f"{values.shape}; give the mask of this detector, its axes in the same order"
        )
    bad: NDArray[np.bool_] = (values == 0) == (good == 1)
    bad |= ~np.isfinite(values)
    if bad.all():
        raise SchemaError(
            f"{path}: expected {good} at good pixels, found no {good} at all; if the mask is the "
            f"other way round, give --mask-good-is {1 - good}"
        )
    return bad.reshape(detector.frame_shape)


def _values_of(path: Path) -> NDArray[np.generic]:
    """Numbers of an .npy file or an image."""
    values: NDArray[np.generic] | None
    if path.suffix.lower() == ".npy":
        try:
            # Mapped, so that nothing is reserved for more than the file holds.
            values = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise SourceError(f"{path}: cannot be read as an array ({error})") from error
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        values = read_image(path)
    else:
        raise UsageError(
            f"--mask: expected a file ending in .npy, {', '.join(IMAGE_SUFFIXES + HDF5_SUFFIXES)}, "
            f"found {path.name}"
        )
    if values is None or values.dtype.kind not in "biuf":
        raise SourceError(f"{path}: expected one mask of numbers, found none; write it again")
    return values


def frame_extent(found: CrystfelGeometry) -> tuple[int, int, int]:
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


def panel_rows(panel: GeometryPanel, height: int) -> tuple[int, int]:
    """Rows of a panel in a frame whose panels lie one below the other."""
    first = panel.modules[0] * height if panel.modules else 0
    return first + panel.ss[0], first + panel.ss[1]


def bad_by_geometry(found: CrystfelGeometry, detector: Detector) -> NDArray[np.bool_]:
    """Pixels that the file calls bad by their place, in the shape of a frame."""
    height = frame_extent(found)[2]
    bad = np.zeros((len(detector.panels) * detector.panel_shape[0], detector.panel_shape[1]), bool)
    for panel in found.panels:
        top, bottom = panel_rows(panel, height)
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


def bad_by_masks(run: Run, found: CrystfelGeometry, detector: Detector) -> NDArray[np.bool_]:
    """Pixels that the masks named in the file call bad, in the shape of a frame."""
    height = frame_extent(found)[2]
    bad = np.zeros((len(detector.panels) * detector.panel_shape[0], detector.panel_shape[1]), bool)
    parts = {part for panel in found.panels for part in panel.masks}
    for part in sorted(parts, key=lambda part: (part.file, part.data)):
        marked = _bad_by_mask(run, part, detector, file=found.file)
        for panel in found.panels:
            if marked is not None and part in panel.masks:
                where = slice(*panel_rows(panel, height)), slice(*panel.fs)
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
    axes = axes_of_mask(dataset.shape, detector.frame_shape)
    if axes is None:
        raise SchemaError(
            f"{file.path}: {part.data}: expected a mask of {detector.frame_shape}, found "
            f"{dataset.shape}"
        )
    values = file.attempt(lambda: np.asarray(dataset[0] if axes else dataset[()]), part.data)
    bits = values.reshape(-1, detector.panel_shape[1]).astype(np.int64)
    bad: NDArray[np.bool_] = (bits & part.good_bits) != part.good_bits
    bad |= (bits & part.bad_bits) != 0
    return bad


def bad_by_value(run: Run, found: CrystfelGeometry, detector: Detector) -> NDArray[np.bool_]:
    """Pixels whose value is flagged in every frame that is looked at, as a run has one mask."""
    slab = (len(detector.panels) * detector.panel_shape[0], detector.panel_shape[1])
    bad = np.zeros(slab, np.bool_)
    if not any(panel.flags for panel in found.panels) or not run.n_events:
        return bad.reshape(detector.frame_shape)
    count = min(run.n_events, MASK_FRAMES)
    reading = run.source.read(np.linspace(0, run.n_events - 1, count).astype(int).tolist())
    frames = reading.pixels[reading.reasons == 0].reshape(-1, *slab)
    height = frame_extent(found)[2]
    for panel in found.panels if len(frames) else ():
        where = slice(*panel_rows(panel, height)), slice(*panel.fs)
        for kind, value in panel.flags:
            pixels = frames[:, *where]
            flagged = {"lessthan": np.less, "morethan": np.greater, "equal": np.equal}[kind]
            bad[where] |= flagged(pixels, value).all(axis=0)
    return bad.reshape(detector.frame_shape)
