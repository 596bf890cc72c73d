"""A run in an object store: the same output, few requests, and no trust in its network."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from buckets import BUCKET, KEY, SECRET, Gate, ObjectServer, free_port, object_server
from commands import run as command
from planted import BrightestPixel, planted_run

from sfxreduce.cluster import Pool, SerialPool, open_pool
from sfxreduce.errors import ObjectStoreError, RefusedError, SourceError, UnfinishedRun
from sfxreduce.io.objects import bucket, spool
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.objects import ObjectFrames
from sfxreduce.pipeline import filter as filtering
from sfxreduce.pipeline import ingest
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs, as_it_is
from sfxreduce.pipeline.verify.output import verify_run

EVENTS_PER_SHARD = 4
N_SHARDS = 60
MOST_TO_OPEN = 12
SERIAL = SerialPool()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run store of many small shards, and what a filter makes of it."""
    folder = tmp_path_factory.mktemp("local")
    choose = ingest.choose_layout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ingest,
            "choose_layout",
            lambda *args, **kwargs: replace(
                choose(*args, **kwargs), tile=(65, 75), events_per_shard=EVENTS_PER_SHARD
            ),
        )
        run = planted_run(n_events=N_SHARDS * EVENTS_PER_SHARD)
        ingest.ingest_run(run, out=folder / "run.zarr", pool=SERIAL)
    filtered(folder / "run.zarr", folder / "hits.zarr")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with object_server(tmp_path_factory.mktemp("server") / "log") as server:
        yield server


@pytest.fixture(scope="module")
def address(server: ObjectServer, local: Path) -> str:
    return server.put_run(local / "run.zarr", "2026/run.zarr")


@pytest.fixture
def gate(server: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gate]:
    """What counts and spoils requests; nothing was fetched before."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    gate = Gate(server)
    for name, value in environment(gate, temporary).items():
        monkeypatch.setenv(name, value)
    try:
        yield gate
    finally:
        gate.close()


def environment(gate: Gate, temporary: Path) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": gate.url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "TMPDIR": str(temporary),
    }


def filtered(run: Path | str, out: Path, *, pool: Pool = SERIAL) -> Path:
    settings = FilterSettings(scorer=BrightestPixel())
    filter_run(open_run(run), settings=settings, outputs=Outputs(store=out), pool=pool)
    return out


def files(store: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(store)): file.read_bytes()
        for file in store.rglob("*")
        if file.is_file()
    }


def assert_same_but_for_the_source(found: Path, expected: Path, address: str) -> None:
    """Byte by byte; of the manifest, where the run lies, and the hash of the manifest itself."""
    ours, theirs = files(found), files(expected)
    mine = json.loads(ours.pop("manifest/zarr.json"))["attributes"]
    other = json.loads(theirs.pop("manifest/zarr.json"))["attributes"]
    assert ours == theirs
    assert mine.pop("source") == address
    other.pop("source")
    assert mine.pop("sha256") != other.pop("sha256")
    assert mine == other


def test_an_output_is_that_of_the_local_run_and_each_shard_is_asked_for_once(
    gate: Gate, address: str, local: Path, tmp_path: Path
) -> None:
    run = open_run(address)
    assert len(gate.requests) <= MOST_TO_OPEN
    assert gate.count("/frames/") == 0
    assert run.path == address
    assert run.source.n_bytes == open_run(local / "run.zarr").source.n_bytes
    gate.forget()
    found = filtered(address, tmp_path / "hits.zarr")
    assert gate.count("/frames/c/") == N_SHARDS
    assert len(gate.requests) <= MOST_TO_OPEN + 2 * N_SHARDS
    assert gate.listings == 2  # what is there, and whether it still is
    assert {method for method, _ in gate.requests} == {"GET"}
    assert_same_but_for_the_source(found, local / "hits.zarr", address)


def test_workers_fetch_each_shard_once_and_make_the_same(
    gate: Gate, address: str, local: Path, tmp_path: Path
) -> None:
    with open_pool(n_workers=2) as pool:
        found = filtered(address, tmp_path / "hits.zarr", pool=pool)
    assert gate.count("/frames/c/") == N_SHARDS
    assert len(gate.requests) <= MOST_TO_OPEN + 2 * N_SHARDS
    assert_same_but_for_the_source(found, local / "hits.zarr", address)


def test_refused_and_cut_off_answers_change_no_byte(
    gate: Gate, address: str, local: Path, tmp_path: Path
) -> None:
    gate.refused, gate.cut = 0.05, 0.02
    found = filtered(address, tmp_path / "hits.zarr")
    assert gate.spoiled["refused"] >= 2
    assert gate.spoiled["cut"] >= 1
    assert_same_but_for_the_source(found, local / "hits.zarr", address)


def test_an_answer_that_is_always_cut_off_is_no_hole(
    gate: Gate, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(bucket, "MOST_RETRIES", 1)
    run = open_run(address)
    gate.cut = 1.0
    # Half of what is left comes each time: after ten attempts, nearly all of it.
    with pytest.raises(ObjectStoreError, match=r"frames/c/0/0/0: \d+ of \d+ bytes came in 10"):
        run.source.read([0])
    gate.cut = 0.0
    assert not run.source.read([0]).reasons.any()


def test_a_full_disk_is_kept_from_filling_up(
    gate: Gate, address: str, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "FEWEST_FREE_BYTES", 1 << 60)
    found = filtered(address, tmp_path / "hits.zarr")
    held = spool.open_spool(address)
    there = [
        name
        for name in held.objects
        if name.startswith("frames/c/") and (held.folder / name).stat().st_blocks
    ]
    assert len(there) == 1
    assert gate.count("/frames/c/") > N_SHARDS
    assert_same_but_for_the_source(found, local / "hits.zarr", address)


def test_an_object_that_changes_while_it_is_read_stops_the_run(
    gate: Gate, server: ObjectServer, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = server.put_run(local / "run.zarr", "changing/run.zarr")
    run = open_run(mine)
    data = (local / "run.zarr/frames/c/55/0/0").read_bytes()
    server.put("changing/run.zarr/frames/c/55/0/0", bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(ObjectStoreError, match=r"frames/c/55/0/0: was changed or removed"):
        filter_run(
            run, settings=FilterSettings(scorer=BrightestPixel()), outputs=tmp_path / "hits.zarr"
        )
    assert not (tmp_path / "hits.zarr").exists()
    with pytest.raises(RefusedError, match=r"its reader\.version changed"):
        filtered(mine, tmp_path / "hits.zarr")


def test_an_object_that_changes_after_it_was_read_is_found_before_anything_appears(
    gate: Gate, server: ObjectServer, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = server.put_run(local / "run.zarr", "late/run.zarr")
    write = filtering.write_reduced

    def late(*args: object, **options: object) -> object:
        done = write(*args, **options)  # type: ignore[arg-type]
        server.put("late/run.zarr/frames/c/0/0/0", b"other")
        return done

    monkeypatch.setattr(filtering, "write_reduced", late)
    with pytest.raises(SourceError, match="changed while they were read"):
        filtered(mine, tmp_path / "hits.zarr")
    assert not (tmp_path / "hits.zarr").exists()


def test_what_was_made_of_a_run_can_be_verified_against_it_and_described(
    gate: Gate, server: ObjectServer, address: str, local: Path, tmp_path: Path
) -> None:
    found = filtered(address, tmp_path / "hits.zarr")
    assert verify_run(found, against=open_run(address), pool=SERIAL).ok
    assert command("verify", "--in", found, "--deep", "--serial").exit_code == 0
    told = command("info", address, "--json")
    assert told.exit_code == 0
    assert json.loads(told.stdout)["events"] == N_SHARDS * EVENTS_PER_SHARD
    reduced = json.loads(command("info", server.put_run(found, "hits.zarr"), "--json").stdout)
    assert (reduced["kind"], reduced["source"]) == ("reduced run store", address)


def start(gate: Gate, folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sfxreduce_cli", *words],
        cwd=folder,
        env=os.environ | environment(gate, folder / "tmp"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_filter_resumes_and_asks_for_nothing_twice(
    gate: Gate, address: str, local: Path, tmp_path: Path
) -> None:
    words = ("filter", "--serial", "--scorer", "peaks", "--in", address, "--out", "hits.zarr")
    gate.hold_at = N_SHARDS // 2
    killed = start(gate, tmp_path, *words)
    deadline = time.monotonic() + 120
    while gate.held.is_set():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)
    gate.held.set()
    assert gate.count("/frames/c/") == N_SHARDS // 2 + 1
    left = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert left
    for file in left:  # journal, spool, ...
        assert SECRET.encode() not in file.read_bytes()
        assert KEY.encode() not in file.read_bytes()
    again = start(gate, tmp_path, *words)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert SECRET not in out + err
    # What was under way when it was killed is asked for again.
    assert gate.count("/frames/c/") == N_SHARDS + 1
    fresh = start(
        gate, tmp_path, *words[:4], "--in", str(local / "run.zarr"), "--out", "fresh.zarr"
    )
    fresh.communicate(timeout=300)
    assert fresh.returncode == 0
    assert_same_but_for_the_source(tmp_path / "hits.zarr", tmp_path / "fresh.zarr", address)
    assert not any((tmp_path / "tmp").rglob("*.zarr"))  # removed at the end


def test_a_threshold_is_changed_with_what_the_run_has_and_the_output_lacks(
    gate: Gate, address: str, local: Path, tmp_path: Path
) -> None:
    again = ("--threshold", "3", "--serial", "--scorer", "peaks", "--min-peaks", "1")
    for run, name in ((address, "s3"), (local / "run.zarr", "local")):
        words = ("--out", tmp_path / f"{name}.zarr", "--in", run)
        assert command("filter", *words, *again[2:]).exit_code == 0
        out = tmp_path / f"{name}-again.zarr"
        words = ("--in", tmp_path / f"{name}.zarr", "--against", run, "--out", out)
        assert command("redecide", *words, *again[:3]).exit_code == 0
    found = tmp_path / "s3-again.zarr"
    assert_same_but_for_the_source(found, tmp_path / "local-again.zarr", address)


def test_what_a_killed_process_left_is_removed_by_the_next(
    gate: Gate, server: ObjectServer, local: Path, address: str, tmp_path: Path
) -> None:
    base = spool._base(tempfile.gettempdir())
    left = base / "0123" / "run.zarr"
    left.mkdir(parents=True)
    (left / "zarr.json").write_bytes(b"{}")
    open_run(address)
    assert not left.exists()


def test_a_worker_elsewhere_fetches_for_itself_and_reads_no_other_version(
    gate: Gate,
    server: ObjectServer,
    local: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = server.put_run(local / "run.zarr", "elsewhere/run.zarr")
    sent = pickle.dumps(open_run(mine).source)
    for name in ("second", "third"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "second"))
    gate.forget()
    reading = pickle.loads(sent).read([5])
    assert (gate.listings, gate.count("/frames/c/")) == (1, 1)
    assert (
        reading.pixels.tobytes() == open_run(local / "run.zarr").source.read([5]).pixels.tobytes()
    )
    server.put("elsewhere/run.zarr/event_id/c/0", b"other")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "third"))
    with pytest.raises(ObjectStoreError, match="was changed or removed while it was read"):
        pickle.loads(sent).read([5])


def test_who_may_no_longer_read_finds_no_damage(
    gate: Gate, address: str, local: Path, tmp_path: Path
) -> None:
    run = open_run(address)
    gate.denied = True
    with pytest.raises(ObjectStoreError, match=r"frames/c/0/0/0: access denied"):
        run.source.read([0])
    with pytest.raises(ObjectStoreError, match="access denied"):
        verify_run(local / "hits.zarr", against=run, pool=SERIAL)


def test_a_run_whose_last_shards_are_missing_is_refused(
    gate: Gate, server: ObjectServer, local: Path, tmp_path: Path
) -> None:
    begun = Path(shutil.copytree(local / "run.zarr", tmp_path / "run.zarr"))
    (begun / f"frames/c/{N_SHARDS - 1}/0/0").unlink()
    with pytest.raises(UnfinishedRun, match=f"shard {N_SHARDS - 1} of {N_SHARDS} is missing"):
        filtered(server.put_run(begun, "begun/run.zarr"), tmp_path / "hits.zarr")


def test_what_was_put_just_now_has_to_settle(gate: Gate, address: str) -> None:
    run = open_run(address)
    gate.forget()
    assert as_it_is(run, incomplete=False) is run
    assert gate.listings == 0
    with pytest.raises(UnfinishedRun, match=r"changed \d+ s ago"):
        as_it_is(run, incomplete=False, settle_seconds=3600)
    assert gate.listings == 1
    assert as_it_is(run, incomplete=True, settle_seconds=3600).incomplete
    assert as_it_is(run, incomplete=False, settle_seconds=1e-6) is run


def test_a_source_travels_without_credentials(gate: Gate, address: str) -> None:
    source = open_run(address).source
    assert isinstance(source, ObjectFrames)
    sent = pickle.dumps(source)
    assert SECRET.encode() not in sent
    assert KEY.encode() not in sent
    assert len(sent) < 1000


def refused(*words: object) -> tuple[int, str]:
    done = command(*words)
    line = str(done.exception)
    assert "\n" not in line
    assert SECRET not in line
    return done.exit_code, line


def test_what_is_not_there_is_said_in_one_line(gate: Gate, address: str) -> None:
    assert refused("info", f"s3://{BUCKET}/nothing.zarr") == (
        1,
        f"s3://{BUCKET}/nothing.zarr: no object has a name that begins so; check bucket and name",
    )
    assert refused("info", "s3://elsewhere/run.zarr") == (
        1,
        "s3://elsewhere/run.zarr: there is no such bucket; check the address",
    )
    status, line = refused("info", "s3://elsewhere")
    assert (status, "expected an address as s3://BUCKET/RUN.zarr" in line) == (2, True)
    status, line = refused("info", f"s3://{BUCKET}/2026")
    assert (status, f"s3://{BUCKET}/2026: expected a Zarr group" in line) == (1, True)


def test_a_denied_store_is_said_in_one_line(gate: Gate, address: str) -> None:
    gate.denied = True
    status, line = refused("info", address)
    assert status == 1
    assert line.startswith(f"{address}: access denied; check AWS_ACCESS_KEY_ID")


def test_a_store_out_of_reach_is_given_up(
    gate: Gate, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "MOST_RETRIES", 2)
    monkeypatch.setattr(bucket, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    status, line = refused("info", address)
    assert status == 1
    assert line.startswith(f"{address}: cannot be read from the object store: it cannot be reached")


def test_plain_http_has_to_be_allowed(
    gate: Gate, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    status, line = refused("info", address)
    assert (status, "AWS_ALLOW_HTTP is not true" in line) == (1, True)
    assert not gate.requests


def test_without_the_extra_it_is_said_how_to_install_it(
    gate: Gate, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    bucket._client_of.cache_clear()
    status, line = refused("info", address)
    assert status == 2
    assert line.endswith("not installed; pip install 'sfxreduce[s3]'")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["filter", "--in", "run.zarr", "--out", "s3://b/hits.zarr"], "and never written"),
        (["filter", "--in", "s3://b/r.zarr", "--out-dir", "out"], "are filtered one by one"),
        (["filter", "--in", "s3://b/r.zarr", "--out", "h.zarr", "--untrusted"], "--untrusted"),
        (["filter", "--in", "gs://b/r.zarr", "--out", "h.zarr"], "neither read nor written"),
        (["ingest", "--in", "s3://b/r.h5", "--out", "r.zarr"], "s3:// is read by 'filter --in'"),
    ],
)
def test_what_is_not_done_with_addresses_is_refused(words: list[str], said: str) -> None:
    status, line = refused(*words)
    assert status == 2
    assert said in line
