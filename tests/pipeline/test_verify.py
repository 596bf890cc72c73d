"""Whatever happens to an output, verification notices it and says what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planted import BrightestPixel, planted_run

from sfxreduce.cluster import Pool, SerialPool
from sfxreduce.errors import RunNotFound, VerificationError
from sfxreduce.io.files.durable import FileRecord
from sfxreduce.io.open import open_run
from sfxreduce.io.store.manifest import Manifest, manifest_from_json, manifest_to_json
from sfxreduce.pipeline.filter import Outputs, filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.pipeline.verify.findings import FirstDamage
from sfxreduce.pipeline.verify.output import Verification, verify_run


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run store and its reduced store."""
    folder = tmp_path_factory.mktemp("originals")
    ingest_run(planted_run(), out=folder / "run.zarr", pool=SerialPool())
    filter_run(
        open_run(folder / "run.zarr"),
        settings=FilterSettings(scorer=BrightestPixel()),
        outputs=Outputs(store=folder / "hits.zarr"),
        pool=SerialPool(),
    )
    return folder


@pytest.fixture
def hits(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "hits.zarr", tmp_path / "hits.zarr"))


def check(hits: Path, originals: Path, pool: Pool) -> Verification:
    return verify_run(hits, against=open_run(originals / "run.zarr"), pool=pool)


def shard(hits: Path) -> Path:
    return hits / "frames" / "c" / "0" / "0" / "0"


def flip(file: Path, position: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[position % len(data)] ^= 1 << bit
    file.write_bytes(data)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(position=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_every_flipped_bit_in_any_file_is_noticed(
    position: int, bit: int, originals: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    hits = Path(
        shutil.copytree(originals / "hits.zarr", tmp_path_factory.mktemp("flip") / "hits.zarr")
    )
    files = sorted(p for p in hits.rglob("*") if p.is_file())
    ends = np.cumsum([p.stat().st_size for p in files])
    position %= int(ends[-1])
    file = files[int(np.searchsorted(ends, position, side="right"))]
    flip(file, position, bit)
    found = check(hits, originals, SerialPool())
    assert not found.ok
    assert found.mode == "deep"
    assert str(file.relative_to(hits)) in found.damaged_files


def test_one_flipped_byte_of_a_frame_is_one_mismatched_event(
    hits: Path, originals: Path, serial: Pool
) -> None:
    flip(shard(hits), 20)
    found = check(hits, originals, serial)
    assert (found.checked, found.mismatched) == (24, 1)
    assert (found.audit_checked, found.audit_mismatched) == (1, 0)
    assert found.damaged_files == ("frames/c/0/0/0",)
    assert "frames/c/0/0/0: shard 0, event 0: does not match its sha256" in found.problems[0]
    assert "event 0 of the output differs from event 0 of" in found.problems[1]
    assert found.first == FirstDamage(file="frames/c/0/0/0", shard=0, event=0)


@pytest.mark.parametrize("what", ["deleted", "emptied", "shortened", "swapped", "added"])
def test_shards_that_are_not_what_was_written_are_noticed(
    what: str, hits: Path, originals: Path, serial: Pool
) -> None:
    file = shard(hits)
    if what == "deleted":
        file.unlink()
    elif what == "emptied":
        file.write_bytes(b"")
    elif what == "shortened":
        file.write_bytes(file.read_bytes()[:-1])
    elif what == "swapped":
        shutil.copy(originals / "run.zarr" / "frames" / "c" / "0" / "0" / "0", file)
    else:
        (hits / "frames" / "c" / "9").write_bytes(b"1")
    found = check(hits, originals, serial)
    assert not found.ok
    assert found.damaged_files


@pytest.mark.parametrize("part", ["zarr.json", "manifest/zarr.json", "ledger", "frames/zarr.json"])
@pytest.mark.parametrize("how", ["missing", "garbage"])
def test_missing_and_garbled_metadata_is_a_problem_and_not_a_crash(
    part: str, how: str, hits: Path, originals: Path, serial: Pool
) -> None:
    path = hits / part
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if how == "garbage":
        path.write_bytes(b"\xff{not json")
    found = check(hits, originals, serial)
    assert not found.ok
    assert all("\n" not in problem for problem in found.problems)


def test_another_run_is_not_taken_for_the_source(hits: Path, tmp_path: Path, serial: Pool) -> None:
    ingest_run(planted_run(n_events=60, seed=9), out=tmp_path / "other.zarr", pool=serial)
    found = verify_run(hits, against=open_run(tmp_path / "other.zarr"), pool=serial)
    assert found.mismatched == found.checked == 24
    assert found.audit_mismatched == found.audit_checked == 1
    assert "is it the right run?" in found.problems[0]


def test_a_run_store_is_no_reduced_store(originals: Path, serial: Pool) -> None:
    run = originals / "run.zarr"
    assert not verify_run(run, against=open_run(run), pool=serial).ok
    with pytest.raises(RunNotFound, match="no such file"):
        verify_run(originals / "none", against=open_run(run), pool=serial)


def manifest(**changes: object) -> Manifest:
    facts = {
        "software": "sfxreduce",
        "source": "run.zarr",
        "source_events": 3,
        "source_bytes": 10,
        "scorer": "peaks",
        "settings": "",
        "threshold": 8.0,
        "model_sha256": None,
        "hits": 1,
        "undecided": 1,
        "rejected": 1,
        "files": (FileRecord(path="a/b", size=1, sha256="0"),),
    }
    return Manifest(**{**facts, **changes})  # type: ignore[arg-type]


def test_a_manifest_comes_back_and_any_changed_field_is_noticed() -> None:
    facts = json.loads(json.dumps(manifest_to_json(manifest())))
    assert manifest_from_json(facts, where="x") == manifest()
    for key in facts:
        changed = {**facts, key: "something else"}
        with pytest.raises(VerificationError, match="manifest"):
            manifest_from_json(changed, where="x")
        shorter = {k: v for k, v in facts.items() if k != key}
        with pytest.raises(VerificationError, match="manifest"):
            manifest_from_json(shorter, where="x")


def test_a_manifest_that_does_not_add_up_or_leaves_its_store_is_refused() -> None:
    with pytest.raises(VerificationError, match="do not make 3 events"):
        manifest(hits=2)
    for path in ("/etc/passwd", "../up", "a//b"):
        with pytest.raises(VerificationError, match="leaves the output"):
            manifest(files=(FileRecord(path=path, size=1, sha256="0"),))
