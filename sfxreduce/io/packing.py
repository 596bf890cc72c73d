"""How tiles are packed: the settings of the Blosc compressor."""

from __future__ import annotations

from dataclasses import dataclass

from sfxreduce.errors import SchemaError

__all__ = ["SHUFFLES", "USUAL_PACKING", "Packing"]

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
