"""Stores open in xarray as it opens any other, and say nothing that has to be looked up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr
from planted import BrightestPixel

from sfxreduce.cluster import Pool
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import open_zarr
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs


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
