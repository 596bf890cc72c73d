"""A smaller window must earn its place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfxreduce.errors import UsageError
from sfxreduce.run.detector import Detector
from sfxreduce.run.window import CENTRE, FULL, TileChoice, Window
from sfxreduce.scorers.calibration.windows import WindowLoss, smallest_window, windows_table

CAMERA = Detector.centred("camera", (1750, 2100))


def _loss(
    tiles: TileChoice,
    *,
    mean: float = 0.0,
    worst: float = 0.0,
    weak: float | None = 0.1,
    specificity: float = 1.0,
) -> WindowLoss:
    return WindowLoss(
        tiles=tiles,
        mean_loss=mean,
        worst_loss=worst,
        weak_loss=weak,
        least_specificity=specificity,
    )


@given(most=st.integers(0, 40), spread=st.booleans())
def test_a_choice_is_some_of_all_tiles_each_once(most: int, spread: bool) -> None:
    choice = TileChoice(most=most, spread=spread)
    everything, own = Window.tiled(CAMERA).origins, choice.window(CAMERA).origins
    assert len(set(own)) == len(own) == min(most or len(everything), len(everything))
    assert own[0] == Window.centre(CAMERA).origins[0]
    assert tuple(everything[i] for i in choice.columns(CAMERA)) == own


def test_the_nearest_tiles_come_first_and_spread_ones_never_touch() -> None:
    middle = np.array(Window.centre(CAMERA).origins[0])
    near = np.array(TileChoice(most=9).window(CAMERA).origins) - middle
    assert np.abs(near).max() == 350
    spread = np.array(TileChoice(most=13, spread=True).window(CAMERA).origins) - middle
    assert ((spread // 350).sum(axis=1) % 2 == 0).all()


@pytest.mark.parametrize(
    "odd", [{"mean": 0.011}, {"worst": 0.04}, {"specificity": 0.94}, {"weak": 0.13}]
)
def test_the_smallest_window_that_keeps_what_is_wanted_is_chosen(odd: dict[str, float]) -> None:
    nine = TileChoice(most=9)
    good = [_loss(CENTRE, mean=0.5), _loss(nine), _loss(FULL)]
    assert smallest_window(good) == nine
    assert smallest_window([good[0], _loss(nine, **odd), _loss(FULL)]) == FULL
    assert smallest_window([_loss(CENTRE, mean=0.5), _loss(FULL, mean=0.4)]) == FULL
    assert f"| {nine.name} |" in windows_table(good, nine)


def test_a_negative_number_of_tiles_is_refused() -> None:
    with pytest.raises(UsageError, match="expected a number of tiles, found -1"):
        TileChoice(most=-1)
