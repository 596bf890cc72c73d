"""Every kept event is written once, in order, bit for bit; every event is accounted for."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planted import ArrayFrames, BrightestPixel, planted_run
from typer.testing import CliRunner

from sfxreduce.cluster import Pool, SerialPool
from sfxreduce.errors import OutputError, OutputExists, UsageError
from sfxreduce.io.chunks.pieces import tile_pieces
from sfxreduce.io.open import open_run
from sfxreduce.io.writers.resume import unfinished_folder
from sfxreduce.pipeline.filter import Outputs, filter_run, plan_filter
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.plan import plan_reduction
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.pipeline.verify.output import verify_run
from sfxreduce.run.reasons import UNSAFE, Reason
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.peaks.finder import PeakScorer
from sfxreduce.simulate.run import simulate_run
from sfxreduce_cli.main import app


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@given(kept=st.sets(st.integers(0, 299)), per_shard=st.integers(1, 40))
def test_a_plan_places_every_kept_event_once_in_order(kept: set[int], per_shard: int) -> None:
    plan = plan_reduction(
        np.array(sorted(kept), np.int64),
        n_events=300,
        events_per_shard=per_shard,
        copies_tiles=True,
    )
    shards = list(plan.shards())
    assert [e for shard in shards for e in shard.source_index] == sorted(kept)
    assert all(len(shard.source_index) == per_shard for shard in shards[:-1])
    assert [shard.shard for shard in shards] == list(range(plan.n_shards))


@pytest.mark.parametrize("origin", ["copied tiles", "encoded frames"])
def test_every_kept_event_is_written_once_in_order_bit_for_bit(
    origin: str, run: Run, stored: Path, tmp_path: Path, serial: Pool, frames: np.ndarray
) -> None:
    source = open_run(stored) if origin == "copied tiles" else run
    report = filter_run(
        source,
        settings=FilterSettings(scorer=BrightestPixel()),
        outputs=Outputs(store=tmp_path / "hits.zarr"),
        pool=serial,
    )
    hits = np.arange(0, 70, 3)
    kept = open_run(tmp_path / "hits.zarr")
    np.testing.assert_array_equal(kept.columns.source_index, hits)
    assert kept.source.read(range(hits.size)).pixels.tobytes() == frames[hits].tobytes()
    np.testing.assert_array_equal(kept.columns.event_id, run.columns.event_id[hits])
    assert (report.hits, report.undecided, report.rejected) == (24, 0, 46)
    assert report.kept == kept.n_events == 24
    found = verify_run(tmp_path / "hits.zarr", against=source, pool=serial)
    assert found.ok
    assert (found.checked, found.mismatched) == (24, 0)
    assert (found.audit_checked, found.audit_mismatched) == (report.audit_sample, 0)


def test_the_ledger_has_one_row_for_every_source_event(
    stored: Path, tmp_path: Path, serial: Pool, frames: np.ndarray
) -> None:
    filter_run(
        open_run(stored),
        settings=FilterSettings(scorer=BrightestPixel()),
        outputs=Outputs(store=tmp_path / "hits.zarr"),
        pool=serial,
    )
    with xr.open_zarr(tmp_path / "hits.zarr", group="ledger", consolidated=False) as ledger:
        np.testing.assert_array_equal(ledger.source_index, np.arange(70))
        np.testing.assert_array_equal(ledger.score, frames.reshape(70, -1).max(axis=1))
        assert ledger.decision.attrs["flag_meanings"] == "reject undecided hit"
        assert ledger.decision.attrs["flag_values"] == [0, 1, 2]
        assert ledger.decision.dtype == "uint8"
        assert ledger.score.dtype == "float32"


def test_truth_of_the_kept_events_goes_with_them(
    stored: Path, tmp_path: Path, serial: Pool
) -> None:
    filter_run(
        open_run(stored),
        settings=FilterSettings(scorer=BrightestPixel()),
        outputs=Outputs(store=tmp_path / "hits.zarr"),
        pool=serial,
    )
    truth = open_run(tmp_path / "hits.zarr").truth
    assert truth is not None
    assert (truth.kind == 1).all()
    np.testing.assert_array_equal(truth.peak_event, np.arange(24))


@pytest.mark.parametrize("tile", [0, 20])
def test_serial_and_cluster_write_the_same_bytes(
    tile: int, stored: Path, tmp_path: Path, serial: Pool, cluster: Pool
) -> None:
    for name, pool in (("serial", serial), ("cluster", cluster)):
        filter_run(
            open_run(stored),
            settings=FilterSettings(scorer=BrightestPixel(tile=tile)),
            outputs=Outputs(store=tmp_path / name),
            pool=pool,
        )
    assert tree(tmp_path / "serial") == tree(tmp_path / "cluster")


def test_the_cxi_filter_changes_how_hits_are_packed_and_nothing_else(
    stored: Path, tmp_path: Path, serial: Pool, cluster: Pool
) -> None:
    for name, pool in (("gzip", serial), ("blosc", serial), ("cluster", cluster)):
        (tmp_path / name).mkdir()
        filter_run(
            open_run(stored),
            settings=FilterSettings(scorer=BrightestPixel()),
            outputs=Outputs(
                store=tmp_path / name / "hits.zarr",
                cxi=tmp_path / name / "hits.cxi",
                cxi_filter="gzip" if name == "gzip" else "blosc",
                cxi_without_geometry=True,
            ),
            pool=pool,
        )
    assert tree(tmp_path / "blosc" / "hits.zarr") == tree(tmp_path / "gzip" / "hits.zarr")
    assert contents(tmp_path / "blosc" / "hits.cxi") == contents(tmp_path / "gzip" / "hits.cxi")
    written = [(tmp_path / name / "hits.cxi").read_bytes() for name in ("blosc", "cluster")]
    assert written[0] == written[1]
    assert written[0] != (tmp_path / "gzip" / "hits.cxi").read_bytes()


def contents(path: Path) -> dict[str, tuple[Any, ...]]:
    """Every dataset of an HDF5 file by its name, bit for bit."""
    found: dict[str, tuple[Any, ...]] = {}

    def note(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            values = np.asarray(item[()])
            found[name] = (values.dtype, values.shape, values.tobytes(), dict(item.attrs))

    with h5py.File(path) as file:
        file.visititems(note)
    return found


def test_hits_handed_over_as_stored_tiles_can_be_filtered_and_verified_again(
    stored: Path, tmp_path: Path, serial: Pool
) -> None:
    filter_run(
        open_run(stored),
        settings=FilterSettings(scorer=BrightestPixel()),
        outputs=Outputs(
            store=tmp_path / "once",
            cxi=tmp_path / "once.cxi",
            cxi_filter="blosc",
            cxi_without_geometry=True,
        ),
        pool=serial,
    )
    source = open_run(tmp_path / "once.cxi")
    filter_run(
        source,
        settings=FilterSettings(scorer=BrightestPixel(), threshold=1030),
        outputs=Outputs(store=tmp_path / "twice"),
        pool=serial,
    )
    found = verify_run(tmp_path / "twice", against=source, pool=serial)
    assert (found.ok, found.mismatched, open_run(tmp_path / "twice").n_events) == (True, 0, 14)


def test_a_cxi_filter_that_means_nothing_is_wrong_usage(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected one of gzip, blosc, found 'lz4'"):
        Outputs(store=tmp_path / "hits.zarr", cxi_filter="lz4")
    base = ["filter", "--in", str(stored), "--out", str(tmp_path / "h"), "--scorer", "peaks"]
    for name in ("gzip", "blosc"):
        done = subprocess.run(
            [sys.executable, "-m", "sfxreduce_cli", *base, "--cxi-filter", name],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            "sfxreduce: --cxi-filter means nothing without --cxi; add it or drop --cxi-filter\n"
        )
    assert not (tmp_path / "h").exists()


def test_the_command_line_packs_hits_as_it_is_told(stored: Path, tmp_path: Path) -> None:
    for name in ("gzip", "blosc"):
        arguments = [
            "filter", "--in", stored, "--out", tmp_path / f"{name}.zarr", "--cxi",
            tmp_path / f"{name}.cxi", "--scorer", "peaks", "--threshold", -1, "--serial",
            "--cxi-without-geometry", *([] if name == "gzip" else ["--cxi-filter", name]),
        ]  # fmt: skip
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
        with h5py.File(tmp_path / f"{name}.cxi") as file:
            assert ("32001" in file["/entry_1/data_1/data"]._filters) == (name == "blosc")


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    damage=st.lists(
        st.tuples(
            st.integers(0, 19),
            st.sampled_from(["hole", "error", "constant", "nan", "saturated"]),
        ),
        max_size=6,
    )
)
def test_a_damaged_event_is_never_rejected(
    damage: list[tuple[int, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = planted_run(n_events=20, dtype="float32")
    frames = run.source.frames  # type: ignore[attr-defined]
    reasons: dict[int, int] = {}
    for event, kind in damage:
        if kind == "constant":
            frames[event] = 7
        elif kind == "nan":
            frames[event, 30:] = np.nan
        elif kind == "saturated":
            frames[event, 30:60] = 4000 + np.arange(30)[:, None]
        else:
            reasons[event] = int(Reason.DATA_HOLE if kind == "hole" else Reason.READ_ERROR)
    detector = type(run.detector).centred("camera", (130, 150), saturation_adu=4000)
    damaged = Run(
        source=ArrayFrames(frames=frames, detector=detector, reasons=reasons), columns=run.columns
    )
    plan = plan_filter(
        damaged, FilterSettings(scorer=BrightestPixel(threshold=9e9)), pool=SerialPool()
    )
    hurt = {event for event, _ in damage}
    assert set(plan.reduction.kept.tolist()) == hurt
    assert (plan.decisions.reason[sorted(hurt)] != 0).all()
    whole = plan.decisions.reason[[e for e in range(20) if e not in hurt]]
    assert not (whole & np.uint32(UNSAFE)).any()


def test_an_unreadable_event_is_kept_as_a_hole_and_verified_as_one(
    stored: Path, tmp_path: Path, serial: Pool
) -> None:
    first = sorted(p for p in (stored / "frames" / "c").rglob("*") if p.is_file())[0]
    data = bytearray(first.read_bytes())
    data[20] ^= 1
    first.write_bytes(data)
    source = open_run(stored)
    report = filter_run(
        source,
        settings=FilterSettings(scorer=BrightestPixel()),
        outputs=Outputs(store=tmp_path / "hits.zarr"),
        pool=serial,
    )
    assert (report.undecided, report.hits) == (1, 23)
    kept = open_run(tmp_path / "hits.zarr")
    assert kept.source.read([0]).reasons.tolist() == [Reason.DATA_HOLE]
    assert verify_run(tmp_path / "hits.zarr", against=source, pool=serial).ok


def test_a_run_without_hits_and_a_run_of_hits_are_both_whole(
    stored: Path, tmp_path: Path, serial: Pool
) -> None:
    source = open_run(stored)
    for name, threshold, kept in (("none", 9e9, 0), ("all", -1.0, 70)):
        report = filter_run(
            source,
            settings=FilterSettings(scorer=BrightestPixel(), threshold=threshold),
            outputs=Outputs(
                store=tmp_path / name,
                cxi=tmp_path / f"{name}.cxi",
                cxi_without_geometry=True,
                report=tmp_path / f"{name}.html",
            ),
            pool=serial,
        )
        assert report.kept == kept
        assert verify_run(tmp_path / name, against=source, pool=serial).ok
        assert open_run(tmp_path / f"{name}.cxi").n_events == kept
        with xr.open_zarr(tmp_path / name, consolidated=False) as data:
            assert data.sizes["event"] == kept


def test_a_dry_run_plans_what_the_real_run_does_and_writes_nothing(
    stored: Path, tmp_path: Path, serial: Pool
) -> None:
    before = set(tmp_path.iterdir())
    plan = plan_filter(open_run(stored), FilterSettings(scorer=BrightestPixel()), pool=serial)
    assert set(tmp_path.iterdir()) == before
    filter_run(
        open_run(stored),
        settings=FilterSettings(scorer=BrightestPixel()),
        outputs=Outputs(store=tmp_path / "hits.zarr"),
        pool=serial,
    )
    kept = open_run(tmp_path / "hits.zarr").columns.source_index
    np.testing.assert_array_equal(plan.reduction.kept, kept)


def test_scoring_reads_only_the_window_and_copying_decodes_no_more_of_what_is_kept(
    stored: Path, tmp_path: Path, serial: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Window | None] = []
    from sfxreduce.io.chunks import shards
    from sfxreduce.io.readers.zarr.run import ZarrFrames

    read_into, decode = ZarrFrames.read_into, shards.TileCodec.decode

    def noting(self: ZarrFrames, events: Any, window: Window | None, pixels: Any) -> Any:
        asked.append(window)
        return read_into(self, events, window, pixels)

    decoded = 0

    def counting(self: shards.TileCodec, encoded: bytes, *spans: Any) -> np.ndarray:
        nonlocal decoded
        decoded += 1
        return decode(self, encoded, *spans)

    source = open_run(stored)
    scorer = BrightestPixel(tile=10)
    window = scorer.window(source.detector)
    assert window is not None
    monkeypatch.setattr(ZarrFrames, "read_into", noting)
    monkeypatch.setattr(shards.TileCodec, "decode", counting)
    report = filter_run(
        source,
        settings=FilterSettings(scorer=scorer),
        outputs=Outputs(store=tmp_path / "h"),
        pool=serial,
    )
    assert asked == [window, window]
    layout = source.source.layout  # type: ignore[attr-defined]
    # What is copied is compared with what was scored.
    copied = report.kept + report.audit_sample
    assert decoded == (70 + copied) * len(
        tile_pieces(layout.frame_shape, layout.chunks[1:], source.detector, window)
    )


def test_an_existing_output_stays_unless_overwriting(
    stored: Path, tmp_path: Path, serial: Pool
) -> None:
    source, store = open_run(stored), tmp_path / "hits.zarr"
    for threshold, overwrite, kept in ((500.0, False, 24), (1030.0, False, 24), (1030.0, True, 14)):
        outputs = Outputs(store=store, overwrite=overwrite)
        settings = FilterSettings(scorer=BrightestPixel(), threshold=threshold)
        if store.exists() and not overwrite:
            with pytest.raises(OutputExists, match="already exists"):
                filter_run(source, settings=settings, outputs=outputs, pool=serial)
        else:
            filter_run(source, settings=settings, outputs=outputs, pool=serial)
        assert open_run(store).n_events == kept
    assert verify_run(store, against=source, pool=serial).ok


def test_a_hit_that_cannot_be_copied_whole_says_so_in_the_ledger(
    tmp_path: Path, serial: Pool
) -> None:
    # Damage outside the scorer's window was once found when copying, and nobody was told.
    frames = np.random.default_rng(0).normal(100, 5, (6, 400, 400)).astype("int16")
    frames[:, 200, 200] = 1000
    run = planted_run(n_events=6)
    detector = type(run.detector).centred("camera", (400, 400))
    big = Run(source=ArrayFrames(frames=frames, detector=detector), columns=run.columns)
    ingest_run(big, out=tmp_path / "run.zarr", pool=serial)
    source = open_run(tmp_path / "run.zarr")
    layout = source.source.layout  # type: ignore[attr-defined]
    scorer = BrightestPixel(tile=20)
    window = Window.centre(detector, tile_shape=(20, 20))
    pieces = tile_pieces(layout.frame_shape, layout.chunks[1:], detector, window)
    needed = {piece.tile for piece in pieces}
    far = next(t for t in range(layout.tiles_per_event) if t not in needed)
    tiles = next(source.source.encoded([0]))  # type: ignore[attr-defined]
    offset = sum(len(tile or b"") for tile in tiles[:far]) + 30
    shard = tmp_path / "run.zarr" / "frames" / layout.shard_key(0)
    data = bytearray(shard.read_bytes())
    data[offset] ^= 1
    shard.write_bytes(data)
    report = filter_run(
        source,
        settings=FilterSettings(scorer=scorer),
        outputs=Outputs(store=tmp_path / "hits.zarr"),
        pool=serial,
    )
    assert report.hits == 6
    with xr.open_zarr(tmp_path / "hits.zarr", group="ledger", consolidated=False) as ledger:
        told = ledger.reason.values & np.uint32(UNSAFE)
        assert told.tolist() == [Reason.READ_ERROR, 0, 0, 0, 0, 0]
    assert verify_run(tmp_path / "hits.zarr", against=source, pool=serial).ok
    # What the source can still deliver must be in the output, or verification fails.
    other = sorted((tmp_path / "hits.zarr" / "frames" / "c").rglob("0"))[-1]
    other.write_bytes(other.read_bytes()[:-1])
    assert not verify_run(tmp_path / "hits.zarr", against=source, pool=serial).ok


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_a_threshold_that_is_no_number_is_refused(
    threshold: float, stored: Path, serial: Pool
) -> None:
    # Infinity once rejected every event.
    with pytest.raises(UsageError, match="finite"):
        plan_filter(
            open_run(stored),
            FilterSettings(scorer=BrightestPixel(), threshold=threshold),
            pool=serial,
        )


def test_a_disk_that_fills_up_leaves_no_output_and_the_source_as_it_was(
    stored: Path, tmp_path: Path, serial: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(stored)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def attempt() -> None:
        filter_run(
            open_run(stored),
            settings=FilterSettings(scorer=BrightestPixel()),
            outputs=Outputs(store=tmp_path / "hits.zarr", report=tmp_path / "r.html"),
            pool=serial,
        )

    with monkeypatch.context() as patched:
        patched.setattr("sfxreduce.io.writers.shards.write_addressed", full)
        with pytest.raises(OutputError, match="no space left on the disk"):
            attempt()
    folder = unfinished_folder(tmp_path / "hits.zarr")
    assert {*tmp_path.iterdir()} == {folder, tmp_path / "run.zarr"}
    attempt()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hits.zarr", "r.html", "run.zarr"]
    assert tree(stored) == before


def test_filtering_never_changes_the_source(stored: Path, tmp_path: Path, serial: Pool) -> None:
    before = {p: p.stat().st_mtime_ns for p in stored.rglob("*")}
    contents = tree(stored)
    filter_run(
        open_run(stored),
        settings=FilterSettings(scorer=BrightestPixel()),
        outputs=Outputs(
            store=tmp_path / "h",
            cxi=tmp_path / "h.cxi",
            cxi_without_geometry=True,
            report=tmp_path / "r.html",
        ),
        pool=serial,
    )
    assert tree(stored) == contents
    assert {p: p.stat().st_mtime_ns for p in stored.rglob("*")} == before


def test_a_hits_store_can_be_filtered_again(stored: Path, tmp_path: Path, serial: Pool) -> None:
    for source, out, threshold in ((stored, "once", 500.0), (tmp_path / "once", "twice", 1030.0)):
        filter_run(
            open_run(source),
            settings=FilterSettings(scorer=BrightestPixel(), threshold=threshold),
            outputs=Outputs(store=tmp_path / out),
            pool=serial,
        )
    twice = open_run(tmp_path / "twice")
    assert twice.n_events == 14
    assert verify_run(tmp_path / "twice", against=open_run(tmp_path / "once"), pool=serial).ok


def test_an_empty_run_is_filtered_to_an_empty_store(tmp_path: Path, serial: Pool) -> None:
    ingest_run(planted_run(n_events=0), out=tmp_path / "run.zarr", pool=serial)
    report = filter_run(
        open_run(tmp_path / "run.zarr"),
        settings=FilterSettings(scorer=BrightestPixel()),
        outputs=Outputs(store=tmp_path / "hits.zarr", report=tmp_path / "r.html"),
        pool=serial,
    )
    assert report.events == report.kept == 0
    assert zarr.open_group(str(tmp_path / "hits.zarr"), mode="r")["frames"].shape[0] == 0


@pytest.mark.parametrize("experiment", ["pyp-cspad", "lysozyme-8kev"])
def test_a_simulated_experiment_goes_through_whole(
    experiment: str, tmp_path: Path, cluster: Pool
) -> None:
    simulated = simulate_run(experiment, n_events=10, hit_rate=0.6, seed=4)
    ingest_run(simulated, out=tmp_path / "run.zarr", pool=cluster)
    source = open_run(tmp_path / "run.zarr")
    report = filter_run(
        source,
        settings=FilterSettings(scorer=PeakScorer()),
        outputs=Outputs(store=tmp_path / "hits.zarr", cxi=tmp_path / "hits.cxi"),
        pool=cluster,
    )
    assert 0 < report.kept < 10
    assert verify_run(tmp_path / "hits.zarr", against=source, pool=cluster).ok
    kept, handed_over = open_run(tmp_path / "hits.zarr"), open_run(tmp_path / "hits.cxi")
    index = kept.columns.source_index.values
    frames = simulated.source.read(index.tolist()).pixels
    assert kept.source.read(range(index.size)).pixels.tobytes() == frames.tobytes()
    assert handed_over.source.read(range(index.size)).pixels.tobytes() == frames.tobytes()
    np.testing.assert_allclose(
        handed_over.detector.positions(), source.detector.positions(), atol=1e-4
    )
    window = Window.centre(source.detector)
    np.testing.assert_array_equal(
        kept.source.read([0], window).pixels[0], window.take(frames[0], source.detector)
    )
    if experiment == "lysozyme-8kev":
        blank = np.flatnonzero(simulated.truth.kind == 0)  # type: ignore[union-attr]
        assert not set(index) & set(blank)
