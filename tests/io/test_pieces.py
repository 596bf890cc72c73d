"""Pixels go from tiles to the places where a window or a frame shows them, and none is missed."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from planted import panelled_detector

from sfxreduce.io.chunks.layout import Layout
from sfxreduce.io.chunks.pieces import TilePiece, frame_pieces, tile_pieces
from sfxreduce.io.readers.crop import take_window
from sfxreduce.run.detector import Detector
from sfxreduce.run.window import Window

DETECTORS = st.sampled_from(
    [
        Detector.centred("camera", (30, 41)),
        panelled_detector(3, shape=(11, 14)),
        Detector.unplaced("slabs", (4, 5, 9)),
    ]
)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    origin = st.tuples(st.integers(-9, 40), st.integers(-9, 40))
    return Window(
        name="tiles",
        tile_shape=draw(st.tuples(st.integers(1, 20), st.integers(1, 20))),
        origins=tuple(draw(st.lists(origin, min_size=1, max_size=4))),
    )


def cut(frame: np.ndarray, tile_shape: tuple[int, ...]) -> dict[int, np.ndarray]:
    """All tiles of a frame by their number, those at its edge filled up."""
    grid = [math.ceil(n / side) for n, side in zip(frame.shape, tile_shape, strict=True)]
    tiles = {}
    for number, place in enumerate(np.ndindex(*grid)):
        part = frame[tuple(slice(p * s, (p + 1) * s) for p, s in zip(place, tile_shape))]  # noqa: B905
        tiles[number] = np.pad(part, [(0, s - n) for s, n in zip(tile_shape, part.shape)])  # noqa: B905
    return tiles


def shown(pieces: tuple[TilePiece, ...], tiles: dict[int, np.ndarray], picture: np.ndarray) -> None:
    """Put pieces together of tiles that hold nothing but what the spans promise."""
    assert [piece.tile for piece in pieces] == sorted({piece.tile for piece in pieces})
    for piece in pieces:
        tile = tiles[piece.tile].reshape(-1)
        if piece.spans is not None:
            known = np.zeros(tile.size, bool)
            for first, stop in piece.spans:
                known[first:stop] = True
            assert (np.diff(piece.spans.reshape(-1)) > 0).all()
            tile = np.where(known, tile, -1)
        piece.put(tile, picture)


@given(detector=DETECTORS, window=windows(), draw=st.data())
def test_tiles_of_any_shape_show_what_the_whole_frame_shows(
    detector: Detector, window: Window, draw: st.DataObject
) -> None:
    shape = detector.frame_shape
    tile_shape = draw.draw(st.tuples(*(st.integers(1, n + 2) for n in shape)))
    frame = np.arange(1, math.prod(shape) + 1).reshape(shape)
    picture = np.zeros(window.shape, frame.dtype)
    tiles, pieces = cut(frame, tile_shape), tile_pieces(shape, tile_shape, detector, window)
    shown(pieces, tiles, picture)
    needed = [n for n, tile in tiles.items() if np.isin(tile[tile > 0], picture).any()]
    assert [piece.tile for piece in pieces] == needed
    np.testing.assert_array_equal(picture, window.take(frame, detector))
    np.testing.assert_array_equal(take_window(frame[np.newaxis], detector, window)[0], picture)


@given(detector=DETECTORS, tile=st.tuples(st.integers(1, 40), st.integers(1, 50)))
def test_all_tiles_of_a_frame_are_the_frame(detector: Detector, tile: tuple[int, int]) -> None:
    layout = Layout(frame_shape=detector.frame_shape, tile=tile, events_per_shard=1)
    frame = np.arange(math.prod(layout.frame_shape)).reshape(layout.frame_shape)
    picture = np.full_like(frame, -1)
    shown(frame_pieces(layout), cut(frame, layout.chunks[1:]), picture)
    np.testing.assert_array_equal(picture, frame)


def test_the_centre_of_a_camera_is_one_rectangle() -> None:
    camera = Detector.centred("camera", (1750, 1750))
    pieces = tile_pieces((1750, 1750), (1750, 1750), camera, Window.centre(camera))
    (copy,) = pieces[0].copies
    assert copy.source == (slice(700, 1050), slice(700, 1050))
    assert pieces[0].spans is not None
    assert pieces[0].spans.tolist() == [[700 * 1750 + 700, 1049 * 1750 + 1050]]
