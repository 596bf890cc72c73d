"""A random sample of the rejects stays in the output: unbiased, bit for bit, and accounted for."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import ArrayFrames, BrightestPixel, planted_run

from sfxreduce.audit.sample import draw_sample, mean_of_run
from sfxreduce.cluster import Pool
from sfxreduce.decisions.decide import Decision, decide
from sfxreduce.errors import UsageError
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.filter import Outputs, filter_run, plan_filter
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.pipeline.verify.output import verify_run
from sfxreduce.report.report import Report
from sfxreduce.run.reasons import UNSAFE, Reason
from sfxreduce.run.run import Run


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def filtered(run: Run, out: Path, pool: Pool, *, share: float = 0.1) -> Report:
    outputs = Outputs(store=out)
    return filter_run(
        run,
        settings=FilterSettings(scorer=BrightestPixel(), audit_share=share),
        outputs=outputs,
        pool=pool,
    )


def ledger(out: Path) -> xr.Dataset:
    with xr.open_zarr(out, group="ledger", consolidated=False) as table:
        return table.load()


@given(n=st.integers(0, 3000), share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_the_sample_is_a_share_of_the_rejects_rounded_up(n: int, share: float) -> None:
    made = decide(np.zeros(n, np.float32), np.zeros(n, np.uint32), threshold=0.5)
    sample = draw_sample(made, share=share, judge="model")
    assert share * n - 1e-6 <= sample.size < share * n + 1 + 1e-6
    assert (np.diff(sample) > 0).all()


def test_every_reject_has_the_same_chance() -> None:
    made = decide(np.zeros(50, np.float32), np.zeros(50, np.uint32), threshold=0.5)
    drawn = [draw_sample(made, share=0.1, judge=f"model {n}") for n in range(2000)]
    times = np.bincount(np.concatenate(drawn), minlength=50)
    # 200 expected; a scatter of sqrt(200 * 0.9) = 13.4.
    assert abs(times - 200).max() < 5 * 13.4


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_mean_of_a_run_is_rebuilt_without_bias(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score, value = rng.random(200).astype(np.float32), rng.normal(3, 1, 200)
    made = decide(score, np.zeros(200, np.uint32), threshold=0.8)
    n_rejected = made.count(Decision.REJECT)
    found = []
    for judge in range(40):
        sample = draw_sample(made, share=0.2, judge=str(judge))
        chance = np.full(sample.size, sample.size / n_rejected)
        found.append(mean_of_run(value[made.kept], value[sample], chance))
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - value.mean()) < 5 * error


def test_the_group_holds_frames_of_rejects_and_the_counts_do_not(
    run: Run, tmp_path: Path, serial: Pool, frames: np.ndarray
) -> None:
    report = filtered(run, tmp_path / "hits.zarr", serial)
    without = filtered(run, tmp_path / "none.zarr", serial, share=0)
    sample = open_run(tmp_path / "hits.zarr" / "audit")
    index = sample.columns.source_index.values
    table = ledger(tmp_path / "hits.zarr")
    assert report.audit_sample == index.size == sample.n_events == 5
    assert (report.kept, report.rejected) == (without.kept, without.rejected) == (24, 46)
    assert report.bytes_out > without.bytes_out
    assert (table.decision.values[index] == Decision.REJECT).all()
    marked = table.reason.values & np.uint32(Reason.AUDIT_SAMPLE)
    np.testing.assert_array_equal(np.flatnonzero(marked), index)
    np.testing.assert_array_equal(sample.source.read(range(5)).pixels, frames[index])
    np.testing.assert_allclose(sample.columns.probability, 5 / 46)
    np.testing.assert_array_equal(sample.columns.score, table.score.values[index])
    assert not np.isin(index, open_run(tmp_path / "hits.zarr").columns.source_index).any()
    assert not UNSAFE & Reason.AUDIT_SAMPLE


def test_without_a_share_or_without_rejects_there_is_no_group(
    run: Run, tmp_path: Path, serial: Pool
) -> None:
    filtered(run, tmp_path / "none.zarr", serial, share=0)
    assert not (tmp_path / "none.zarr" / "audit").exists()
    assert not ledger(tmp_path / "none.zarr").reason.values.any()
    plan = plan_filter(run, FilterSettings(scorer=BrightestPixel(threshold=0)), pool=serial)
    assert plan.audit.kept.size == 0


def test_the_same_run_gives_the_same_bytes_on_any_pool(
    stored: Path, tmp_path: Path, serial: Pool, cluster: Pool
) -> None:
    filtered(open_run(stored), tmp_path / "one.zarr", serial)
    filtered(open_run(stored), tmp_path / "two.zarr", cluster)
    assert tree(tmp_path / "one.zarr") == tree(tmp_path / "two.zarr")
    assert any(name.startswith("audit/frames/c") for name in tree(tmp_path / "one.zarr"))


def test_verification_sees_a_changed_sample(stored: Path, tmp_path: Path, serial: Pool) -> None:
    run, out = open_run(stored), tmp_path / "hits.zarr"
    filtered(run, out, serial)
    found = verify_run(out, against=run, pool=serial)
    assert found.ok
    assert (found.checked, found.audit_checked) == (24, 5)
    for name in ("frames", "source_index"):
        hurt = tmp_path / f"{name}.zarr"
        shutil.copytree(out, hurt)
        file = sorted(p for p in (hurt / "audit" / name / "c").rglob("*") if p.is_file())[0]
        data = bytearray(file.read_bytes())
        data[len(data) // 3] ^= 4
        file.write_bytes(data)
        found = verify_run(hurt, against=run, pool=serial)
        assert any(bad.startswith(f"audit/{name}/") for bad in found.damaged_files)
        assert found.problems
    shutil.rmtree(out / "audit")
    assert not verify_run(out, against=run, pool=serial).ok


def test_a_sampled_event_that_cannot_be_read_whole_is_a_hole_and_says_so(
    tmp_path: Path, serial: Pool
) -> None:
    whole = planted_run(n_events=12)
    source = whole.source
    assert isinstance(source, ArrayFrames)
    lost = {event: int(Reason.DATA_HOLE) for event in range(12) if event % 3}

    class Fading(ArrayFrames):
        """Gives its windows, and later not its frames."""

        def read(self, events, window=None):  # type: ignore[no-untyped-def]
            reading = super().read(events, window)
            return reading if window else replace(reading, reasons=self.lost(events))

        def lost(self, events) -> np.ndarray:  # type: ignore[no-untyped-def]
            return np.array([lost.get(int(event), 0) for event in events], np.uint32)

    run = replace(whole, source=Fading(frames=source.frames, detector=source.detector))
    outputs = Outputs(store=tmp_path / "hits.zarr")
    filter_run(
        run, settings=FilterSettings(scorer=BrightestPixel(tile=20)), outputs=outputs, pool=serial
    )
    table = ledger(tmp_path / "hits.zarr")
    sampled = (table.reason.values & np.uint32(Reason.AUDIT_SAMPLE)) != 0
    assert sampled.sum() == 1
    assert table.reason.values[sampled] == Reason.AUDIT_SAMPLE | Reason.READ_ERROR
    assert open_run(tmp_path / "hits.zarr" / "audit").source.read([0]).reasons[0] != 0


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_what_is_no_share_is_refused(share: float, serial: Pool) -> None:
    with pytest.raises(UsageError, match="--audit-share between 0 and 1"):
        plan_filter(
            planted_run(), FilterSettings(scorer=BrightestPixel(), audit_share=share), pool=serial
        )
