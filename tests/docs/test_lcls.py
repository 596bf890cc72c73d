"""The loop of the page on LCLS-II, as it is printed there, writes what is read as it was meant."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archived import Call

from sfxreduce.io.open import open_run
from sfxreduce.run.reasons import Reason

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "lcls-ii.md"
EPOCH = 631_152_000
KEYS = [((EPOCH + 10**9 + second) << 32) + nano for second in (0, 1) for nano in (5, 8_333_333, 40)]
"""Not in order, and some that differ in their nanoseconds alone."""

HITS = (1, 4)
LOST = 3


@pytest.fixture(scope="module")
def write_run() -> Callable[..., None]:
    """The function on the page."""
    [block] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    function: Callable[..., None] = names["write_run"]
    return function


@pytest.mark.parametrize("shape", [(90, 100), (4, 60, 50)])
def test_the_file_is_read_as_it_was_written(
    tmp_path: Path, write_run: Callable[..., None], shape: tuple[int, ...], call: Call
) -> None:
    rng = np.random.default_rng(1)
    frames = {key: rng.normal(0, 3, shape).astype("f4") for key in KEYS}
    order = sorted(KEYS)
    for event in HITS:
        frames[order[event]][..., 20:50:6, 20:40:6] = 500
    path = tmp_path / "r0007.h5"
    write_run(
        path,
        KEYS,
        lambda key: None if key == order[LOST] else frames[key],
        shape=shape,
        dtype="f4",
        energy_of=lambda key: 9000.0 + (key & 0xF),
    )
    run = open_run(path)
    reading = run.source.read(range(len(KEYS)))
    assert np.flatnonzero(reading.reasons).tolist() == [LOST]
    assert reading.reasons[LOST] == Reason.DATA_HOLE
    for event, key in enumerate(order):
        if event != LOST:
            assert reading.pixels[event].tobytes() == frames[key].tobytes()
    stamps = [(key >> 32) * 10**9 + (key & 0xFFFFFFFF) for key in order]
    assert run.columns["timestamp_ns"].values.tolist() == stamps
    assert run.columns["photon_energy_ev"].values.tolist() == [9000.0 + (k & 0xF) for k in order]
    assert len(set(run.columns["event_id"].values)) == len(KEYS)
    status, facts, errors = call(
        "filter", "--in", path, "--out", tmp_path / "hits.zarr", "--scorer", "peaks", "--serial"
    )
    assert (status, facts["hits"], facts["undecided"]) == (0, len(HITS), 1), errors
    kept = open_run(tmp_path / "hits.zarr").columns["source_index"].values.tolist()
    assert {*HITS, LOST} <= set(kept)
