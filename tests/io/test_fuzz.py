"""Readers of what came from elsewhere, given anything: an error of ours, or a result."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import tracemalloc
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import pytest
import zarr
from hostile import run_all
from hostile.corpus import zstd_frame_of_unknown_size
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planted import planted_run

from sfxreduce.audit.labels import labels_from_csv
from sfxreduce.cluster import SerialPool
from sfxreduce.errors import SfxReduceError, SourceError
from sfxreduce.io.chunks.limits import CLAIMS, check_packed
from sfxreduce.io.files.durable import FileRecord
from sfxreduce.io.files.journal import complete_lines, open_journal, read_chain, read_journal
from sfxreduce.io.files.safe_read import parse_json
from sfxreduce.io.label_table import read_labels, write_labels
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.crystfel_stream import read_stream
from sfxreduce.io.readers.zarr.run import read_manifest
from sfxreduce.io.store.guard_rules import rules_of_array
from sfxreduce.io.store.manifest import Manifest, manifest_from_json, manifest_to_json
from sfxreduce.pipeline.audit import read_certificate, read_draw
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.run.run import Run
from sfxreduce.scorers.cnn.folder import default_model, read_model

MOST_BYTES = 300 << 20
MANY = int(os.environ.get("SFXREDUCE_FUZZ", "1"))
FIXTURE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def examples(n: int) -> settings:
    """Few in an ordinary run, ten times as many in a long one."""
    return settings(max_examples=n * MANY, deadline=None, suppress_health_check=FIXTURE)


ODD_NUMBERS = st.sampled_from(
    [0, -1, 1, 2**31, 2**62, 2**64, 10**30, -(2**63), 1e300, -0.5, math.nan, math.inf, True]
)
ODD = st.one_of(
    ODD_NUMBERS,
    st.none(),
    st.text(max_size=6),
    st.sampled_from(["../x", "/etc/passwd", "\0", "pickle", "|O", "\ud800", "9" * 400]),
    st.lists(ODD_NUMBERS, max_size=3),
    st.dictionaries(st.text(max_size=3), ODD_NUMBERS, max_size=2),
)


@st.composite
def damaged_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """A file with bytes changed, cut off, taken out or put in."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(changed) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "set", "cut", "out", "in"]))
        if kind == "cut" and draw(st.booleans()):
            del changed[place:]
        elif kind == "out":
            del changed[place : place + draw(st.integers(1, 16))]
        elif kind == "in":
            changed[place:place] = draw(st.binary(min_size=1, max_size=16))
        elif changed:
            place = min(place, len(changed) - 1)
            changed[place] = draw(st.integers(0, 255)) if kind == "set" else changed[place] ^ 1
    return bytes(changed)


def places(document: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Places of all values of a document."""
    found = [at] if at else []
    items: Any = ()
    if isinstance(document, dict):
        items = document.items()
    elif isinstance(document, list):
        items = enumerate(document)
    for name, value in items:
        found += places(value, (*at, name))
    return found


@st.composite
def damaged_json(draw: st.DrawFn, document: Any) -> Any:
    """A document with some values replaced or taken out."""
    changed = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from(places(changed)))
        parent = changed
        for name in above:
            parent = parent[name]
        if draw(st.booleans()) and isinstance(parent, dict):
            del parent[last]
        else:
            parent[last] = draw(ODD)
        if not places(changed):
            break
    return changed


def ours(act: Callable[[], object], *, where: str = "") -> None:
    """Whatever happens is no error, or one of ours in one line; and it takes little memory."""
    said = where
    tracemalloc.start()
    try:
        with warnings.catch_warnings(action="ignore"):
            act()
    except SfxReduceError as error:
        said = str(error).strip()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert where in said
    assert "\n" not in said
    assert peak < MOST_BYTES, peak


def look_at(path: Path) -> None:
    """Open a run, and read some of it."""
    run = open_run(path)
    if run.n_events and math.prod(run.detector.frame_shape) < 10**6:
        run.source.read([0, run.n_events - 1])


@cache
def good_cxi() -> bytes:
    buffer = io.BytesIO()
    frames = np.random.default_rng(2).poisson(9, (3, 24, 20)).astype("i2")
    with h5py.File(buffer, "w") as file:
        made = file.create_dataset(
            "/entry_1/data_1/data", data=frames, chunks=(1, 24, 20), compression="gzip"
        )
        assert made.shape == (3, 24, 20)
        file["/LCLS/photon_energy_eV"] = np.full(3, 8000.0)
        file["/entry_1/data_1/mask"] = np.eye(24, 20, dtype="u4")
        file["/entry_1/data_1/experiment_identifier"] = np.array(["a", "b", "c"], object)
    return buffer.getvalue()


def test_damaged_cxi_files(tmp_path: Path) -> None:
    """Each in a process of its own: a damaged file may end the HDF5 library, and who called it."""
    rng = np.random.default_rng(7)
    for number in range(30 * MANY):
        data = bytearray(good_cxi())
        for place in rng.integers(0, len(data), rng.integers(1, 6)):
            data[place] = rng.choice([0, 255, data[place] ^ 1, rng.integers(256)])
        stop = rng.integers(len(data)) if rng.random() < 0.1 else len(data)
        (tmp_path / f"{number}.cxi").write_bytes(data[:stop])
    files = sorted(tmp_path.glob("*.cxi"))
    for result, file in zip(
        run_all([["info", str(f), "--json"] for f in files]), files, strict=True
    ):
        if result["status"] < 0:  # that is what the other way to read a file is for
            (result,) = run_all([["info", str(file), "--json", "--untrusted"]])
        assert result["status"] in (0, 1), result
        lines = result["stderr"].splitlines()
        assert len(lines) == result["status"], result
        assert all(line.startswith("sfxreduce: ") for line in lines), result
        assert not result["timed_out"], result
        assert result["peak_bytes"] < 1_000_000_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "run.zarr"
    ingest_run(planted_run(n_events=4), out=path, pool=SerialPool())
    return path


@pytest.fixture(scope="module")
def small_run(store: Path) -> Run:
    return open_run(store)


def with_file(file: Path, data: bytes, act: Callable[[], object]) -> None:
    """Do something with a file in another state."""
    before = file.read_bytes()
    file.write_bytes(data)
    try:
        ours(act)
    finally:
        file.write_bytes(before)


@examples(60)
@given(data=st.data())
def test_damaged_metadata_of_a_store(data: st.DataObject, store: Path) -> None:
    file = data.draw(st.sampled_from(sorted(store.rglob("zarr.json"))))
    if data.draw(st.booleans()):
        text = data.draw(damaged_bytes(file.read_bytes()))
    else:
        text = json.dumps(data.draw(damaged_json(json.loads(file.read_text())))).encode()
    with_file(file, text, lambda: look_at(store))


@examples(40)
@given(data=st.data())
def test_damaged_chunks_of_a_store(data: st.DataObject, store: Path) -> None:
    chunks = sorted(p for p in store.rglob("*") if p.is_file() and p.name != "zarr.json")
    file = data.draw(st.sampled_from(chunks))
    with_file(file, data.draw(damaged_bytes(file.read_bytes())), lambda: look_at(store))


@cache
def metadata(version: int) -> dict[str, Any]:
    group = zarr.create_group({}, zarr_format=version)  # type: ignore[arg-type]
    array = group.create_array("a", shape=(4, 6, 6), chunks=(1, 6, 6), dtype="<i2")
    document: dict[str, Any] = json.loads(
        json.dumps(array.metadata.to_dict(), default=lambda part: part.to_dict())
    )
    return document


@examples(150)
@given(document=damaged_json({"3": metadata(3), "2": metadata(2)}))
def test_rules_of_any_metadata(document: Any) -> None:
    for version in document.values() if isinstance(document, dict) else ():
        if isinstance(version, dict):
            ours(lambda version=version: rules_of_array(version, where="here"), where="here")  # type: ignore[misc]


@cache
def manifest() -> dict[str, Any]:
    made = Manifest(
        software="x 1",
        source="/run",
        source_events=3,
        source_bytes=9,
        scorer="s",
        settings="",
        threshold=1.0,
        model_sha256=None,
        hits=1,
        undecided=1,
        rejected=1,
        files=(FileRecord(path="a/b", size=3, sha256="0" * 64),),
    )
    return manifest_to_json(made)


@examples(150)
@given(document=damaged_json(manifest()), signed=st.booleans())
def test_any_manifest(document: Any, signed: bool) -> None:
    if signed and isinstance(document, dict):
        # Whoever made it knows how to make its checksum.
        from sfxreduce.io.store.manifest import _digest

        body = {k: v for k, v in document.items() if k != "sha256"}
        document["sha256"] = _digest({"manifest_version": 1, **body})

    def read() -> None:
        found = manifest_from_json(document, where="here")
        for file in found.files:
            assert not Path(file.path).is_absolute()
            assert ".." not in Path(file.path).parts

    ours(read)


@examples(20)
@given(data=st.data())
def test_a_store_with_any_manifest(data: st.DataObject, store: Path) -> None:
    folder = store / "manifest"
    folder.mkdir(exist_ok=True)
    facts = {"zarr_format": 3, "node_type": "group", "attributes": manifest()}
    try:
        (folder / "zarr.json").write_text(json.dumps(data.draw(damaged_json(facts))))
        ours(lambda: read_manifest(store))
    finally:
        shutil.rmtree(folder)  # others open the store


@cache
def journal() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        with open_journal(Path(folder) / "journal") as made:
            for number in range(3):
                made.append({"event": "step", "number": number, "of": ["a", {"b": None}]})
        return (Path(folder) / "journal").read_bytes()


@examples(150)
@given(data=damaged_bytes(journal()))
def test_any_journal(data: bytes) -> None:
    ours(lambda: read_chain(complete_lines(data), where="journal"), where="journal")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", '"\\ud800"', "9" * 5000, "[" * 9999])
def test_a_journal_of_what_is_no_plain_json(value: str, tmp_path: Path) -> None:
    """NaN parsed, and then ended in a traceback when the line was written again to compare it."""
    path = tmp_path / "journal"
    first = json.loads(journal().splitlines()[0])
    line = json.dumps({**first, "body": {"a": 0}}, sort_keys=True, separators=(",", ":"))
    path.write_text(line.replace('{"a":0}', f'{{"a":{value}}}') + "\n")
    ours(lambda: read_journal(path), where=str(path))


@examples(100)
@given(data=st.data())
def test_any_model(data: st.DataObject, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    config = (default_model() / "config.json").read_bytes()
    weights = (default_model() / "model.safetensors").read_bytes()
    if data.draw(st.booleans()):
        config = json.dumps(data.draw(damaged_json(json.loads(config)))).encode()
    else:
        head = data.draw(damaged_bytes(weights[:512]))
        weights = head + weights[512:]
        import hashlib

        document = json.loads(config)
        document["weights_sha256"] = hashlib.sha256(weights).hexdigest()
        config = json.dumps(document).encode()
    (model / "config.json").write_bytes(config)
    (model / "model.safetensors").write_bytes(weights)
    ours(lambda: read_model(model))


@examples(100)
@given(data=st.data())
def test_any_labels(data: st.DataObject, small_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    label = np.array([0, 1, 2, 1], np.int8)
    write_labels(path, label, run=small_run, source="peaks", overwrite=True)
    path.write_bytes(data.draw(damaged_bytes(path.read_bytes())))
    ours(lambda: read_labels(path, run=small_run))
    text = data.draw(damaged_bytes(b"source_index,label,by\n0,hit,me\n2,miss,you\n"))
    ours(lambda: labels_from_csv(text.decode(errors="replace"), where="here"))
    stream = b"----- Begin chunk -----\nImage filename: a.cxi\nEvent: //1\nhit = 1\n"
    path.write_bytes(data.draw(damaged_bytes(stream + b"----- End chunk -----\n")))
    ours(lambda: read_stream(path, run=small_run))


@examples(60)
@given(document=damaged_json({"certificate_version": 1, "sha256": "0", "a": [1, {"b": 2}]}))
def test_any_certificate_or_draw(document: Any, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(document))
    ours(lambda: read_certificate(path))
    ours(lambda: read_draw(path))


@examples(200)
@given(data=st.binary(max_size=300), packing=st.sampled_from(sorted(CLAIMS)))
def test_no_bytes_are_more_than_a_packed_chunk(data: bytes, packing: str) -> None:
    ours(lambda: check_packed(memoryview(data), packing=packing, most_bytes=1000))


PACKERS: dict[str, Callable[[bytes], Any]] = {
    "zstd": lambda data: numcodecs.zstd.compress(data, 1),
    "blosc": lambda data: numcodecs.blosc.compress(data, b"lz4", 5, 1),
    "gzip": numcodecs.GZip().encode,
    "zlib": numcodecs.Zlib().encode,
    "lz4": numcodecs.lz4.compress,
}


@examples(100)
@given(
    packing=st.sampled_from(sorted(PACKERS)),
    n_bytes=st.integers(1, 400_000),
    share=st.floats(0, 1),
)
def test_a_whole_chunk_passes_and_a_byte_more_does_not(
    packing: str, n_bytes: int, share: float
) -> None:
    noise = np.random.default_rng(n_bytes).integers(0, 9, int(n_bytes * share), np.uint8)
    data = noise.tobytes().ljust(n_bytes, b"\0")
    packed = memoryview(bytes(PACKERS[packing](data)))
    check_packed(packed, packing=packing, most_bytes=n_bytes)
    if packing in ("zstd", "blosc", "lz4") or len(packed) * 1100 > n_bytes:
        with pytest.raises(SourceError, match="unpacks to"):
            check_packed(packed, packing=packing, most_bytes=n_bytes - 1)


def test_a_frame_that_says_nothing_of_its_size_is_counted_by_its_blocks() -> None:
    packed = memoryview(zstd_frame_of_unknown_size(n_blocks=10))
    most = 10 * (128 << 10) + 1
    assert len(numcodecs.zstd.decompress(packed)) == most
    check_packed(packed, packing="zstd", most_bytes=most)
    with pytest.raises(SourceError, match="unpacks to"):
        check_packed(packed, packing="zstd", most_bytes=most - 1)


@examples(100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(max_size=4), part),
        max_leaves=20,
    )
)
def test_plain_json_is_parsed_as_it_is(document: Any) -> None:
    assert parse_json(json.dumps(document).encode()) == document


@examples(100)
@given(st.binary(max_size=60))
def test_no_bytes_are_more_than_a_value_error(data: bytes) -> None:
    with suppress(ValueError):
        parse_json(data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_same_ten_times_as_long() -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--timeout=3600", __file__],
        env={**os.environ, "SFXREDUCE_FUZZ": "10"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
