"""The header of a Blosc buffer: what it says about the pixels that are packed behind it.

Source: the format of c-blosc 1.21, [1]_.

References
----------
.. [1] https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sfxreduce.errors import SchemaError, SourceError
from sfxreduce.io.chunks.ranges import Stored
from sfxreduce.io.chunks.size_limits import check_ratio

__all__ = ["HEADER_BYTES", "SHUFFLES", "USUAL_PACKING", "BloscHeader", "Packing"]

HEADER = "<4B3I"
HEADER_BYTES = struct.calcsize(HEADER)
FORMAT_VERSION = 2
SHUFFLED, MEMCPYED, BITSHUFFLED = 0x1, 0x2, 0x4
COMPRESSORS = {0: "blosclz", 1: "lz4", 3: "zlib", 4: "zstd"}
"""Names of the formats that c-blosc numbers; lz4hc unpacks as lz4 and has the same number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BloscHeader:
    """What a Blosc buffer says about itself.

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
        version, format_version, flags, typesize, found, blocksize, n_packed = struct.unpack(
            HEADER, raw
        )
        if found != n_bytes:
            raise SourceError(f"packed pixels: expected {n_bytes} bytes of pixels, found {found}")
        if n_packed > stored.n_bytes:
            raise SourceError(
                f"packed pixels: expected {n_packed} bytes by their header, found {stored.n_bytes}"
            )
        check_ratio(n_bytes, n_packed)
        return cls(
            version=version,
            format_version=format_version,
            flags=flags,
            typesize=typesize,
            n_bytes=n_bytes,
            blocksize=blocksize,
            n_packed=n_packed,
        )

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
        return struct.pack(
            HEADER,
            self.version,
            self.format_version,
            self.flags,
            self.typesize,
            n_bytes,
            self.blocksize,
            n_packed,
        )


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

    cname: str = "zstd"
    clevel: int = 1
    shuffle: str = "bitshuffle"
    blocksize: int = 32 * 1024

    def __post_init__(self) -> None:
        if not 0 <= self.clevel <= 9 or self.shuffle not in SHUFFLES or self.blocksize < 0:
            raise SchemaError(
                f"packing: expected a level from 0 to 9, a shuffle of {', '.join(SHUFFLES)} and a "
                f"block of 0 or more bytes, found {self.clevel}, '{self.shuffle}' and "
                f"{self.blocksize}"
            )


USUAL_PACKING = Packing()
"""That of tiles which are packed here."""
