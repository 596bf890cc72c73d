"""The tile grid that is chosen reads the fewest bytes; every tile and event has one place."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfxreduce.errors import SchemaError
from sfxreduce.io.chunks.layout import (
    MAX_TILES_PER_PANEL,
    TILE_OVERHEAD_BYTES,
    Layout,
    choose_layout,
)
from sfxreduce.io.chunks.pieces import tile_pieces
from sfxreduce.run.detector import Detector
from sfxreduce.run.window import Box, Window


@st.composite
def frames_and_boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    n_panels = draw(st.integers(1, 3))
    n_y, n_x = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    boxes = []
    for _ in range(draw(st.integers(1, 3))):
        y0, x0 = draw(st.integers(0, n_y - 1)), draw(st.integers(0, n_x - 1))
        boxes.append(
            Box(
                panel=draw(st.integers(0, n_panels - 1)),
                y0=y0,
                y1=draw(st.integers(y0 + 1, n_y)),
                x0=x0,
                x1=draw(st.integers(x0 + 1, n_x)),
            )
        )
    shape = (n_y, n_x) if n_panels == 1 else (n_panels, n_y, n_x)
    return shape, boxes


def tiles_touched(boxes: list[Box], tile: tuple[int, int]) -> int:
    """Count pixel by pixel, box by box."""
    return sum(
        len(
            {
                (y // tile[0], x // tile[1])
                for y in range(box.y0, box.y1)
                for x in range(box.x0, box.x1)
            }
        )
        for box in boxes
    )


@given(case=frames_and_boxes(), itemsize=st.sampled_from([1, 2, 4]))
def test_no_other_grid_costs_less(case: tuple[tuple[int, ...], list[Box]], itemsize: int) -> None:
    shape, boxes = case
    chosen = choose_layout(shape, dtype=np.dtype(f"u{itemsize}"), boxes=boxes)

    def cost(tile: tuple[int, int]) -> float:
        return tiles_touched(boxes, tile) * (tile[0] * tile[1] * itemsize + TILE_OVERHEAD_BYTES)

    allowed = [
        (h, w)
        for h in range(1, shape[-2] + 1)
        for w in range(1, shape[-1] + 1)
        if math.ceil(shape[-2] / h) * math.ceil(shape[-1] / w) <= MAX_TILES_PER_PANEL
    ]
    assert chosen.tile in allowed
    assert cost(chosen.tile) == min(cost(tile) for tile in allowed)


@given(case=frames_and_boxes(), tile=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_tiles_cover_every_pixel_once(
    case: tuple[tuple[int, ...], list[Box]], tile: tuple[int, int]
) -> None:
    shape, _ = case
    layout = Layout(frame_shape=shape, tile=tile, events_per_shard=4)
    times = np.zeros(shape, int)
    for t in range(layout.tiles_per_event):
        times[layout.tile_slices(t)] += 1
    assert (times == 1).all()
    assert all(s % c == 0 for s, c in zip(layout.shards, layout.chunks, strict=True))


@given(event=st.integers(0, 10**7), per_shard=st.integers(1, 512))
def test_every_event_has_one_place(event: int, per_shard: int) -> None:
    layout = Layout(frame_shape=(4, 4), tile=(2, 2), events_per_shard=per_shard)
    shard, place = layout.locate(event)
    assert shard * per_shard + place == event
    assert 0 <= place < per_shard
    assert shard < layout.n_shards(event + 1)


@pytest.mark.parametrize(("shape", "tile"), [((1750, 1750), (350, 350)), ((350, 350), (350, 350))])
def test_the_centre_of_the_usual_cameras_is_one_tile(
    shape: tuple[int, int], tile: tuple[int, int]
) -> None:
    detector = Detector.centred("camera", shape)
    boxes = Window.centre(detector).boxes(detector)
    layout = choose_layout(shape, dtype=np.dtype("int16"), boxes=boxes)
    assert layout.tile == tile
    shapes = layout.frame_shape, layout.chunks[1:]
    assert len(tile_pieces(*shapes, detector, Window.centre(detector))) == 1


def test_a_shard_is_near_its_target_and_holds_an_event_at_least() -> None:
    box = [Box(panel=0, y0=0, y1=1, x0=0, x1=1)]
    small = choose_layout((64, 64), dtype=np.dtype("u1"), boxes=box, target_shard_bytes=10**6)
    huge = choose_layout((640, 640), dtype=np.dtype("u4"), boxes=box, target_shard_bytes=10)
    assert small.events_per_shard == 128
    assert huge.events_per_shard == 1


def test_an_impossible_layout_is_refused() -> None:
    with pytest.raises(SchemaError, match="expected frames"):
        Layout(frame_shape=(4,), tile=(2, 2), events_per_shard=1)
