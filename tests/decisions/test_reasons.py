"""Reasons keep their bits; stores write their names of today, and older names are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from planted import BrightestPixel, planted_run

from sfxreduce.cluster import Pool
from sfxreduce.decisions.decide import decide
from sfxreduce.decisions.ledger import _ATTRIBUTES, ledger_table, read_ledger
from sfxreduce.errors import SchemaError
from sfxreduce.io.readers.zarr.run import open_table
from sfxreduce.pipeline.filter import Outputs, filter_run
from sfxreduce.pipeline.ledger import ledger_rows
from sfxreduce.pipeline.redecide import redecide_run
from sfxreduce.pipeline.stages.reduced import read_reduced
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.pipeline.verify.output import verify_run
from sfxreduce.run.reasons import FORMER_NAMES, Reason, reason_named

WRITTEN_IN_0_1 = (
    "file_unreadable read_error data_hole no_image panels_missing nonfinite_few nonfinite_many "
    "constant dark saturated schema score_invalid worker_lost dup_id ts_order meta_missing "
    "audit_sample drift panel_hot no_calib unstable_read ood"
)
STORES_PAGE = Path(__file__).parents[2] / "docs/reference/stores.md"


def test_every_name_that_was_ever_written_is_read_as_the_reason_of_its_bit() -> None:
    for bit, name in enumerate(WRITTEN_IN_0_1.split()):
        assert reason_named(name) == 1 << bit
    for reason in Reason:
        assert reason_named(str(reason.name).lower()) is reason
    assert not {name.upper() for name in FORMER_NAMES} & set(Reason.__members__)
    assert reason_named("of a later version") is None


def test_a_store_with_former_names_is_read_like_any_other(
    tmp_path: Path, serial: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the words changed: a ledger of an earlier version means the same by every bit."""
    run = planted_run(n_events=40)
    run.columns["photon_energy_ev"][::2] = np.nan
    settings = FilterSettings(scorer=BrightestPixel(), audit_share=0.2)
    old, new = tmp_path / "old.zarr", tmp_path / "new.zarr"
    former = WRITTEN_IN_0_1.split()
    with monkeypatch.context() as patch:
        attributes = {"flag_masks": [1 << bit for bit in range(len(former))]}
        attributes |= {"flag_meanings": WRITTEN_IN_0_1}
        patch.setitem(_ATTRIBUTES, "reason", attributes)
        filter_run(run, settings=settings, outputs=Outputs(store=old), pool=serial)
    assert open_table(old, "ledger")["reason"].attrs["flag_meanings"] == WRITTEN_IN_0_1
    assert verify_run(old, against=run, pool=serial).ok
    known = read_reduced(old, pool=serial)
    redecide_run(run, settings, known=known, outputs=Outputs(store=new), pool=serial)
    names = open_table(new, "ledger")["reason"].attrs["flag_meanings"].split()
    assert names == [str(reason.name).lower() for reason in Reason]
    rows = ledger_rows(open_table(old, "ledger"), where="old")
    assert "metadata_missing|audit_sample" in rows["reason"].to_pylist()
    assert ledger_rows(open_table(new, "ledger"), where="new") == rows


def test_a_name_on_the_bit_of_another_reason_is_refused() -> None:
    made = decide(np.float32([0.9, 0.1]), np.zeros(2, np.uint32), threshold=0.5)
    table = ledger_table(made)
    attributes = table["reason"].attrs
    for names in ("read_error file_unreadable", "ood"):
        attributes["flag_meanings"] = names
        with pytest.raises(SchemaError, match=r"expected bit \d+ for the reason '\w+', found 1;"):
            read_ledger(table, where="hits.zarr")
    attributes["flag_meanings"] = "file_unreadable renamed_later"
    assert read_ledger(table, where="hits.zarr").score.size == 2


def test_the_page_of_stores_lists_every_reason_and_every_former_name() -> None:
    text = STORES_PAGE.read_text()
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ")]
    listed = {int(bit): name.strip(" `") for bit, name in rows if bit.strip().isdigit()}
    assert listed == {int(reason): str(reason.name).lower() for reason in Reason}
    for former, reason in FORMER_NAMES.items():
        assert f"`{str(reason.name).lower()}` `{former}`" in " ".join(text.split())
