"""An output is checked by itself: any damage is noticed, and named by file, shard and event."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import BrightestPixel, planted_run
from typer.testing import CliRunner

from sfxreduce.cluster import Pool, SerialPool
from sfxreduce.errors import RunNotFound
from sfxreduce.io.chunks.shards import ABSENT, ShardFile, shard_parts
from sfxreduce.io.files.durable import sha256_file
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import ZarrFrames, read_manifest
from sfxreduce.io.store.manifest import _digest, manifest_to_json
from sfxreduce.pipeline import ingest
from sfxreduce.pipeline.filter import Outputs, filter_run
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.pipeline.verify.findings import FirstDamage
from sfxreduce.pipeline.verify.output import Verification, verify_run
from sfxreduce_cli.main import app

N_FLIPS = 1000
EVENTS_PER_SHARD = 4
KEPT = 11


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run store of small shards, and its reduced store: three shards, and a sample of one."""
    folder = tmp_path_factory.mktemp("originals")
    choose = ingest.choose_layout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ingest,
            "choose_layout",
            lambda *args, **kwargs: replace(
                choose(*args, **kwargs), tile=(65, 75), events_per_shard=EVENTS_PER_SHARD
            ),
        )
        ingest.ingest_run(planted_run(n_events=33), out=folder / "run.zarr", pool=SerialPool())
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


def quick(hits: Path) -> Verification:
    return verify_run(hits, pool=SerialPool())


def shard(number: int) -> str:
    return f"frames/c/{number}/0/0"


@contextmanager
def flipped(file: Path, position: int, bit: int) -> Iterator[None]:
    """One bit of a file, for a while."""
    data = file.read_bytes()
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    file.write_bytes(changed)
    try:
        yield
    finally:
        file.write_bytes(data)


def event_at(file: Path, position: int, n_events: int) -> int:
    """Which event of a shard a byte belongs to; the first, if it belongs to the index."""
    with ShardFile(file, n_tiles=EVENTS_PER_SHARD * 4) as opened:
        index = opened.index
    for tile, (offset, length) in enumerate(index[: n_events * 4]):
        if offset != ABSENT and offset <= position < offset + length:
            return tile // 4
    return 0


def test_an_output_as_it_was_written_passes_without_its_source(
    hits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpacked(*_: Any) -> None:
        raise AssertionError("a pixel was unpacked")

    monkeypatch.setattr("sfxreduce.io.chunks.shards.TileCodec.decode", unpacked)
    found = quick(hits)
    assert found.problems == ()
    assert found.ok
    assert (found.mode, found.checked, found.mismatched, found.first) == ("quick", 11, 0, None)
    assert (found.audit_checked, found.audit_mismatched) == (1, 0)


def test_every_flipped_bit_is_noticed_and_named(hits: Path) -> None:
    rng = np.random.default_rng(20)
    files = sorted(p for p in hits.rglob("*") if p.is_file())
    ends = np.cumsum([p.stat().st_size for p in files])
    assert ends[-1] < 400_000
    events = {"": KEPT, "audit": 1}
    n_shards = 0
    for at, bit in zip(rng.choice(ends[-1], N_FLIPS), rng.integers(0, 8, N_FLIPS), strict=True):
        number = int(np.searchsorted(ends, at, side="right"))
        file, name = files[number], str(files[number].relative_to(hits))
        position = int(at - ends[number] + file.stat().st_size)
        expected = FirstDamage(file=name)
        if "frames/c/" in name:
            n_shards += 1
            first = int(name.split("c/")[1][0]) * EVENTS_PER_SHARD
            n_events = min(events[name.split("frames")[0].strip("/")] - first, EVENTS_PER_SHARD)
            event = first + event_at(file, position, n_events)
            expected = FirstDamage(file=name, shard=first // EVENTS_PER_SHARD, event=event)
        with flipped(file, position, int(bit)):
            found = quick(hits)
        assert not found.ok, (name, position, bit)
        assert found.first == expected, (name, position, bit)
        assert found.damaged_files == (name,)
        assert f"{name}:" in found.problems[0]
    assert n_shards > N_FLIPS / 2
    assert quick(hits).ok


@pytest.mark.parametrize("part", ["", "audit/"])
@pytest.mark.parametrize("what", ["deleted", "emptied", "truncated", "extended"])
def test_a_shard_that_lost_its_index_is_named_with_its_first_event(
    what: str, part: str, hits: Path
) -> None:
    number = 0 if part else 2
    name = f"{part}{shard(number)}"
    file = hits / name
    data = file.read_bytes()
    changes = {"emptied": b"", "truncated": data[:-1], "extended": data + b"1"}
    if what == "deleted":
        file.unlink()
    else:
        file.write_bytes(changes[what])
    found = quick(hits)
    first = number * EVENTS_PER_SHARD
    assert found.first == FirstDamage(file=name, shard=number, event=first)
    assert f"{name}: shard {number}, event {first}: " in found.problems[0]
    assert (found.mismatched, found.audit_mismatched) == ((0, 1) if part else (KEPT - first, 0))


def test_shards_that_were_exchanged_are_named_with_where_they_belong(hits: Path) -> None:
    (hits / shard(1)).rename(hits / "aside")
    (hits / shard(2)).rename(hits / shard(1))
    (hits / "aside").rename(hits / shard(2))
    found = quick(hits)
    assert found.damaged_files == (shard(1), shard(2))
    assert found.first == FirstDamage(file=shard(1), shard=1, event=4)
    assert f"{shard(1)}: shard 1, event 4: holds what belongs in {shard(2)}" in found.problems[0]


def test_the_first_of_several_damaged_events_is_named(hits: Path, originals: Path) -> None:
    for number, tile in ((2, 5), (1, 6), (1, 11)):
        file = hits / shard(number)
        with ShardFile(file, n_tiles=EVENTS_PER_SHARD * 4) as opened:
            offset = int(opened.index[tile, 0])
        data = bytearray(file.read_bytes())
        data[offset + 30] ^= 1
        file.write_bytes(data)
    found = quick(hits)
    assert found.first == FirstDamage(file=shard(1), shard=1, event=5)
    assert found.mismatched == 3
    assert "; other damaged files: 1;" in found.problems[0]
    deep = verify_run(hits, against=open_run(originals / "run.zarr"), pool=SerialPool())
    assert (deep.mode, deep.mismatched, deep.first) == ("deep", 3, found.first)


def test_which_event_of_a_wrong_but_whole_shard_differs_is_named(
    hits: Path, originals: Path
) -> None:
    # A shard whose checksums are all its own: only the ledger or the source can tell.
    frames = ZarrFrames(path=str(hits))
    assert frames.layout is not None
    tiles = [list(event) for event in frames.encoded(range(4, 8))]
    tiles[2] = next(frames.encoded([0]))
    (hits / shard(1)).write_bytes(b"".join(shard_parts([t for event in tiles for t in event])))
    assert quick(hits).first == FirstDamage(file=shard(1), shard=1, event=6)
    assert quick(hits).mismatched == 1
    deep = verify_run(hits, against=open_run(originals / "run.zarr"), pool=SerialPool())
    assert deep.first == FirstDamage(file=shard(1), shard=1, event=6)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


IRREGULAR: list[tuple[Callable[[Path], None], str]] = [
    (link, shard(0)),
    (link, "ledger"),
    (link, "manifest/zarr.json"),
    (link, "zarr.json"),
    (pipe, shard(0)),
    (pipe, "ledger/zarr.json"),
    (pipe, "manifest/zarr.json"),
]


@pytest.mark.parametrize(("replace_it", "name"), IRREGULAR)
def test_what_is_no_plain_file_is_not_opened(
    replace_it: Callable[[Path], None], name: str, hits: Path, originals: Path
) -> None:
    replace_it(hits / name)
    for against in (None, open_run(originals / "run.zarr")):
        found = verify_run(hits, against=against, pool=SerialPool())
        assert name in found.damaged_files
        assert f"{name}: is " in found.problems[0]


def resign(store: Path, **changes: Any) -> None:
    """Write a manifest that says something else, with a checksum that fits."""
    facts = manifest_to_json(read_manifest(store)) | changes
    body = {key: value for key, value in facts.items() if key != "sha256"}
    shutil.rmtree(store / "manifest")
    root = zarr.open_group(str(store), mode="r+", zarr_format=3)
    root.create_group("manifest", attributes={**body, "sha256": _digest(body)})


def test_counts_that_a_valid_manifest_gets_wrong_are_noticed(hits: Path) -> None:
    resign(hits, hits=KEPT - 1, undecided=1)
    assert (
        "11 hits, 0 undecided and 22 rejected, but the manifest says 10, 1"
        in (quick(hits).problems[0])
    )


def test_a_shard_that_a_valid_manifest_forgot_is_noticed(hits: Path) -> None:
    (hits / shard(1)).unlink()
    files = manifest_to_json(read_manifest(hits))["files"]
    resign(hits, files=[file for file in files if file["path"] != shard(1)])
    assert "expected 3 shards for the 11 events in frames, found 2" in quick(hits).problems[0]


def test_an_event_column_that_a_valid_manifest_covers_is_noticed(hits: Path) -> None:
    array = zarr.open_array(str(hits / "source_index"), mode="r+")
    array[3] = 10
    files = manifest_to_json(read_manifest(hits))["files"]
    for file in files:
        path = hits / file["path"]
        file |= {"size": path.stat().st_size, "sha256": sha256_file(path)}
    resign(hits, files=files)
    assert "its events are not those that its ledger keeps" in quick(hits).problems[0]


@pytest.mark.parametrize("path", ["../run.zarr/zarr.json", "/etc/passwd", "a\0b", "\ud800", "."])
def test_a_path_that_leaves_the_output_is_status_4(path: str, hits: Path) -> None:
    files = manifest_to_json(read_manifest(hits))["files"]
    resign(hits, files=[*files, {"path": path, "size": 1, "sha256": "0" * 64}])
    found = quick(hits)
    assert not found.ok
    assert run("verify", "--quick", "--in", hits, "--serial").exit_code == 4


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def shared_hits(originals: Path) -> Path:
    """An output that every test leaves as it found it."""
    return Path(shutil.copytree(originals / "hits.zarr", originals / "shared.zarr"))


@settings(max_examples=60)
@given(data=st.data())
def test_whatever_a_manifest_says_is_reported_and_not_raised(
    data: st.DataObject, shared_hits: Path
) -> None:
    file = shared_hits / "manifest" / "zarr.json"
    before = file.read_bytes()
    facts = json.loads(before)
    key = data.draw(st.sampled_from(sorted(facts["attributes"])))
    value = data.draw(JSON)
    if facts["attributes"][key] == value:
        return
    facts["attributes"][key] = value
    if key != "sha256":
        body = {name: part for name, part in facts["attributes"].items() if name != "sha256"}
        facts["attributes"]["sha256"] = _digest(body)
    file.write_text(json.dumps(facts, indent=2))
    try:
        found = quick(shared_hits)
        # What only tells where it came from may say anything, as long as the checksum fits.
        assert not found.ok or key not in (
            "files",
            "hits",
            "undecided",
            "rejected",
            "source_events",
        )
    finally:
        file.write_bytes(before)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (["--quick"], 0),
        (["--against", "run.zarr"], 0),
        (["--deep", "--against", "run.zarr"], 0),
        (["--deep"], 0),
        ([], 2),
        (["--quick", "--against", "run.zarr"], 2),
        (["--quick", "--deep"], 2),
    ],
)
def test_how_thoroughly_is_said_and_never_guessed(
    options: list[str], status: int, originals: Path
) -> None:
    given = [originals / "run.zarr" if option == "run.zarr" else option for option in options]
    result = run("verify", "--in", originals / "hits.zarr", *given, "--serial", "--json")
    assert getattr(result.exception, "exit_status", result.exit_code) == status
    if status == 0:
        found = json.loads(result.stdout)
        assert found["mode"] == ("quick" if "--quick" in options else "deep")
        assert (found["ok"], found["first"], found["checked"]) == (True, None, 11)


def test_a_source_that_is_gone_is_asked_for(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hits = Path(shutil.copytree(originals / "hits.zarr", tmp_path / "hits.zarr"))
    resign(hits, source=str(tmp_path / "gone.zarr"))
    result = run("verify", "--deep", "--in", hits, "--serial")
    assert isinstance(result.exception, RunNotFound)
    assert "pass --against" in str(result.exception)
    assert run("verify", "--quick", "--in", hits, "--serial").exit_code == 0
    (hits / "manifest" / "zarr.json").unlink()
    assert run("verify", "--deep", "--in", hits, "--serial").exit_code == 4


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def garble(path: Path) -> None:
    remove(path)
    path.write_bytes(b"\xff{not json")


def forbid(path: Path) -> None:
    path.chmod(0)


@pytest.mark.parametrize("damage", [remove, garble, forbid, link])
@pytest.mark.parametrize(
    "name",
    ["zarr.json", "manifest", "manifest/zarr.json", "ledger", "ledger/score/c/0",
     "frames/zarr.json", "audit", "audit/zarr.json", "conditions", shard(1)],
)  # fmt: skip
def test_every_damage_is_status_4_without_a_traceback(
    damage: Callable[[Path], None], name: str, hits: Path, originals: Path
) -> None:
    if damage is forbid and os.geteuid() == 0:
        pytest.skip("root may read whatever it likes")
    if not (hits / name).exists():
        (hits / name).write_text("an extra file")
    else:
        damage(hits / name)
    for how in (["--quick"], ["--against", originals / "run.zarr"], ["--deep"]):
        result = run("verify", "--in", hits, *how, "--serial", "--json")
        assert result.exit_code == 4, (how, result.exception)
        found = json.loads(result.stdout)
        assert not found["ok"]
        assert found["problems"]
        assert found["first"] is None or found["first"]["file"].startswith(name.split("/")[0])


def test_a_process_of_its_own_says_it_in_one_line_each(hits: Path, tmp_path: Path) -> None:
    (hits / shard(1)).write_bytes(b"")
    command = [sys.executable, "-m", "sfxreduce_cli", "verify", "--quick", "--serial", "--in"]
    done = subprocess.run([*command, str(hits)], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert f"{shard(1)}: shard 1, event 4: is 0 bytes long" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run([*command, str(tmp_path / "no")], capture_output=True, check=False)
    assert done.returncode == 1


def test_a_file_in_place_of_an_output_is_status_4(tmp_path: Path) -> None:
    (tmp_path / "hits.zarr").write_text("text")
    assert run("verify", "--quick", "--in", tmp_path / "hits.zarr", "--serial").exit_code == 4
    with pytest.raises(RunNotFound, match="no such file"):
        quick(tmp_path / "none.zarr")


def test_a_cluster_finds_the_same(hits: Path, cluster: Pool) -> None:
    (hits / shard(1)).unlink()
    (hits / "score" / "c" / "0").write_bytes(b"")
    assert verify_run(hits, pool=cluster) == quick(hits)
