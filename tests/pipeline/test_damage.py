"""Whatever is broken about an event keeps it: generated damage, three scorers, two formats."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from archived import Call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planted import ArrayFrames

from sfxreduce.cluster import SerialPool
from sfxreduce.decisions.decide import Decision
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.filter import plan_filter
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.quality.panels import inspect_parts, parts_of
from sfxreduce.run.columns import event_columns
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import UNSAFE, Reason
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.cnn.folder import default_model
from sfxreduce.scorers.cnn.scorer import CnnScorer
from sfxreduce.scorers.peaks.finder import PeakScorer
from sfxreduce.scorers.protocol import Scorer
from sfxreduce.simulate import EXPERIMENTS
from sfxreduce.simulate.run import simulate_run

N_EVENTS = 4
SCORERS: dict[str, Scorer] = {
    "cnn": CnnScorer(default_model()),
    "cnn, full window": CnnScorer(default_model(), looks_at="full"),
    "peaks": PeakScorer(),
}
KINDS = (
    "all NaN",
    "all zero",
    "constant",
    "saturated",
    "panel zero",
    "panel constant",
    "panel NaN",
    "panel hot",
    "panel saturated",
    "truncated",
)
FULL_SCALE = 16383.0


@cache
def _blank_run(n_panels: int, *, floating: bool) -> Run:
    """Events without any peak: every scorer would reject them all."""
    rng = np.random.default_rng(5)
    detector = Detector.centred("camera", (700, 700), adu_per_photon=20.0)
    if n_panels > 1:
        detector = simulate_run("pyp-cspad", n_events=1).detector
        detector = replace(
            detector, panels=detector.panels[:n_panels], mask=detector.mask[:n_panels]
        )
    detector = replace(detector, saturation_adu=FULL_SCALE, adu_per_photon=20.0)
    frames = 20.0 * rng.poisson(5.0, (N_EVENTS, *detector.frame_shape)) + rng.normal(
        0, 3, (N_EVENTS, *detector.frame_shape)
    )
    frames = frames.astype(np.float32) if floating else np.rint(frames).astype(np.int16)
    source = ArrayFrames(frames=frames, detector=detector)
    return Run(source=source, columns=event_columns(N_EVENTS), experiment="test", name="blank")


def _parts_of_frame(run: Run) -> list[tuple[slice, ...]]:
    """Panels, or the tiles of a frame that has none."""
    if run.detector.stacked:
        return [(slice(panel, panel + 1),) for panel in range(len(run.detector.panels))]
    starts = range(0, run.detector.panel_shape[0], 350)
    return [(slice(y, y + 350), slice(x, x + 350)) for y in starts for x in starts]


def _damage(frame: np.ndarray, kind: str, part: tuple[slice, ...], value: float) -> None:
    """Break one frame in place."""
    nothing = np.nan if frame.dtype.kind == "f" else 0
    if kind == "truncated":
        flat = frame.reshape(-1)
        flat[flat.size // 2 + int(value) % (flat.size // 4) :] = 0
        return
    where = part if kind.startswith("panel") else (slice(None),)
    if kind.endswith("hot"):
        frame[where] += np.array(4000 + value, frame.dtype)
        return
    level = {"NaN": nothing, "zero": 0, "constant": value, "saturated": FULL_SCALE}
    frame[where] = level[kind.split()[-1]]


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("panels", [1, 8])
@pytest.mark.parametrize("floating", [False, True])
def test_a_blank_run_without_damage_is_rejected(name: str, panels: int, floating: bool) -> None:
    run = _blank_run(panels, floating=floating)
    plan = plan_filter(
        run, FilterSettings(scorer=SCORERS[name], threshold=0.5, drift=False), pool=SerialPool()
    )
    assert (plan.decisions.decision == Decision.REJECT).all()


@pytest.mark.parametrize("name", SCORERS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(KINDS),
    panels=st.sampled_from([1, 8]),
    floating=st.booleans(),
    event=st.integers(0, N_EVENTS - 1),
    which=st.integers(0, 7),
    value=st.integers(0, 9000),
)
def test_a_damaged_event_is_never_rejected(
    name: str,
    kind: str,
    panels: int,
    floating: bool,
    event: int,
    which: int,
    value: int,
) -> None:
    whole = _blank_run(panels, floating=floating)
    assert isinstance(whole.source, ArrayFrames)
    frames = whole.source.frames.copy()
    places = _parts_of_frame(whole)
    _damage(frames[event], kind, places[which % len(places)], value)
    run = replace(whole, source=replace(whole.source, frames=frames))
    plan = plan_filter(
        run, FilterSettings(scorer=SCORERS[name], threshold=0.5, drift=False), pool=SerialPool()
    )
    found = plan.decisions
    assert found.decision[event] != Decision.REJECT, Reason(int(found.reason[event]))
    others = np.delete(found.decision, event)
    assert (others == Decision.REJECT).all()


def _stored(run: Run, folder: Path) -> Path:
    path = folder / "run.zarr"
    ingest_run(run, out=path, pool=SerialPool())
    return path


@pytest.mark.parametrize("what", ["gone", "cut", "flipped"])
def test_an_event_whose_stored_bytes_are_broken_is_never_rejected(
    what: str, tmp_path: Path
) -> None:
    path = _stored(_blank_run(1, floating=False), tmp_path)
    files = [file for file in (path / "frames" / "c").rglob("*") if file.is_file()]
    shard = max(files, key=lambda file: file.stat().st_size)
    if what == "gone":
        shard.unlink()
    elif what == "cut":
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    else:
        data = bytearray(shard.read_bytes())
        data[len(data) // 3] ^= 1
        shard.write_bytes(bytes(data))
    for scorer in SCORERS.values():
        plan = plan_filter(
            open_run(path),
            FilterSettings(scorer=scorer, threshold=0.5, drift=False),
            pool=SerialPool(),
        )
        bad = plan.decisions.reason & np.uint32(UNSAFE)
        assert bad.any()
        assert (plan.decisions.decision[bad != 0] != Decision.REJECT).all()


@pytest.mark.parametrize("kind", [k for k in KINDS if "NaN" not in k])
def test_damage_in_a_cxi_file_keeps_the_event(kind: str, tmp_path: Path) -> None:
    run = _blank_run(8, floating=False)
    assert isinstance(run.source, ArrayFrames)
    frames = run.source.frames.copy()
    _damage(frames[2], kind, _parts_of_frame(run)[3], 500)
    path = tmp_path / "run.cxi"
    with h5py.File(path, "w") as file:
        file["cxi_version"] = 160
        file["entry_1/data_1/data"] = frames
    seen = open_run(path)
    for scorer in (SCORERS["cnn"], SCORERS["peaks"]):
        plan = plan_filter(
            seen, FilterSettings(scorer=scorer, threshold=0.5, drift=False), pool=SerialPool()
        )
        assert plan.decisions.decision[2] != Decision.REJECT


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_no_whole_event_of_any_experiment_is_taken_for_damaged(name: str) -> None:
    run = simulate_run(name, n_events=6, hit_rate=0.5, seed=12)
    for window in (None, Window.tiled(run.detector), Window.centre(run.detector)):
        pixels = run.source.read(range(6), window).pixels
        found = inspect_parts(
            pixels, parts_of(run.detector, window), saturation_adu=run.detector.saturation_adu
        )
        assert not found.any()


def test_no_real_frame_is_taken_for_damaged(shared_data: Path) -> None:
    run = open_run(shared_data / "independent_sim" / "dev.cxi")
    for window in (None, Window.tiled(run.detector)):
        pixels = run.source.read(range(run.n_events), window).pixels
        assert not inspect_parts(pixels, parts_of(run.detector, window)).any()


@pytest.mark.parametrize(
    "packed",
    [{}, {"compression": "gzip"}, {"compression": "gzip", "shuffle": True},
     {"compression": "gzip", "fletcher32": True}, {"compression": "lzf"}, dict(hdf5plugin.Blosc()),
     dict(hdf5plugin.Bitshuffle()), dict(hdf5plugin.LZ4()), dict(hdf5plugin.Zstd())],
    ids=["none", "gzip", "shuffle+gzip", "gzip+fletcher32", "lzf", "blosc", "bitshuffle", "lz4",
         "zstd"],
)  # fmt: skip
@pytest.mark.parametrize("mask", [0b1, 0b10, 0xFFFFFFFF])
def test_a_chunk_whose_filter_mask_is_wrong_is_undecided(
    packed: dict[str, Any], mask: int, tmp_path: Path, call: Call
) -> None:
    # One flipped bit in the index of the chunks: packed bytes were scored as pixels, and 10 of 10
    # hits were rejected.
    frames = np.random.default_rng(1).poisson(20, (10, 64, 64)).astype(np.int16)
    frames[:, 10:50:12, 10:50:12] = 900
    with h5py.File(tmp_path / "run.h5", "w") as file:
        options = {"chunks": (1, 64, 64), **packed}
        whole = file.create_dataset("whole", data=frames, **options)
        stored = file.create_dataset("entry/data/data", frames.shape, frames.dtype, **options)
        n_filters = stored.id.get_create_plist().get_nfilters()
        for event in range(10):
            _, data = whole.id.read_direct_chunk((event, 0, 0))
            wrong = event < 5
            # Where no filter is, it is the size that lies.
            short = data[:-2] if wrong and not n_filters else data
            stored.id.write_direct_chunk((event, 0, 0), short, filter_mask=mask if wrong else 0)
        del file["whole"]
    status, done, _ = call(
        "filter", "--in", tmp_path / "run.h5", "--out", tmp_path / "hits.zarr", "--scorer", "peaks",
        "--min-peaks", 4, "--serial",
    )  # fmt: skip
    harmless = bool(n_filters) and not mask & ((1 << n_filters) - 1)
    assert status == 0
    assert (done["hits"], done["undecided"]) == ((10, 0) if harmless else (5, 5))
