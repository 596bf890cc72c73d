"""Pictures of a detector made small: every block shows the brightest pixel it covers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfxreduce.report.figures import brightest_blocks
from sfxreduce.run.detector import Detector, Panel


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    n_panels=st.integers(1, 3),
    most=st.integers(1, 40),
    dtype=st.sampled_from(["u2", "i2", ">i4", "f4", "f8"]),
)
@settings(max_examples=60, deadline=None)
def test_a_block_shows_the_brightest_trusted_pixel_that_it_covers(
    seed: int, shape: tuple[int, int], n_panels: int, most: int, dtype: str
) -> None:
    rng = np.random.default_rng(seed)
    n_y, n_x = shape
    panels = tuple(
        Panel(name=f"p{number}", corner=(-n_x / 2 + number * (n_x + 3), -n_y / 2 + 2 * number))
        for number in range(n_panels)
    )
    whole = (n_panels, *shape)
    detector = Detector(
        name="some",
        panel_shape=shape,
        panels=panels,
        stacked=True,
        mask=(rng.random(whole) < 0.2).astype(np.uint8),
    )
    frame = rng.integers(0, 1000, whole).astype(dtype)
    if np.dtype(dtype).kind == "f":
        frame[rng.random(whole) < 0.1] = np.nan
        frame[rng.random(whole) < 0.01] = np.inf
    found, step = brightest_blocks(frame, detector, most=most)

    index = detector.assembly()
    assert step == max(-(-max(index.shape) // most), 1)
    assert found.shape == tuple(max(n // step, 1) for n in index.shape)
    for place in np.ndindex(found.shape):
        rows, columns = (slice(at * step, (at + 1) * step) for at in place)
        covered = index[rows, columns]
        values = frame.ravel()[covered[covered >= 0]][
            detector.good().ravel()[covered[covered >= 0]]
        ]
        highest = max((float(v) for v in values if not np.isnan(v)), default=-np.inf)
        # What is infinite is no measurement, and shows as a gap.
        assert found[place] == (highest if np.isfinite(highest) else -np.inf)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_frame_without_numbers_shows_nothing(value: float) -> None:
    detector = Detector(name="one", panel_shape=(20, 30), panels=(Panel(name="p", corner=(0, 0)),))
    found, _ = brightest_blocks(np.full((20, 30), value, np.float32), detector, most=10)
    assert np.isneginf(found).all()
