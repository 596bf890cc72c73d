"""A part of a chunk is what the whole chunk has there, and costs no more than the part."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import blosc

from sfxreduce.errors import SourceError
from sfxreduce.io.chunks import decode as partial
from sfxreduce.io.chunks.blosc import SHUFFLES, BloscHeader, FileRange, MemoryRange, Packing
from sfxreduce.io.chunks.decode import copy_spans, unpack_spans


def pack(data: np.ndarray, cname: str, clevel: int, shuffle: int, blocksize: int) -> bytes:
    blosc.use_threads = False
    return blosc.compress(data, cname.encode(), clevel, shuffle, blocksize)


def in_memory(packed: bytes) -> MemoryRange:
    return MemoryRange(data=memoryview(packed))


@st.composite
def chunks(draw: st.DrawFn) -> np.ndarray:
    """Pixels that pack well in some places and not at all in others."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    pixels = rng.integers(0, 7, draw(st.integers(1, 200_000)))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, pixels.size))
        part = pixels[start : start + draw(st.sampled_from([40, 4000, 100_000]))]
        part[:] = rng.integers(-(2**31), 2**31, part.size)
    return pixels.astype(draw(st.sampled_from(["i2", "u1", "i4", "f4", "f8"])))


@st.composite
def spans_of(draw: st.DrawFn, n_bytes: int) -> np.ndarray:
    ends = st.integers(0, n_bytes)
    pairs = draw(st.lists(st.tuples(ends, ends).map(sorted), min_size=1, max_size=4))
    return np.array([pair for pair in pairs if pair[0] < pair[1]], np.int64).reshape(-1, 2)


def check(found: np.ndarray, data: np.ndarray, spans: np.ndarray) -> None:
    whole = np.frombuffer(data.tobytes(), np.uint8)
    assert found.size == whole.size
    for first, stop in spans:
        np.testing.assert_array_equal(found[first:stop], whole[first:stop])


@settings(max_examples=300, deadline=None)
@given(
    data=chunks(),
    cname=st.sampled_from(["blosclz", "lz4", "lz4hc", "zlib", "zstd"]),
    clevel=st.sampled_from([0, 1, 5, 9]),
    shuffle=st.sampled_from([0, 1, 2]),
    blocksize=st.sampled_from([0, 128, 1000, 4096, 32768]),
    draw=st.data(),
)
def test_a_part_of_a_packed_chunk_is_what_the_whole_has_there(
    data: np.ndarray, cname: str, clevel: int, shuffle: int, blocksize: int, draw: st.DataObject
) -> None:
    packed = pack(data, cname, clevel, shuffle, blocksize)
    spans = draw.draw(spans_of(data.nbytes))
    check(unpack_spans(in_memory(packed), data.nbytes, spans), data, spans)
    everything = unpack_spans(in_memory(packed + b"more"), data.nbytes)
    check(everything, data, np.array([[0, data.nbytes]]))


@settings(max_examples=50, deadline=None)
@given(data=chunks(), draw=st.data())
def test_a_part_of_a_file_is_read_at_its_place(
    data: np.ndarray, draw: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("chunk") / "0"
    packed = pack(data, "zstd", 1, 2, 1024)
    path.write_bytes(b"before" + packed + data.tobytes())
    spans = draw.draw(spans_of(data.nbytes))
    file = os.open(path, os.O_RDONLY)
    try:
        stored = FileRange(file=file, path=path, start=6, n_bytes=len(packed))
        check(unpack_spans(stored, data.nbytes, spans), data, spans)
        plain = FileRange(file=file, path=path, start=6 + len(packed), n_bytes=data.nbytes)
        out = np.zeros(data.nbytes, np.uint8)
        copy_spans(plain, out, spans)
        check(out, data, spans)
    finally:
        os.close(file)


def test_blocks_may_lie_in_any_order() -> None:
    """Several threads write theirs as they are done."""
    data = np.arange(30_000, dtype="i2")
    packed = pack(data, "zstd", 1, 1, 4096)
    n_blocks = BloscHeader.of(in_memory(packed), n_bytes=data.nbytes).n_blocks
    assert n_blocks == 15
    starts = np.frombuffer(packed, "<i4", n_blocks, 16)
    ends = [*starts[1:].tolist(), len(packed)]
    order = np.random.default_rng(0).permutation(n_blocks)
    places, body = {}, b""
    for block in order:
        places[block] = starts[0] + len(body)
        body += packed[starts[block] : ends[block]]
    table = np.array([places[block] for block in range(n_blocks)], "<i4").tobytes()
    mixed = packed[:16] + table + body
    assert len(mixed) == len(packed)
    for spans in ([[5000, 5001]], [[100, 9000], [40_000, 60_000]], [[59_999, 60_000]]):
        found = unpack_spans(in_memory(mixed), data.nbytes, np.array(spans))
        check(found, data, np.array(spans))


def test_no_more_blocks_are_fetched_and_unpacked_than_hold_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = np.random.default_rng(0).poisson(3, 500_000).astype("i2")
    packed = pack(data, "zstd", 1, 2, 32768)
    (tmp_path / "0").write_bytes(packed)
    n_fetched, n_unpacked = 0, 0
    preadv, decompress = os.preadv, partial._decompress

    def fetching(file: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal n_fetched
        n_fetched += sum(len(buffer) for buffer in buffers)
        return preadv(file, buffers, offset)

    def unpacking(buffer: memoryview, out: np.ndarray) -> None:
        nonlocal n_unpacked
        n_unpacked += out.nbytes
        decompress(buffer, out)

    monkeypatch.setattr("sfxreduce.io.chunks.blosc.os.preadv", fetching)
    monkeypatch.setattr(partial, "_decompress", unpacking)
    file = os.open(tmp_path / "0", os.O_RDONLY)
    stored = FileRange(file=file, path=tmp_path / "0", start=0, n_bytes=len(packed))
    spans = np.array([[100_000, 101_000], [400_000, 440_000]])
    check(unpack_spans(stored, data.nbytes, spans), data, spans)
    os.close(file)
    wanted = {b for first, stop in spans for b in range(first // 32768, (stop - 1) // 32768 + 1)}
    assert n_unpacked == 32768 * len(wanted)
    starts = np.frombuffer(packed, "<i4", -(-data.nbytes // 32768), 16)
    sizes = np.diff(np.append(starts, len(packed)))
    assert n_fetched == 16 + 4 * len(starts) + sum(int(sizes[block]) for block in wanted)


def test_a_header_that_does_not_fit_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = np.zeros(1000, "i2")
    packed = pack(data, "zstd", 1, 2, 0)

    def making(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(partial.np, "empty", making)
    for stored, n_bytes, match in (
        (packed, 2**40, "expected 1099511627776 bytes of pixels, found 2000"),
        (packed[:4] + struct.pack("<I", 2**31) + packed[8:], 2000, "found 2147483648"),
        (packed[:-1], 2000, "by their header"),
        (packed[:15], 2000, "expected a header of 16 bytes, found 15"),
    ):
        with pytest.raises(SourceError, match=match):
            unpack_spans(in_memory(stored), n_bytes)


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, 10**6), value=st.integers(0, 255), shuffle=st.integers(0, 2))
def test_damage_is_an_error_or_passes_unseen_but_ends_nothing(
    position: int, value: int, shuffle: int
) -> None:
    data = np.random.default_rng(0).poisson(2, 20_000).astype("i2")
    packed = bytearray(pack(data, "zstd", 5, shuffle, 4096))
    # Headers and places of blocks are where damage could lead astray.
    packed[position % (400 if position % 2 else len(packed))] = value
    for spans in (None, np.array([[9000, 9100], [39_000, 40_000]])):
        try:
            found = unpack_spans(in_memory(bytes(packed)), data.nbytes, spans)
        except SourceError:
            continue
        assert found.size == data.nbytes


@given(
    packing=st.builds(
        Packing,
        cname=st.sampled_from(["blosclz", "lz4", "zlib", "zstd"]),
        clevel=st.integers(0, 9),
        shuffle=st.sampled_from(SHUFFLES),
        blocksize=st.just(4096),
    )
)
def test_a_header_tells_how_a_buffer_was_packed(packing: Packing) -> None:
    data = np.arange(10_000, dtype="i2")
    shuffle = SHUFFLES.index(packing.shuffle)
    packed = pack(data, packing.cname, packing.clevel, shuffle, packing.blocksize)
    header = BloscHeader.of(in_memory(packed), n_bytes=data.nbytes)
    # Blosc takes the size of a block as a wish.
    expected = replace(packing, blocksize=header.blocksize)
    assert header.packing(clevel=packing.clevel) == expected


def test_a_range_does_not_leave_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(bytes(10))
    file = os.open(tmp_path / "0", os.O_RDONLY)
    try:
        short = FileRange(file=file, path=tmp_path / "0", start=4, n_bytes=8)
        with pytest.raises(SourceError, match="expected 8 bytes from 4 on, found 6"):
            short.whole()
        for stored in (short, in_memory(bytes(8))):
            with pytest.raises(SourceError, match="ends at 9"):
                stored.fetch(5, memoryview(bytearray(4)))
    finally:
        os.close(file)
