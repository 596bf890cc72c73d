"""Bytes where they lie, in a file or in memory, fetched range by range."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from sfxreduce.errors import SourceError

__all__ = ["FileRange", "MemoryRange", "Stored"]


class Stored(Protocol):
    """Stored bytes of one chunk."""

    @property
    def n_bytes(self) -> int:
        """How many there are."""
        ...

    def fetch(self, start: int, out: memoryview) -> None:
        """Fill a buffer with the bytes from `start` on.

        Raises
        ------
        SourceError
            If there are fewer, or they cannot be read.
        """
        ...

    def whole(self) -> memoryview:
        """Return all of them; raises what `fetch` raises."""
        ...


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
        """Fill a buffer. See `Stored.fetch`."""
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
        """Return all bytes. See `Stored.whole`."""
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
        """Fill a buffer. See `Stored.fetch`."""
        if start < 0 or start + len(out) > len(self.data):
            raise SourceError(
                f"expected {len(self.data)} stored bytes, found a range that ends at "
                f"{start + len(out)}"
            )
        out[:] = self.data[start : start + len(out)]

    def whole(self) -> memoryview:
        """Return all bytes. See `Stored.whole`."""
        return self.data
