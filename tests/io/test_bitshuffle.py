"""Chunks of the bitshuffle filter: HDF5's pixels, no more blocks than asked for, no trust."""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfxreduce.errors import SourceError
from sfxreduce.io.chunks.blosc import MemoryRange
from sfxreduce.io.readers.hdf5 import bitshuffle
from sfxreduce.io.readers.hdf5.bitshuffle import unpack_bitshuffle_lz4


def packed_by_hdf5(pixels: np.ndarray, nelems: int = 0) -> bytes:
    """One chunk as HDF5 stores it."""
    with h5py.File(io.BytesIO(), "w") as file:
        data = file.create_dataset(
            "d",
            data=pixels,
            chunks=pixels.shape,
            **hdf5plugin.Bitshuffle(nelems=nelems, cname="lz4"),
        )
        return bytes(data.id.read_direct_chunk((0,))[1])


def unpacked(chunk: bytes, n_bytes: int, itemsize: int, spans: Any = None) -> np.ndarray:
    out = np.zeros(n_bytes, np.uint8)
    wanted = None if spans is None else np.array(spans, np.int64)
    unpack_bitshuffle_lz4(MemoryRange(data=memoryview(chunk)), out, wanted, itemsize=itemsize)
    return out


def pixels_of(n: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(n).poisson(2, n).astype(dtype)


class TestPixels:
    @settings(max_examples=150)
    @given(
        n=st.integers(1, 9000),
        dtype=st.sampled_from(["u1", "<i2", ">i2", "<u4", "<f4"]),
        nelems=st.sampled_from([0, 8, 16, 1024]),
        draw=st.data(),
    )
    def test_are_those_of_hdf5_wherever_they_are_asked_for(
        self, n: int, dtype: str, nelems: int, draw: st.DataObject
    ) -> None:
        pixels = pixels_of(n, dtype)
        chunk = packed_by_hdf5(pixels, nelems)
        expected = np.frombuffer(pixels.tobytes(), np.uint8)
        whole = unpacked(chunk, pixels.nbytes, pixels.itemsize)
        np.testing.assert_array_equal(whole, expected)
        ends = st.tuples(st.integers(0, n - 1), st.integers(1, n)).map(
            lambda pair: (pair[0], max(pair)) if pair[1] > pair[0] else (pair[1] - 1, pair[0] + 1)
        )
        spans = draw.draw(st.lists(ends, min_size=1, max_size=3))
        part = unpacked(
            chunk,
            pixels.nbytes,
            pixels.itemsize,
            [[pixels.itemsize * end for end in span] for span in spans],
        )
        for first, stop in spans:
            there = slice(first * pixels.itemsize, stop * pixels.itemsize)
            np.testing.assert_array_equal(part[there], expected[there])

    def test_cost_no_more_blocks_than_hold_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        unshuffle, asked = bitshuffle._function(), []

        def noting(source: int, target: int, size: int, itemsize: int, block: int) -> int:
            asked.append((size, block))
            return int(unshuffle(source, target, size, itemsize, block))

        monkeypatch.setattr(bitshuffle, "_function", lambda: noting)
        pixels = pixels_of(1000, "<u2")
        chunk = packed_by_hdf5(pixels, 64)
        # Pixels 130 to 200 lie in blocks 2 and 3, the last in the short one at the end.
        unpacked(chunk, 2000, 2, [[260, 400], [1998, 2000]])
        assert asked == [(128, 64), (1000 - 15 * 64, 64)]


class TestDamage:
    @pytest.fixture
    def chunk(self) -> bytes:
        return packed_by_hdf5(pixels_of(1003, "<u2"), 64)

    @pytest.mark.parametrize("kept", [0, 5, 11, 12, 15, 200, -1])
    def test_a_chunk_that_was_cut_is_refused(self, chunk: bytes, kept: int) -> None:
        with pytest.raises(SourceError, match="packed pixels: expected"):
            unpacked(chunk[:kept], 2006, 2)

    @pytest.mark.parametrize(
        ("claimed", "block"), [(2**40, 128), (2004, 128), (2006, 0), (2006, 7), (2006, 2**31 + 8)]
    )
    def test_a_header_that_lies_is_refused(self, chunk: bytes, claimed: int, block: int) -> None:
        with pytest.raises(SourceError, match="packed pixels: expected"):
            unpacked(struct.pack(">QI", claimed, block) + chunk[12:], 2006, 2)

    def test_no_length_of_a_block_leads_outside(self, chunk: bytes) -> None:
        """The library follows lengths wherever they lead; they have to be looked at before."""
        place = 12
        while place + 4 < len(chunk) - 6:
            length = int.from_bytes(chunk[place : place + 4], "big")
            for lie in (0, length - 1, length + 1, 2**31 - 1, 2**32 - 1):
                damaged = chunk[:place] + lie.to_bytes(4, "big") + chunk[place + 4 :]
                with pytest.raises(SourceError, match="packed pixels: expected blocks that end"):
                    unpacked(damaged, 2006, 2)
            place += 4 + length

    @settings(max_examples=100)
    @given(place=st.integers(12, 400), value=st.integers(0, 255))
    def test_a_damaged_block_is_refused_or_gives_pixels(self, place: int, value: int) -> None:
        chunk = bytearray(packed_by_hdf5(pixels_of(1003, "<u2"), 64))
        chunk[place] = value
        with suppress(SourceError):
            assert unpacked(bytes(chunk), 2006, 2).size == 2006
