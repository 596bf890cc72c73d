"""One image file: CBF, TIFF, EDF and what else fabio reads, also packed as .bz2 or .gz."""

from __future__ import annotations

import bz2
import gzip
import logging
import math
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fabio
import numpy as np
from fabio.fabioutils import BytesIO
from numpy.typing import NDArray

from sfxreduce.errors import SchemaError
from sfxreduce.io.chunks.limits import check_frames
from sfxreduce.io.files.safe_read import open_file
from sfxreduce.io.readers.images.cbf import (
    MOST_HEADER_BYTES,
    CbfHeader,
    decode_cbf,
    is_cbf,
    parse_cbf_header,
)

__all__ = ["ImageFacts", "event_name", "look_at", "read_image"]

PACKED = (".bz2", ".gz")
TIFF = (b"II*\0", b"MM\0*")
BIG_TIFF = (b"II+\0", b"MM\0+")
BINARY_SECTION = b"X-Binary-Size:"

PADDING_BYTES = 4096
"""Bytes after the pixels of a CBF that are not looked through: the format pads with 4095."""
MOST_IMAGE_BYTES = 256 << 20
"""Longest image file, unpacked: the largest camera has 18 million pixels."""

# What the decoders of image formats raise on truncated and damaged files.
DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    RuntimeError,
    AssertionError,
    TypeError,
    AttributeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What is known of one image.

    Parameters
    ----------
    shape : tuple of int
        (y, x).
    dtype : dtype
        Of a pixel, in the machine's own byte order.
    header : CbfHeader, optional
        None if the file is no CBF.
    """

    shape: tuple[int, int]
    dtype: np.dtype[np.generic]
    header: CbfHeader | None = None


def look_at(path: Path) -> ImageFacts | None:
    """Look at an image file; of a CBF only the header is read.

    Returns
    -------
    ImageFacts or None
        None if the file cannot be read.

    Raises
    ------
    SchemaError
        If the file does not hold one image.
    """
    try:
        head = _unpack(path, MOST_HEADER_BYTES)
        if is_cbf(head):
            header = parse_cbf_header(head)
            _check_sections(path, header)
            return ImageFacts(shape=header.shape, dtype=header.dtype, header=header)
        image = _read(path)
    except DAMAGED:
        return None
    return ImageFacts(shape=(image.shape[0], image.shape[1]), dtype=image.dtype)


def read_image(path: Path) -> NDArray[np.generic] | None:
    """Read the pixels of an image file.

    Returns
    -------
    ndarray or None
        Shape (y, x), in counts or ADU, in the machine's own byte order; None if the file cannot be
        read or does not hold one image.
    """
    try:
        return _read(path)
    except (*DAMAGED, SchemaError):
        return None


def event_name(path: Path) -> str:
    """Name of a file without what says how it is written and packed.

    Examples
    --------
    >>> event_name(Path("run7/thau_0001.cbf.bz2"))
    'thau_0001'
    """
    return Path(path.stem).stem if path.suffix.lower() in PACKED else path.stem


def _read(path: Path) -> NDArray[np.generic]:
    """Read one image (y, x) of numbers; raises any of `DAMAGED`, or SchemaError."""
    data = _unpack(path)
    if is_cbf(data):
        return decode_cbf(data)
    _check_kind(data, path)
    # fabio gets bytes, not a name: it would unpack .gz with other programs, and print about it.
    with _unheard(), fabio.open(BytesIO(data)) as opened:
        image = np.asarray(opened.data)
        # Of a truncated TIFF fabio makes nothing, and it fills up a truncated EDF with zeros.
        if opened.data is None or getattr(opened, "incomplete_data", False):
            raise ValueError(f"{path}: the image is incomplete")
        if opened.nframes != 1 or image.ndim != 2 or image.dtype.kind not in "iuf":
            raise SchemaError(
                f"{path}: expected one image (y, x) of numbers, found {opened.nframes} of "
                f"{image.shape} {image.dtype}; give one file for each event"
            )
    check_frames(image.shape, image.dtype, where=str(path))
    return image.astype(image.dtype.newbyteorder("="), copy=False)


def _check_sections(path: Path, header: CbfHeader) -> None:
    """Refuse a CBF with the images of two detectors, or of two events.

    A packed file does not say how long it is; there the second image is passed over.

    Raises
    ------
    SchemaError
        If there is more than one binary section.
    """
    end = header.start_byte + header.n_bytes
    if path.suffix.lower() in PACKED or path.stat().st_size <= end + PADDING_BYTES:
        return
    if BINARY_SECTION in _unpack(path)[end:]:
        raise SchemaError(
            f"{path}: expected one image, found a CBF with several binary sections; give one file "
            "for each image"
        )


def _check_kind(data: bytes, path: Path) -> None:
    """Refuse what is neither TIFF nor EDF, or an EDF that is shorter than its image.

    fabio knows formats that lead to other files, and makes what a header says before it looks for
    the pixels.
    """
    if data.startswith(BIG_TIFF):
        raise SchemaError(
            f"{path}: expected a TIFF, found a BigTIFF, which is not read; write the images as "
            "plain TIFF, or all of them into one HDF5 file"
        )
    if data.startswith(TIFF):
        return
    if not data[:16].lstrip().startswith(b"{"):
        raise ValueError(f"{path}: expected a CBF, TIFF or EDF image, found something else")
    header = data[: min(data.find(b"}"), MOST_HEADER_BYTES)]
    sides = re.findall(rb"Dim_\d\s*=\s*(\d+)", header)
    if math.prod(int(side[:19]) for side in sides) > len(data):
        raise ValueError(f"{path}: the image is incomplete")


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep fabio from reporting a damaged file by itself; the caller reports it, once."""
    log = logging.getLogger("fabio")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _unpack(path: Path, n_bytes: int = -1) -> bytes:
    """First bytes of a file, or all, as they were before it was packed."""
    packing = path.suffix.lower()
    most = MOST_IMAGE_BYTES + 1 if n_bytes < 0 else n_bytes
    with open_file(path) as file:
        if packing == ".bz2":
            data = bz2.BZ2File(file).read(most)
        elif packing == ".gz":
            data = gzip.GzipFile(fileobj=file).read(most)
        else:
            data = file.read(min(os.fstat(file.fileno()).st_size + 1, most))
    if len(data) > MOST_IMAGE_BYTES:
        raise ValueError(f"{path}: expected an image of at most {MOST_IMAGE_BYTES} bytes")
    return data
