"""Stored bytes are those of the Zarr format, and damage to them never passes as data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sfxreduce.errors import SourceError
from sfxreduce.io.chunks import shards
from sfxreduce.io.chunks.blosc import PACKINGS
from sfxreduce.io.chunks.decode import PackedTiles, can_unpack_many, unpack_many, unpack_parts
from sfxreduce.io.chunks.shards import ABSENT, ShardFile, TileCodec, shard_parts, with_crc

NOT_SPLIT = 0x10
"""Of the flags in a Blosc header."""

DTYPES = st.sampled_from(["int16", "uint16", "int32", "uint8", "float32", ">i2"])


@given(
    pixels=DTYPES.flatmap(
        lambda d: hnp.arrays(np.dtype(d), hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))
    ),
    packing=st.sampled_from(sorted(PACKINGS)),
)
def test_a_tile_comes_back_bit_for_bit(pixels: np.ndarray, packing: str) -> None:
    codec = TileCodec(dtype=pixels.dtype, tile=pixels.shape, packing=PACKINGS[packing])
    back = codec.decode(codec.encode(pixels))
    assert back.dtype == pixels.dtype
    assert back.tobytes() == pixels.tobytes()


@pytest.mark.parametrize("packing", PACKINGS)
def test_blocks_of_a_tile_are_not_split(packing: str) -> None:
    # By default Blosc packs the bytes of a pixel apart: half as many bytes again.
    tile = np.random.default_rng(0).poisson(0.2, (350, 350)).astype("u2")
    codec = TileCodec(dtype=tile.dtype, tile=tile.shape, packing=PACKINGS[packing])
    encoded = codec.encode(tile)
    assert encoded[2] & NOT_SPLIT
    assert len(encoded) < 0.12 * tile.nbytes  # 0.14 where they are


@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_every_flipped_bit_of_a_tile_is_noticed(position: int, bit: int) -> None:
    codec = TileCodec(dtype=np.dtype("int16"), tile=(20, 30))
    rng = np.random.default_rng(0)
    stored = bytearray(codec.encode(rng.poisson(5, (20, 30)).astype("int16")))
    stored[position % len(stored)] ^= 1 << bit
    with pytest.raises(SourceError, match="crc32c"):
        codec.decode(bytes(stored))


def test_a_tile_of_another_size_is_refused_before_it_is_unpacked() -> None:
    large = TileCodec(dtype=np.dtype("int16"), tile=(500, 500)).encode(np.zeros((500, 500), "i2"))
    with pytest.raises(SourceError, match="expected 1200 bytes of pixels"):
        TileCodec(dtype=np.dtype("int16"), tile=(20, 30)).decode(large)


@given(
    dtype=DTYPES,
    damaged=st.lists(st.booleans(), max_size=12),
    bit=st.integers(0, 10**6),
    compiled=st.booleans(),
)
def test_many_tiles_are_decoded_as_each_of_them_is(
    dtype: str, damaged: list[bool], bit: int, compiled: bool
) -> None:
    codec = TileCodec(dtype=np.dtype(dtype), tile=(20, 30))
    rng = np.random.default_rng(bit)
    tiles = rng.poisson(5, (len(damaged), 20, 30)).astype(dtype)
    stored = [bytearray(codec.encode(tile)) for tile in tiles]
    for one, is_damaged in zip(stored, damaged, strict=True):
        if is_damaged:
            one[bit // 8 % len(one)] ^= 1 << bit % 8
    places = rng.permutation(len(tiles) + 2)[: len(tiles)]
    out = np.full((len(tiles) + 2, 20, 30), 99, dtype)
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(shards, "can_unpack_many", lambda: False)
        decoded = codec.decode_many(PackedTiles.of([bytes(one) for one in stored]), out, places)
    assert decoded.tolist() == [not is_damaged for is_damaged in damaged]
    np.testing.assert_array_equal(out[places[decoded]], tiles[decoded])
    assert (np.delete(out, places, axis=0) == 99).all()


@pytest.mark.parametrize("compiled", [True, False])
def test_tiles_that_lie_about_their_size_are_not_decoded_with_others(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = TileCodec(dtype=np.dtype("int16"), tile=(20, 30))
    good = codec.encode(np.ones((20, 30), "i2"))
    large = TileCodec(dtype=np.dtype("int16"), tile=(50, 50)).encode(np.zeros((50, 50), "i2"))
    longer = bytearray(good[:-4])
    longer[12:16] = (len(longer) + 9).to_bytes(4, "little")  # packed bytes, by the header
    # A checksum that is right does not make it true.
    stored = [good, large, with_crc(bytes(longer)), with_crc(b""), b"", with_crc(b"blosc"), good]
    if not compiled:
        monkeypatch.setattr(shards, "can_unpack_many", lambda: False)
    out = np.zeros((7, 20, 30), "int16")
    decoded = codec.decode_many(PackedTiles.of(stored), out, np.arange(7))
    assert decoded.tolist() == [True, False, False, False, False, False, True]
    assert out[[0, 6]].all()


def test_blosc_can_be_called_from_compiled_code() -> None:
    # Without it everything works, and threads that decode wait for one another.
    assert can_unpack_many()
    with pytest.raises(ValueError, match="2 places in 1 rows"):
        unpack_many(PackedTiles.of([b"", b""]), np.zeros((1, 8), np.uint8), np.array([0, 1]))


def test_a_tile_is_decoded_right_where_it_belongs() -> None:
    codec = TileCodec(dtype=np.dtype(">i2"), tile=(20, 30))
    tile = np.arange(600).reshape(20, 30).astype(">i2")
    for dtype in ("<i2", ">i2", "int32"):
        out = np.zeros((20, 30), dtype)
        assert codec.decode(codec.encode(tile), out=out) is out
        np.testing.assert_array_equal(out, tile)


@given(
    sizes=st.lists(st.one_of(st.none(), st.integers(0, 50)), min_size=1, max_size=20),
    order=st.lists(st.integers(0, 19), max_size=30),
)
def test_a_shard_gives_back_the_tiles_it_was_packed_from(
    sizes: list[int | None], order: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tiles = [None if n is None else bytes([i % 251]) * n for i, n in enumerate(sizes)]
    path = tmp_path_factory.mktemp("shard") / "0"
    path.write_bytes(b"".join(shard_parts(tiles)))
    with ShardFile(path, n_tiles=len(tiles)) as shard:
        assert [shard.read(i) for i in range(len(tiles))] == tiles
        chosen = np.array(order, np.int64) % len(tiles)
        packed = shard.read_tiles(chosen)
        assert [one.tobytes() for one in packed] == [tiles[i] or b"" for i in chosen]
        assert shard.holds(range(len(tiles))).tolist() == [t is not None for t in tiles]


@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_every_flipped_bit_of_an_index_is_noticed(
    position: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(b"".join(shard_parts([b"abc", b"defg", None])))
    index_bytes = 3 * 16 + 4
    data[len(data) - 1 - position % index_bytes] ^= 1 << bit
    path = tmp_path_factory.mktemp("shard") / "0"
    path.write_bytes(data)
    with pytest.raises(SourceError, match="crc32c"):
        ShardFile(path, n_tiles=3)


@pytest.mark.parametrize("keep", [0, 3, 30, 54])
def test_a_shortened_shard_is_refused(keep: int, tmp_path: Path) -> None:
    data = b"".join(shard_parts([b"abc", b"defg", None]))
    (tmp_path / "0").write_bytes(data[:keep])
    with pytest.raises(SourceError, match=r"expected a shard|crc32c"):
        ShardFile(tmp_path / "0", n_tiles=3)


@pytest.mark.parametrize("pair", [(10**9, 4), (2**64 - 2, 4), (0, 2**63)])
def test_an_index_that_points_outside_its_file_is_refused(
    pair: tuple[int, int], tmp_path: Path
) -> None:
    import google_crc32c

    index = np.array([pair], "<u8").tobytes()
    crc = int(google_crc32c.value(index)).to_bytes(4, "little")
    (tmp_path / "0").write_bytes(b"abcd" + index + crc)
    with pytest.raises(SourceError, match="points outside"):
        ShardFile(tmp_path / "0", n_tiles=1)


def test_zarr_itself_reads_what_is_packed_here(tmp_path: Path) -> None:
    codec = TileCodec(dtype=np.dtype("int16"), tile=(4, 5))
    serializer, compressors = codec.zarr_codecs()
    array = zarr.create_array(
        str(tmp_path / "a"),
        shape=(2, 8, 10),
        dtype="int16",
        chunks=(1, 4, 5),
        shards=(2, 8, 10),
        serializer=serializer,
        compressors=compressors,
        fill_value=-1,
    )
    frames = np.arange(160, dtype="int16").reshape(2, 8, 10)
    tiles = [
        codec.encode(frames[e, y : y + 4, x : x + 5])
        for e in range(2)
        for y in (0, 4)
        for x in (0, 5)
    ]
    file = tmp_path / "a" / "c" / "0" / "0" / "0"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"".join(shard_parts(tiles)))
    np.testing.assert_array_equal(array[...], frames)


def test_an_absent_tile_is_marked_as_the_format_says() -> None:
    assert ABSENT == 2**64 - 1


@pytest.mark.parametrize("seed", range(3))
def test_parts_of_a_damaged_tile_are_refused_or_garbage_and_end_no_process(seed: int) -> None:
    rng, parts = np.random.default_rng(seed), np.array([[20480, 24576], [118784, 122500]])
    pixels = rng.poisson(5, (350, 350)).astype(np.int16)
    encoded = TileCodec(dtype=np.dtype(np.int16), tile=(350, 350)).encode(pixels)
    sizes = {"n_bytes": pixels.nbytes, "itemsize": 2}
    out = np.zeros((1, 2 * int(np.diff(parts).sum())), np.uint8)
    assert unpack_parts(PackedTiles.of([encoded]), out, parts, **sizes).all()
    wanted = np.concatenate([pixels.ravel()[first:stop] for first, stop in parts])
    np.testing.assert_array_equal(out.view(np.int16)[0], wanted)
    refused = 0
    for _ in range(200):
        damaged = bytearray(encoded)
        # In the header and the places of the blocks, where damage leads out of the buffer.
        for place in rng.integers(0, 16 + 4 * 30, 3):
            damaged[place] = int(rng.integers(0, 256))
        packed = PackedTiles.of([bytes(damaged)])
        refused += not unpack_parts(packed, out, parts, **sizes).all()
    assert refused
