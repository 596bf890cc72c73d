"""Crystallographic binary files (CBF), as Pilatus and Eiger detectors write them.

The header is read without the pixels, so that opening a thousand files stays cheap; the pixels are
checked against the length and the MD5 sum in the header before they are decoded [1]_.

References
----------
.. [1] H. J. Bernstein, A. P. Hammersley, Int. Tables Crystallogr. G (2006) ch. 2.3.
   doi:10.1107/97809553602060000729
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from fabio.compression import decByteOffset
from numpy.typing import NDArray

from sfxreduce.run.columns import MISSING_TIME

__all__ = [
    "MOST_HEADER_BYTES",
    "CbfHeader",
    "decode_cbf",
    "is_cbf",
    "parse_cbf_header",
]

MAGIC = b"###CBF"
STARTER = b"\x0c\x1a\x04\xd5"
BYTE_OFFSET = "x-CBF_BYTE_OFFSET"
MOST_HEADER_BYTES = 1 << 16
"""No header is longer."""
DTYPES: dict[str, np.dtype[Any]] = {
    "signed 8-bit integer": np.dtype("i1"),
    "signed 16-bit integer": np.dtype("i2"),
    "signed 32-bit integer": np.dtype("i4"),
    "signed 64-bit integer": np.dtype("i8"),
    "unsigned 8-bit integer": np.dtype("u1"),
    "unsigned 16-bit integer": np.dtype("u2"),
    "unsigned 32-bit integer": np.dtype("u4"),
    "unsigned 64-bit integer": np.dtype("u8"),
}
EV_ANGSTROM = 12398.419843320026  # h c, exact, SI 2019
NUMBER = r"([-+]?\d+\.?\d*(?:[eE][-+]?\d+)?)"
START_TIME = re.compile(
    r"^# (\d{4})[-/](\w{2,3})[-/](\d{2})[T ](\d{2}:\d{2}:\d{2})(?:\.(\d+))?", re.MULTILINE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CbfHeader:
    """What a CBF says about its image; NaN where it does not.

    Parameters
    ----------
    shape : tuple of int
        (y, x).
    dtype : dtype
        Of a pixel.
    start_byte, n_bytes : int
        Where the packed pixels lie in the file.
    method : str
        How they are packed.
    md5 : str
        Their checksum in base 64; empty if the header has none.
    beam : tuple of float
        (x, y) of the beam in pixels from the corner of the first pixel.
    timestamp_ns : int
        Start of the exposure. The header names no time zone; the clock is read as UTC.
    """

    shape: tuple[int, int]
    dtype: np.dtype[np.generic]
    start_byte: int
    n_bytes: int
    method: str
    md5: str
    detector: str
    beam: tuple[float, float]
    pixel_size_m: float
    distance_m: float
    photon_energy_ev: float
    count_cutoff: float
    timestamp_ns: int


def is_cbf(data: bytes) -> bool:
    """Whether these are the first bytes of a CBF."""
    return data.startswith(MAGIC)


def decode_cbf(data: bytes) -> NDArray[np.generic]:
    """Decode the pixels of a CBF.

    Parameters
    ----------
    data : bytes
        The whole file, unpacked.

    Returns
    -------
    ndarray
        Shape (y, x), in counts, in the dtype that the header names.

    Raises
    ------
    ValueError
        If the pixels are incomplete, differ from their checksum, or are packed in another way
        than by byte offsets.
    """
    header = parse_cbf_header(data[:MOST_HEADER_BYTES])
    packed = data[header.start_byte : header.start_byte + header.n_bytes]
    if len(packed) != header.n_bytes:
        raise ValueError(f"expected {header.n_bytes} bytes of pixels, found {len(packed)}")
    if math.prod(header.shape) > header.n_bytes:
        raise ValueError(f"expected a byte or more for each of {header.shape} pixels")
    if header.method != BYTE_OFFSET:
        raise ValueError(f"expected pixels packed as {BYTE_OFFSET}, found '{header.method}'")
    found = base64.b64encode(hashlib.md5(packed, usedforsecurity=False).digest()).decode()
    if header.md5 not in ("", found):
        raise ValueError(f"expected pixels with the MD5 sum {header.md5}, found {found}")
    pixels = decByteOffset(packed, size=math.prod(header.shape), dtype=header.dtype)
    return np.asarray(pixels, header.dtype).reshape(header.shape)


def parse_cbf_header(data: bytes) -> CbfHeader:
    """Parse the header of a CBF.

    Parameters
    ----------
    data : bytes
        At least the first `MOST_HEADER_BYTES` of the file, unpacked.

    Raises
    ------
    ValueError
        If the header is incomplete or not understood.
    """
    end = data.find(STARTER)
    if not data.startswith(MAGIC) or end < 0:
        raise ValueError("expected a CBF header with a binary section, found none")
    text = data[:end].decode("latin-1")
    pairs = re.findall(r'^\s*([\w-]+)[:=] *"?([^"\r\n;]*)', text, re.MULTILINE)
    fields = {key: value.strip() for key, value in pairs}
    try:
        dtype = DTYPES[fields["X-Binary-Element-Type"]]
        fast = int(fields["X-Binary-Size-Fastest-Dimension"])
        slow = int(fields["X-Binary-Size-Second-Dimension"])
        n_bytes, method = int(fields["X-Binary-Size"]), fields["conversions"]
    except KeyError as error:
        raise ValueError(f"expected {error} in the CBF header, found none") from error
    if min(fast, slow, n_bytes) < 1:
        raise ValueError(f"expected an image with pixels, found {slow} x {fast}")
    wavelength = _number(text, rf"Wavelength {NUMBER} A")
    return CbfHeader(
        shape=(slow, fast),
        dtype=dtype,
        start_byte=end + len(STARTER),
        n_bytes=n_bytes,
        method=method,
        md5=fields.get("Content-MD5", ""),
        detector=_text(text, r"Detector: ([^\r\n]*)"),
        beam=(
            _number(text, rf"Beam_xy \({NUMBER},"),
            _number(text, rf"Beam_xy \([^,\r\n]*, *{NUMBER}\)"),
        ),
        pixel_size_m=_number(text, rf"Pixel_size {NUMBER} m"),
        distance_m=_number(text, rf"Detector_distance {NUMBER} m"),
        photon_energy_ev=EV_ANGSTROM / wavelength if wavelength > 0 else math.nan,
        count_cutoff=_number(text, rf"Count_cutoff {NUMBER}"),
        timestamp_ns=_start_time(text),
    )


def _text(header: str, pattern: str) -> str:
    """First group of a header line, empty if there is none."""
    found = re.search(rf"^# {pattern}", header, re.MULTILINE)
    return found.group(1).strip() if found else ""


def _number(header: str, pattern: str) -> float:
    """Return a number out of a header line, NaN if there is none."""
    found = _text(header, pattern)
    return float(found) if found else math.nan


def _start_time(header: str) -> int:
    """Start of the exposure in nanoseconds since 1970, read as UTC."""
    found = START_TIME.search(header)
    if found is None:
        return MISSING_TIME
    year, month, day, clock, fraction = found.groups()
    form = "%Y-%m-%dT%H:%M:%S" if month.isdigit() else "%Y-%b-%dT%H:%M:%S"
    try:
        moment = datetime.strptime(f"{year}-{month}-{day}T{clock}", form)
    except ValueError:
        return MISSING_TIME
    seconds = int(moment.replace(tzinfo=UTC).timestamp())
    return seconds * 1_000_000_000 + int((fraction or "0")[:9].ljust(9, "0"))
