"""Byte ranges of files, and the header of a Blosc buffer that stands at the start of one.

Source: the format of c-blosc 1.21, [1]_.

References
----------
.. [1] https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from sfxreduce.errors import SchemaError, SourceError
from sfxreduce.io.chunks.limits import check_ratio

__all__ = [
    "DENSE_PACKING",
    "HEADER_BYTES",
    "PACKINGS",
    "SHUFFLES",
    "USUAL_PACKING",
    "BloscHeader",
    "FileRange",
    "MemoryRange",
    "Packing",
    "Stored",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRange:
    """A range of an open file.

    The system is asked for just these bytes: no handle's position moves, so that threads and
    libraries may share the file.

    Parameters
    ----------
    file : int
        Descriptor of the file.
    path : Path
        Of the file, for messages.
    start, n_bytes : int
        Where the range lies.
    """

    file: int
    path: Path
    start: int
    n_bytes: int

    def fetch(self, start: int, out: memoryview) -> None:
        """Fill a buffer with the bytes from `start` on.

        Raises
        ------
        SourceError
            If there are fewer, or they cannot be read.
        """
        if start < 0 or start + len(out) > self.n_bytes:
            raise SourceError(
                f"{self.path}: expected a range of {self.n_bytes} bytes, found one that ends at "
                f"{start + len(out)}"
            )
        done = 0
        while done < len(out):
            try:
                found = os.preadv(self.file, [out[done:]], self.start + start + done)
            except (OSError, OverflowError) as error:
                raise SourceError(f"{self.path}: cannot be read ({error})") from error
            if not found:
                raise SourceError(
                    f"{self.path}: expected {len(out)} bytes from {self.start + start} on, "
                    f"found {done}"
                )
            done += found

    def whole(self) -> memoryview:
        """Return all bytes; raises what `fetch` raises."""
        data = np.empty(self.n_bytes, np.uint8).data
        self.fetch(0, data)
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRange:
    """Bytes that were read already, because their checksum needs all of them."""

    data: memoryview

    @property
    def n_bytes(self) -> int:
        """How many there are."""
        return len(self.data)

    def fetch(self, start: int, out: memoryview) -> None:
        """Fill a buffer with the bytes from `start` on; see `FileRange.fetch`."""
        if start < 0 or start + len(out) > len(self.data):
            raise SourceError(
                f"expected {len(self.data)} stored bytes, found a range that ends at "
                f"{start + len(out)}"
            )
        out[:] = self.data[start : start + len(out)]

    def whole(self) -> memoryview:
        """Return all bytes."""
        return self.data


Stored: TypeAlias = FileRange | MemoryRange
"""Stored bytes of one chunk."""

HEADER = "<4B3I"
HEADER_BYTES = struct.calcsize(HEADER)
FORMAT_VERSION = 2
SHUFFLED, MEMCPYED, BITSHUFFLED = 0x1, 0x2, 0x4
COMPRESSORS = {0: "blosclz", 1: "lz4", 3: "zlib", 4: "zstd"}
"""Names of the formats that c-blosc numbers; lz4hc unpacks as lz4 and has the same number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BloscHeader:
    """What a Blosc buffer says about itself, in its order.

    Parameters
    ----------
    version, format_version, flags, typesize : int
        Of Blosc, of the compressor's format, and as Blosc has them.
    n_bytes, n_packed : int
        Bytes before and after packing, the header included; more may follow.
    blocksize : int
        Bytes of pixels in a block; the last one may have fewer.
    """

    version: int
    format_version: int
    flags: int
    typesize: int
    n_bytes: int
    blocksize: int
    n_packed: int

    @classmethod
    def of(cls, stored: Stored, *, n_bytes: int) -> BloscHeader:
        """Read a header, and hold it against what is to be unpacked before anything is allocated.

        Parameters
        ----------
        n_bytes : int
            Bytes of the pixels.

        Raises
        ------
        SourceError
            If it speaks of another number of pixels' bytes, or of more packed ones than there are,
            or packs far too many into too few; see `check_ratio`.
        """
        if stored.n_bytes < HEADER_BYTES:
            raise SourceError(
                f"packed pixels: expected a header of {HEADER_BYTES} bytes, found {stored.n_bytes}"
            )
        raw = bytearray(HEADER_BYTES)
        stored.fetch(0, memoryview(raw))
        header = cls(**dict(zip(cls.__annotations__, struct.unpack(HEADER, raw), strict=True)))
        if header.n_bytes != n_bytes:
            raise SourceError(
                f"packed pixels: expected {n_bytes} bytes of pixels, found {header.n_bytes}"
            )
        if header.n_packed > stored.n_bytes:
            raise SourceError(
                f"packed pixels: expected {header.n_packed} bytes by their header, found "
                f"{stored.n_bytes}"
            )
        check_ratio(n_bytes, header.n_packed)
        return header

    @property
    def is_cut(self) -> bool:
        """Whether it has blocks of which some can be left out."""
        return (
            self.version == FORMAT_VERSION
            and not self.flags & MEMCPYED
            and 0 < self.blocksize < self.n_bytes
            and HEADER_BYTES + 4 * self.n_blocks < self.n_packed
        )

    @property
    def is_copied(self) -> bool:
        """Whether the pixels follow as they are, because packing did not make them smaller."""
        return (
            self.version == FORMAT_VERSION
            and bool(self.flags & MEMCPYED)
            and self.n_packed == self.n_bytes + HEADER_BYTES
        )

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return -(-self.n_bytes // self.blocksize)

    def packing(self, *, clevel: int) -> Packing | None:
        """Settings of this buffer with a level, which it does not hold; None if not for Zarr."""
        cname = COMPRESSORS.get(self.flags >> 5)
        if self.version != FORMAT_VERSION or cname is None or not 0 <= clevel <= 9:
            return None
        shuffle = 2 if self.flags & BITSHUFFLED else int(bool(self.flags & SHUFFLED))
        return Packing(
            cname=cname, clevel=clevel, shuffle=SHUFFLES[shuffle], blocksize=self.blocksize
        )

    def pack(self, *, n_bytes: int, n_packed: int) -> bytes:
        """Header of a buffer with fewer of the blocks."""
        kept = (self.version, self.format_version, self.flags, self.typesize)
        return struct.pack(HEADER, *kept, n_bytes, self.blocksize, n_packed)


SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")
"""Names that Zarr gives to what Blosc numbers 0, 1 and 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Settings of the Blosc compressor. What is packed says itself how to unpack it.

    Parameters
    ----------
    cname : str
        Compressor.
    clevel : int
        Its level, 0 to 9.
    shuffle : str
        One of `SHUFFLES`.
    blocksize : int
        Bytes of pixels that are packed by themselves; 0 leaves it to Blosc.

    Raises
    ------
    SchemaError
        If there is no such level, shuffle or block.
    """

    cname: str = "lz4hc"
    clevel: int = 1
    shuffle: str = "bitshuffle"
    blocksize: int = 8 * 1024

    def __post_init__(self) -> None:
        if not 0 <= self.clevel <= 9 or self.shuffle not in SHUFFLES or self.blocksize < 0:
            raise SchemaError(
                f"packing: expected a level from 0 to 9, a shuffle of {', '.join(SHUFFLES)} and a "
                f"block of 0 or more bytes, found {self.clevel}, '{self.shuffle}' and "
                f"{self.blocksize}"
            )


FAST_PACKING = Packing()
"""Unpacked in less than half of the time, at some more bytes (decision 24)."""

SMALL_PACKING = Packing(cname="zstd", clevel=1, blocksize=32 * 1024)
"""The fewest bytes, for runs that are kept for long and seldom read."""

PACKINGS = {"fast": FAST_PACKING, "small": SMALL_PACKING}
"""Packings that a user can ask for, by their names."""

USUAL_PACKING = FAST_PACKING
"""That of tiles which are packed here unless something else is asked for."""

DENSE_PACKING = Packing(cname="zstd", clevel=5, blocksize=0)
"""What a reduction is compared with: slower to write, and smaller. Nothing is stored like this."""
