"""A policy says what it means: nothing it does not know is passed over."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfxreduce.archive.rules.explain import explain_policy
from sfxreduce.archive.rules.policy import (
    PRESETS,
    Disposition,
    Policy,
    parse_policy,
    policy_sha256,
    preset,
    preset_text,
    read_policy,
)
from sfxreduce.archive.rules.refusals import ArchiveRefused
from sfxreduce.errors import RunNotFound, SchemaError

TABLES = ("", "[release]", "[approvals]", "[keep]", "[holds]", "[drift]", "[[sources]]")


@pytest.mark.parametrize("table", TABLES)
def test_a_key_that_is_not_known_is_refused_at_every_level(table: str) -> None:
    text = f"{table}\ngrace_dais = 3\n"
    with pytest.raises(ArchiveRefused, match="grace_dais: this key is not known") as caught:
        parse_policy(text, where="site.toml")
    assert "R16" in {refusal.code for refusal in caught.value.refusals}
    assert caught.value.exit_status == 3


@pytest.mark.parametrize(
    "text",
    [
        "policy_version = 2",
        "release = 3",
        "[release]\ncopies = '2'",
        "[release]\ncopies = 2.5",
        "[release]\ncopies = 0",
        "[release]\nallow_irreversible = 1",
        "[release]\nmax_loss = 0",
        "[release]\nmax_loss = nan",
        "[release]\ngrace_days = -1",
        "[release]\ngrace_days = 1979-05-27",
        "[release]\ndisposition = 'delete'",
        "[release]\ndisposition = 'drop-rejects'\n[approvals]\ntwo_person = false",
        "[keep]\nundecided = 'sometimes'",
        "[keep]\naudit_set = 'a year'",
        "[holds]\nauthorities = []",
        "[approvals.people]\nboss = ['ann']",
        "[pools]\na = 'posix:/a'",
        "[[",
        "a" * 100,
    ],
)
def test_a_policy_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ArchiveRefused) as caught:
        parse_policy(text, where="site.toml")
    assert {refusal.code for refusal in caught.value.refusals} == {"R16"}
    assert all("site.toml" in refusal.message for refusal in caught.value.refusals)


@given(st.text(max_size=60))
def test_whatever_stands_in_a_file_is_a_policy_or_refused(text: str) -> None:
    try:
        found = parse_policy(text, where="p")
    except ArchiveRefused:
        return
    assert isinstance(found, Policy)


def test_nothing_is_let_go_by_default() -> None:
    release = Policy().release
    assert release.disposition is Disposition.KEEP
    assert not release.allow_irreversible
    assert Policy().approvals.two_person


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_file_with_sources_and_never_irreversible(name: str, tmp_path: Path) -> None:
    found = preset(name)
    assert found.name == name
    assert found.sources
    assert not found.release.disposition.irreversible
    assert found.release.copies == 2
    assert found.release.distinct_pools
    file = tmp_path / "site.toml"
    file.write_text(preset_text(name))
    assert read_policy(file) == found
    assert policy_sha256(read_policy(file)) == policy_sha256(found)
    told = explain_policy(found)
    assert len(told) > 10
    assert any("Source: " in line for line in told)


def test_the_figures_of_the_facilities_are_those_of_their_sources() -> None:
    days = {name: preset(name).release.min_retention_days for name in PRESETS}
    assert days == {"esrf": 120, "euxfel": 60, "laptop": 0, "lcls": 120, "try": 0}


def test_a_policy_without_a_grace_period_says_so_wherever_its_name_is_shown() -> None:
    caution = "no grace period: for trying, not for data that matter"
    assert {name for name in PRESETS if preset(name).caution} == {"try"}
    assert preset("try").named == f"try ({caution})"
    assert explain_policy(preset("try"))[1] == f"Caution: {caution}."
    # Not the name marks it: a copy under another name does the same.
    copied = preset("try").model_copy(update={"name": "beamline"})
    assert copied.named == f"beamline ({caution})"
    waits = preset("try").release.model_copy(update={"grace_days": 0.5})
    assert not copied.model_copy(update={"release": waits}).caution
    assert not Policy().caution


def changes(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return 0.9 * value if isinstance(value, float) else value + 1
    return None


def test_every_figure_of_a_policy_is_in_its_hash_and_in_its_explanation() -> None:
    base = preset("lcls").model_dump(mode="json")
    base["release"] |= {"disposition": "drop-rejects", "allow_irreversible": True}
    first = Policy.model_validate_json(json.dumps(base))
    for key, value in base["release"].items():
        other = changes(value)
        if other is None:
            continue
        changed = json.loads(json.dumps(base))
        changed["release"][key] = other
        second = Policy.model_validate_json(json.dumps(changed))
        assert policy_sha256(second) != policy_sha256(first), key
        assert explain_policy(second) != explain_policy(first), key


def test_a_policy_that_is_not_there_or_no_text_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound, match="check --policy"):
        read_policy(tmp_path / "nothing.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SchemaError, match="UTF-8"):
        read_policy(tmp_path / "bytes.toml")
    with pytest.raises(SchemaError, match="expected a preset of"):
        preset("cern")


def test_presets_hold_no_key_twice() -> None:
    for name in PRESETS:
        tomllib.loads(preset_text(name))
