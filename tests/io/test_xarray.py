"""Stores open in xarray as it opens any other, and say nothing that has to be looked up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from planted import BrightestPixel

from sfxreduce.cluster import Pool
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import open_lazily, open_table, open_zarr
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
from sfxreduce.run.columns import Table, Values, event_table


def test_stores_open_in_xarray_without_a_warning(
    stored: Path, tmp_path: Path, serial: Pool
) -> None:
    """Warnings are errors here. The sample had another number of events on an axis of one name."""
    out = tmp_path / "hits.zarr"
    settings = FilterSettings(scorer=BrightestPixel(), audit_share=0.1)
    report = filter_run(
        open_run(stored), settings=settings, outputs=Outputs(store=out), pool=serial
    )
    for path, n_events in ((stored, 70), (out, report.kept)):
        with xr.open_zarr(path) as table:
            assert table.sizes["event"] == n_events
            assert list(table.coords) == ["event_id"]
    with xr.open_datatree(out, engine="zarr") as tree:
        groups = {"/audit", "/audit/truth", "/ledger", "/truth"}
        assert groups <= set(tree.groups)
        assert tree["audit"].sizes["audit_event"] == report.audit_sample == 5
    sample = open_zarr(out / "audit")
    assert (sample.n_events, sample.columns.sizes["event"]) == (5, 5)


def test_the_ledger_is_a_table_of_one_row_an_event(
    stored: Path, tmp_path: Path, serial: Pool
) -> None:
    """It had two: the hash of what was kept had an axis of two words."""
    out = tmp_path / "hits.zarr"
    filter_run(open_run(stored), settings=FilterSettings(scorer=BrightestPixel()),
               outputs=Outputs(store=out), pool=serial)  # fmt: skip
    with xr.open_zarr(out, group="ledger", consolidated=False) as ledger:
        table = ledger.to_dataframe()
    assert len(table) == 70
    kept = table["decision"].to_numpy() == 2
    assert np.array_equal((table["payload_high"] != 0).to_numpy()[kept], np.ones(kept.sum(), bool))


@pytest.mark.parametrize("group", ["", "truth"])
def test_a_table_is_read_as_xarray_reads_it(stored: Path, group: str) -> None:
    found = open_table(stored, group)
    with xr.open_zarr(
        stored, group=group or None, consolidated=False, decode_cf=False, chunks=None
    ) as table:
        expected = table.drop_vars(["frames", "mask"], errors="ignore").load()
    xr.testing.assert_identical(found, expected)
    assert {n: found[n].dtype for n in found} == {n: expected[n].dtype for n in expected}
    if group:
        xr.testing.assert_identical(found, open_lazily(stored, group).load())


def test_a_run_says_the_same_before_and_after_its_datasets_are_made(stored: Path) -> None:
    run = open_zarr(stored)
    assert isinstance(run.table, Table)
    assert isinstance(run.known, Table)
    names, sizes = set(run.table), run.table.sizes
    truth = set(run.known)
    assert run.columns is run.columns is run.table
    assert (set(run.columns), dict(run.columns.sizes)) == (names, sizes)
    assert run.truth is run.truth is run.known
    assert run.truth is not None
    assert set(run.truth) == truth


def test_columns_of_a_table_that_disagree_on_a_dimension_are_refused() -> None:
    longer = {"kind": Values(dims=("event",), values=np.zeros(3))}
    with pytest.raises(ValueError, match=r"expected shape \(3,\) on \('event',\), .* found \(2,\)"):
        Table(variables={**event_table(2).variables, **longer})
