"""Runs of image files, one event a file: CBF, TIFF, EDF and what else fabio reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.errors import RunNotFound, SchemaError, SourceError
from sfxreduce.io.readers.count_mask import MASK_FRAMES, sentinel_mask
from sfxreduce.io.readers.crop import take_window
from sfxreduce.io.readers.images.cbf import CbfHeader
from sfxreduce.io.readers.images.file import ImageFacts, event_name, look_at, read_image
from sfxreduce.run.columns import MISSING_TIME, event_columns, plain_text
from sfxreduce.run.detector import Detector, Panel
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Reading, Run
from sfxreduce.run.window import Window

__all__ = ["ImageFrames", "open_images"]


def open_images(paths: Sequence[Path]) -> Run:
    """Open image files as one run, one event a file, in the order given.

    Of a CBF only the header is read, and the pixels of `MASK_FRAMES` files for the mask. Of other
    formats, which say nothing of their events, only these few files are opened; another one in a
    different shape is found when it is read, and flagged.

    Parameters
    ----------
    paths : sequence of Path
        CBF, TIFF, EDF or another format with one image a file that fabio [1]_ knows; also packed,
        as .bz2 or .gz.

    Raises
    ------
    RunNotFound
        If a file does not exist, or none is given.
    SourceError
        If not one of the files can be read.
    SchemaError
        If an image differs from the first one in shape or dtype.

    References
    ----------
    .. [1] E. B. Knudsen et al., J. Appl. Cryst. 46 (2013) 537. doi:10.1107/S0021889813000150
    """
    absent = [path for path in paths if not path.exists()]
    if absent or not paths:
        raise RunNotFound(f"{absent[0] if absent else 'images'}: no such file; check the path")
    facts = _looked_at(paths)
    reference = _reference(paths, facts)
    source = ImageFrames(
        paths=tuple(str(path) for path in paths),
        frame_shape=reference.shape,
        dtype=reference.dtype,
        header=reference.header,
        n_bytes=sum(path.stat().st_size for path in paths),
    )
    # Made now, not on the first worker: it says early if the pixels of no file can be read.
    _ = source.detector
    return Run(
        source=source,
        columns=_columns(paths, facts),
        name=plain_text(event_name(paths[0])),
        provenance=f"read from {len(paths)} image files",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFrames:
    """Frames in image files. Holds names and numbers only; each process reads the files itself.

    Parameters
    ----------
    paths : tuple of str
        One file an event.
    frame_shape : tuple of int
        (y, x).
    dtype : dtype
        Of a pixel.
    header : CbfHeader or None
        Of the first file that can be read, if it is a CBF.
    n_bytes : int
        Of all files.
    """

    paths: tuple[str, ...]
    frame_shape: tuple[int, int]
    dtype: np.dtype[np.generic]
    header: CbfHeader | None = field(compare=False)
    n_bytes: int

    @property
    def path(self) -> str:
        """The file, or the first and the last of many."""
        first, last = self.paths[0], self.paths[-1]
        return first if len(self.paths) == 1 else f"{first} ... {last} ({len(self.paths)} files)"

    @property
    def n_events(self) -> int:
        """Number of events, which is the number of files."""
        return len(self.paths)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The files."""
        return tuple(Path(path) for path in self.paths)

    @property
    def detector(self) -> Detector:
        """Geometry from the first header that can be read, mask from a few frames."""
        return _detector(self)

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        """Read events; see `sfxreduce.run.run.FrameSource.read`."""
        shape = self.frame_shape if window is None else window.shape
        pixels = np.zeros((len(events), *shape), self.dtype)
        reasons = np.zeros(len(events), np.uint32)
        for i, event in enumerate(events):
            image = self.image(event)
            if image is None:
                reasons[i] = Reason.FILE_UNREADABLE
            elif not self.fits(image):
                reasons[i] = Reason.UNEXPECTED_FORMAT
            elif window is None:
                pixels[i] = image
            else:
                pixels[i] = take_window(image[np.newaxis], self.detector, window)[0]
        return Reading(pixels=pixels, reasons=reasons)

    def image(self, event: int) -> NDArray[np.generic] | None:
        """Image of an event, or None if its file cannot be read."""
        return read_image(Path(self.paths[event]))

    def fits(self, image: NDArray[np.generic]) -> bool:
        """Whether an image is still what was found when the run was opened."""
        return image.shape == self.frame_shape and image.dtype == self.dtype


def _looked_at(paths: Sequence[Path]) -> list[ImageFacts | None]:
    """Facts of all images if their headers are of use, or of a few; None of the others."""
    facts: list[ImageFacts | None] = [None] * len(paths)
    first = -1
    for first, path in enumerate(paths):
        facts[first] = look_at(path)
        if facts[first] is not None:
            break
    known = facts[first]
    rest = [*range(first + 1, len(paths))]
    if known is not None and known.header is None:
        spread = np.linspace(0, len(paths) - 1, min(len(paths), MASK_FRAMES)).astype(int).tolist()
        rest = [event for event in spread if event > first]
    for event in rest:
        facts[event] = look_at(paths[event])
    return facts


def _reference(paths: Sequence[Path], facts: Sequence[ImageFacts | None]) -> ImageFacts:
    """Facts of the first image, which all others have to share."""
    reference = next((fact for fact in facts if fact is not None), None)
    if reference is None:
        raise SourceError(
            f"{paths[0]}: expected an image, found a file that cannot be read, and none of the "
            f"{len(paths)} files can; fetch them again"
        )
    for path, fact in zip(paths, facts, strict=True):
        if fact and (fact.shape, fact.dtype) != (reference.shape, reference.dtype):
            raise SchemaError(
                f"{path}: expected an image {reference.shape} {reference.dtype} like the first, "
                f"found {fact.shape} {fact.dtype}; give the images of one detector"
            )
    return reference


def _columns(paths: Sequence[Path], facts: Sequence[ImageFacts | None]) -> xr.Dataset:
    """Per-event columns out of the headers."""
    headers = [fact.header if fact else None for fact in facts]
    return event_columns(
        len(paths),
        event_id=[event_name(path) for path in paths],
        timestamp_ns=np.array([h.timestamp_ns if h else MISSING_TIME for h in headers]),
        photon_energy_ev=np.array([h.photon_energy_ev if h else math.nan for h in headers]),
        source_file=[str(path) for path in paths],
        source_event=np.zeros(len(paths), np.int64),
    )


@lru_cache(maxsize=4)
def _detector(source: ImageFrames) -> Detector:
    """Detector of a run of images, made once a process.

    Raises
    ------
    SourceError
        If the pixels of no file can be read.
    """
    detector = Detector.centred("images", source.frame_shape)
    header = source.header
    mask = sentinel_mask(
        _sample(source),
        count_cutoff=header.count_cutoff if header else math.nan,
        counts=header is not None,
    )
    if header is None:
        return detector.with_mask(mask)
    x, y = header.beam
    beam_known = math.isfinite(x) and math.isfinite(y)
    return Detector(
        name=header.detector or "images",
        panel_shape=source.frame_shape,
        panels=(Panel(name="p0", corner=(-x, -y)),) if beam_known else detector.panels,
        pixel_size_m=header.pixel_size_m,
        distance_m=header.distance_m,
        saturation_adu=header.count_cutoff,
        mask=mask,
    )


def _sample(source: ImageFrames) -> list[NDArray[np.generic]]:
    """Images of a few events spread over the run, or at least the first that can be read."""
    spread = np.linspace(0, source.n_events - 1, min(source.n_events, MASK_FRAMES)).astype(int)
    images = [source.image(int(event)) for event in spread]
    good = [image for image in images if image is not None and source.fits(image)]
    if good:
        return good
    for event in sorted(set(range(source.n_events)) - set(spread.tolist())):
        image = source.image(event)
        if image is not None and source.fits(image):
            return [image]
    raise SourceError(
        f"{source.path}: expected images, found none whose pixels are whole; fetch the files again"
    )
