"""What the storage of a foreign HDF5 dataset may ask for: known filters, sizes that can be held.

Filters are compiled code that allocates what a chunk claims. So only those are let through that
are known, and the claim of a chunk is held against its shape before HDF5 unpacks it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import product

import h5py

from sfxreduce.errors import SchemaError, SourceError
from sfxreduce.io.chunks.limits import (
    MOST_CHUNK_BYTES,
    MOST_RATIO,
    SPARED_BYTES,
    check_packed,
    check_ratio,
)

__all__ = [
    "BITSHUFFLE",
    "GZIP",
    "SHUFFLE",
    "check_chunks",
    "check_dataset",
    "check_mask",
    "check_whole",
    "filters_of",
]

GZIP, SHUFFLE, FLETCHER32 = 1, 2, 3
CHECKSUM_BYTES = 4
LZF, BLOSC, LZ4, BITSHUFFLE, ZSTD, BLOSC2 = 32000, 32001, 32004, 32008, 32015, 32026
PACKERS = (GZIP, LZF, BLOSC, LZ4, BITSHUFFLE, ZSTD, BLOSC2)
KNOWN = (SHUFFLE, FLETCHER32, *PACKERS)
"""Numbers of the filters that are let through, as the HDF Group registers them."""

MOST_CHUNKS = 1 << 20
"""Chunks of a dataset that is read whole, as all but the frames are."""

TEXT_ITEM_BYTES = 64
CLAIMED: dict[int, tuple[str, int]] = {
    BLOSC: ("<I", 4),
    LZ4: (">Q", 0),
    BITSHUFFLE: (">Q", 0),
    BLOSC2: (">q", 30),
}
"""How, and where in a packed chunk, each filter says how many bytes will come out."""

HARMLESS_BYTES = 1 << 20
"""Chunks that gzip packed into less can unpack to a gigabyte at most."""


def check_dataset(dataset: h5py.Dataset, where: str) -> None:
    """Refuse filters that are not known, and chunks too large to be held.

    Parameters
    ----------
    where : str
        Path of the file, for the message.

    Raises
    ------
    SchemaError
        If a filter is not among those that are let through, values are packed twice, or a chunk
        has more than `MOST_CHUNK_BYTES`.
    SourceError
        If the filter is not installed.
    """
    packers = 0
    for code, _, _, name in filters_of(dataset):
        packers += code in PACKERS
        label = f"{code} ({name.decode(errors='replace')[:40]})"
        if code not in KNOWN:
            raise SchemaError(
                f"{where}: {dataset.name} is packed with filter {label}, which is not among those "
                f"that are accepted, {', '.join(map(str, KNOWN))}; repack it, with gzip say"
            )
        if not h5py.h5z.filter_avail(code):
            raise SourceError(
                f"{where}: {dataset.name} is compressed with filter {label}, which is not "
                "installed; install hdf5plugin anew"
            )
    if packers > 1:
        raise SchemaError(f"{where}: {dataset.name} is packed {packers} times over; repack it once")
    if dataset.chunks and _chunk_bytes(dataset) > MOST_CHUNK_BYTES:
        raise SchemaError(
            f"{where}: {dataset.name}: expected chunks of at most {MOST_CHUNK_BYTES} bytes, found "
            f"{dataset.chunks} of {dataset.dtype}; repack it in smaller chunks"
        )


def check_whole(dataset: h5py.Dataset, where: str) -> None:
    """Refuse a dataset that is to be read whole and is far larger than what is stored.

    Raises
    ------
    SchemaError
        If it is.
    SourceError
        If one of its chunks is refused; see `check_chunks`.
    """
    item = TEXT_ITEM_BYTES if dataset.dtype.kind == "O" else dataset.dtype.itemsize
    n_bytes = dataset.size * item
    if n_bytes > SPARED_BYTES and n_bytes > MOST_RATIO * max(dataset.id.get_storage_size(), 1):
        raise SchemaError(
            f"{where}: {dataset.name} declares {n_bytes} bytes, more than {MOST_RATIO} times what "
            "is stored; fetch the file again"
        )
    if dataset.chunks and dataset.id.get_num_chunks() > MOST_CHUNKS:
        raise SchemaError(
            f"{where}: {dataset.name}: expected at most {MOST_CHUNKS} chunks, found more; repack it"
        )
    check_chunks(dataset, 0, dataset.shape[0] if dataset.ndim else 1)


def check_chunks(dataset: h5py.Dataset, start: int, stop: int, box: Sequence[slice] = ()) -> None:
    """Refuse stored chunks that contradict themselves, or would unpack to more than their shape.

    Parameters
    ----------
    start, stop : int
        Rows along the first axis whose chunks are looked at.
    box : sequence of slice, optional
        Of the other axes, whole chunks; all of them by default.

    Raises
    ------
    SourceError
        If there is one; see `sfxreduce.io.chunks.limits`.
    """
    if dataset.is_virtual or dataset.chunks is None or dataset.size == 0:
        return
    codes = [int(code) for code, *_ in filters_of(dataset)]
    packer = next((code for code in codes if code in PACKERS), 0)
    n_bytes = _chunk_bytes(dataset)
    step = dataset.chunks[0]
    rows = range(start // step * step, stop, step)
    axes = box or [slice(0, n) for n in dataset.shape[1:]]
    others = (range(a.start, a.stop, c) for a, c in zip(axes, dataset.chunks[1:], strict=True))
    for place in product(rows, *others):
        stored = dataset.id.get_chunk_info_by_coord(place)
        if stored.byte_offset is None or not stored.size:
            continue
        check_mask(codes, stored.filter_mask, n_stored=stored.size, n_bytes=n_bytes)
        if packer:
            check_ratio(n_bytes, stored.size)
            if stored.size >= HARMLESS_BYTES or packer != GZIP:
                _check_chunk(dataset, place, packer, n_bytes)


def check_mask(codes: Sequence[int], left_out: int, *, n_stored: int, n_bytes: int) -> None:
    """Refuse a chunk whose filter mask and size contradict each other.

    The mask lies in an index without a checksum of its own. HDF5 believes it: of one flipped bit it
    makes packed bytes pixels, or reads beyond what is stored.

    Parameters
    ----------
    codes : sequence of int
        Numbers of the filters, in their order.
    left_out : int
        Filter mask: bit n is set where the n-th filter was not applied.
    n_stored, n_bytes : int
        Of the chunk as it is stored, and of its pixels.

    Raises
    ------
    SourceError
        If nothing packed the chunk and it is not as long as its pixels, or a filter that cannot
        fail was left out although one packed it.

    Examples
    --------
    >>> check_mask([SHUFFLE, GZIP], 0, n_stored=90, n_bytes=200)
    >>> check_mask([SHUFFLE, GZIP], 0b10, n_stored=200, n_bytes=200)
    >>> check_mask([SHUFFLE, GZIP], 0b10, n_stored=90, n_bytes=200)
    Traceback (most recent call last):
    sfxreduce.errors.SourceError: chunk: expected 200 bytes that nothing packed, found 90
    """
    applied = [code for place, code in enumerate(codes) if not left_out >> place & 1]
    plain = n_bytes + CHECKSUM_BYTES * (FLETCHER32 in applied)
    if not any(code in PACKERS for code in applied):
        if n_stored != plain:
            raise SourceError(
                f"chunk: expected {plain} bytes that nothing packed, found {n_stored}"
            )
    elif len(applied) != len(codes):
        raise SourceError(
            f"chunk: expected it to have passed the filters {list(codes)}, found {applied} only"
        )


def _check_chunk(dataset: h5py.Dataset, place: tuple[int, ...], packer: int, n_bytes: int) -> None:
    """Hold what one stored chunk claims against its shape."""
    left_out, raw = dataset.id.read_direct_chunk(place)
    if left_out:
        return
    packed = memoryview(raw)
    # A checksum of the pixels may have been packed with them.
    most = n_bytes + CHECKSUM_BYTES
    if packer == ZSTD:
        check_packed(packed, packing="zstd", most_bytes=most)
    elif packer == GZIP:
        check_packed(packed, packing="zlib", most_bytes=most)
    elif packer in CLAIMED:
        form, offset = CLAIMED[packer]
        if len(packed) < offset + struct.calcsize(form):
            return
        (claimed,) = struct.unpack_from(form, packed, offset)
        if packer == BITSHUFFLE and _only_turns(dataset):
            return
        # Blosc 2 may say how long its frame is.
        if claimed > most or (packer != BLOSC2 and claimed not in (n_bytes, most)):
            raise SourceError(
                f"{dataset.name}: expected a chunk of {n_bytes} bytes, found one that claims "
                f"{claimed}"
            )


def _only_turns(dataset: h5py.Dataset) -> bool:
    """Whether bitshuffle only turns bits, so that a chunk is as long as its pixels and claims
    nothing.
    """
    given = [numbers for code, _, numbers, _ in filters_of(dataset) if code == BITSHUFFLE]
    return bool(given) and (len(given[0]) < 5 or given[0][4] == 0)


def filters_of(dataset: h5py.Dataset) -> list[tuple[int, int, tuple[int, ...], bytes]]:
    """Filters of a dataset in their order: number, flags, the numbers it was given, name."""
    created = dataset.id.get_create_plist()
    return [created.get_filter(i) for i in range(created.get_nfilters())]


def _chunk_bytes(dataset: h5py.Dataset) -> int:
    return int(math.prod(dataset.chunks) * dataset.dtype.itemsize)
