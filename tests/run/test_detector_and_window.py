"""Pixels lie where the geometry says, in the source frame and in the assembled picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import panelled_detector

from sfxreduce.errors import SchemaError
from sfxreduce.run.detector import Detector, Panel
from sfxreduce.run.window import Window

SIDES = st.integers(1, 60)


@given(n_y=SIDES, n_x=SIDES)
def test_one_panel_is_its_own_assembled_picture(n_y: int, n_x: int) -> None:
    picture = Detector.centred("camera", (n_y, n_x)).assembly()
    np.testing.assert_array_equal(picture, np.arange(n_y * n_x).reshape(n_y, n_x))


@given(n_y=SIDES, n_x=SIDES, tile=st.integers(1, 80))
def test_centre_window_of_one_panel_is_the_central_slice(n_y: int, n_x: int, tile: int) -> None:
    detector = Detector.centred("camera", (n_y, n_x))
    frame = np.arange(1, n_y * n_x + 1).reshape(n_y, n_x)
    seen = Window.centre(detector, tile_shape=(tile, tile)).take(frame, detector)[0]
    padded = np.pad(frame, 100)
    r, c = 100 + (n_y - tile) // 2, 100 + (n_x - tile) // 2
    np.testing.assert_array_equal(seen, padded[r : r + tile, c : c + tile])


def test_panels_show_at_their_place_and_gaps_show_nothing() -> None:
    detector = panelled_detector(3)
    picture = detector.assembly()
    assert picture.shape == (40 + 5 + 40 + 5 + 40, 60)
    assert (picture[40:45] == -1).all()
    # The last panel is turned upside down: its first pixel is the picture's last.
    assert picture[-1, -1] == 2 * 40 * 60
    assert picture[90, 0] == 3 * 40 * 60 - 1


def test_every_pixel_of_a_window_lies_in_one_of_its_boxes() -> None:
    detector = panelled_detector(4)
    window = Window.centre(detector, tile_shape=(70, 30))
    index = window.gather(detector)
    covered = np.zeros(detector.frame_shape, bool)
    for box in window.boxes(detector):
        covered[box.panel, box.y0 : box.y1, box.x0 : box.x1] = True
    assert covered.reshape(-1)[index[index >= 0]].all()


def test_a_rotated_panel_keeps_every_pixel_within_a_pixel_of_its_place() -> None:
    angle = 0.01
    panel = Panel(
        name="tilted",
        corner=(-30.0, -20.0),
        fast=(np.cos(angle), np.sin(angle)),
        slow=(-np.sin(angle), np.cos(angle)),
    )
    detector = Detector(name="d", panel_shape=(40, 60), panels=(panel,))
    row, column = detector.assembled_positions()
    picture = detector.assembly()
    shown = picture[picture >= 0]
    assert shown.size > 0.97 * 40 * 60
    places = np.argwhere(picture >= 0)
    assert np.abs(row.reshape(-1)[shown] - 0.5 - places[:, 0]).max() <= 0.5
    assert np.abs(column.reshape(-1)[shown] - 0.5 - places[:, 1]).max() <= 0.5


def test_masked_pixels_and_gaps_are_not_good_in_a_window() -> None:
    detector = panelled_detector(3)
    mask = np.zeros(detector.frame_shape, np.uint32)
    mask[1, 3, 4] = 1
    detector = detector.with_mask(mask)
    whole = Window(name="all", tile_shape=detector.assembly().shape, origins=((0, 0),))
    good = whole.good(detector)[0]
    assert good.sum() == 3 * 40 * 60 - 1
    assert not good[40:45].any()


def test_contradictions_are_refused_when_a_detector_is_made() -> None:
    with pytest.raises(SchemaError, match="expected a mask of shape"):
        Detector.centred("camera", (10, 10)).with_mask(np.zeros((3, 3), np.uint32))
    with pytest.raises(SchemaError, match="set stacked=True"):
        Detector(name="d", panel_shape=(2, 2), panels=panelled_detector(2).panels)
    with pytest.raises(SchemaError, match="at least one tile"):
        Window(name="none", tile_shape=(5, 5), origins=())


@pytest.mark.parametrize("corner", [1e6, np.inf, np.nan])
def test_a_picture_far_larger_than_the_frame_is_refused(corner: float) -> None:
    """Corners in millimetres asked for a picture of terabytes, and the process was killed."""
    panels = (Panel(name="a", corner=(0.0, 0.0)), Panel(name="b", corner=(corner, corner)))
    detector = Detector(name="d", panel_shape=(4, 4), panels=panels, stacked=True)
    with np.errstate(invalid="ignore"), pytest.raises(SchemaError, match="corner positions"):
        detector.assembly()


def test_a_frame_of_more_pixels_than_any_camera_has_is_refused() -> None:
    """Its mask alone would not have fitted into memory."""
    with pytest.raises(SchemaError, match=r"at most 67108864 pixels in a frame, found"):
        Detector.centred("d", (2**16, 2**16))


@pytest.mark.parametrize("shape", [(1750, 1750), (1920, 1700), (350, 350), (100, 900)])
def test_tiles_cover_the_picture_once_and_begin_with_the_centre(shape: tuple[int, int]) -> None:
    detector = Detector.centred("camera", shape)
    window = Window.tiled(detector)
    index = window.gather(detector)
    np.testing.assert_array_equal(np.sort(index[index >= 0]), np.arange(shape[0] * shape[1]))
    assert window.origins[0] == Window.centre(detector).origins[0]
