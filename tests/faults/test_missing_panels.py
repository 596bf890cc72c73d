"""Events that lack panels: the other panels are kept, and no such event is rejected."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from archived import Call
from beamtimes import DAY_NS, POOL, people_by_name, set_clock
from planted import ArrayFrames, BrightestPixel, planted_run

from sfxreduce.archive.evidence.subject import wall_clock
from sfxreduce.archive.savings.report import report_savings
from sfxreduce.cluster import SerialPool
from sfxreduce.decisions.decide import Decision
from sfxreduce.decisions.ledger import read_ledger
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import open_table
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
from sfxreduce.pipeline.verify.output import verify_run
from sfxreduce.run.detector import PixelFlag
from sfxreduce.run.reasons import UNSAFE, Reason

N_EVENTS, N_PANELS = 40, 3
UNWRITTEN = {1: (0,), 6: (2,), 7: (0, 2)}
DAMAGED = {11: (1,), 12: (0,)}
LOST = (20,)
HOLED = {**UNWRITTEN, **DAMAGED}
DATA = "/entry/data/data"


def frames(dtype: str = "i2") -> np.ndarray:
    source = planted_run(n_events=N_EVENTS, panels=N_PANELS).source
    assert isinstance(source, ArrayFrames)
    return source.frames.astype(dtype)


def write_run(path: Path, data: np.ndarray, *, fill: int | None = None) -> Path:
    """A run with chunks of a panel each, some unwritten and some damaged."""
    with h5py.File(path, "w") as file:
        chunk = (1, 1, *data.shape[2:])
        stored = file.create_dataset(
            DATA, data.shape, data.dtype, chunks=chunk, compression="gzip", fillvalue=fill
        )
        for event, panel in np.ndindex(*data.shape[:2]):
            if event not in LOST and panel not in UNWRITTEN.get(event, ()):
                stored[event, panel] = data[event, panel]
        places = [
            stored.id.get_chunk_info_by_coord((event, panel, 0, 0)).byte_offset
            for event, panels in DAMAGED.items()
            for panel in panels
        ]
    with path.open("r+b") as raw:
        for place in places:
            raw.seek(place + 40)
            raw.write(b"\xff" * 8)
    return path


def by_modules(folder: Path, data: np.ndarray) -> Path:
    """A virtual dataset over one file a module, as at the European XFEL: rows end early in some."""
    layout = h5py.VirtualLayout(data.shape, data.dtype)
    for panel in range(N_PANELS):
        name = f"module{panel}.h5"
        with h5py.File(folder / name, "w") as file:
            stored = file.create_dataset(
                "raw", (N_EVENTS, *data.shape[2:]), data.dtype, chunks=(1, *data.shape[2:])
            )
            for event in range(N_EVENTS):
                if event not in LOST and panel not in HOLED.get(event, ()):
                    stored[event] = data[event, panel]
        layout[:, panel] = h5py.VirtualSource(name, "raw", (N_EVENTS, *data.shape[2:]))
    with h5py.File(folder / "run.h5", "w") as file:
        file.create_virtual_dataset(DATA, layout)
    return folder / "run.h5"


def filtered(run: Path, **outputs: Path) -> Path:
    hits = run.with_name("hits.zarr")
    filter_run(
        open_run(run),
        settings=FilterSettings(scorer=BrightestPixel()),
        outputs=Outputs(store=hits, **outputs),
        pool=SerialPool(),
    )
    return hits


def expected_marks(events: np.ndarray) -> np.ndarray:
    marks = np.zeros((events.size, N_PANELS), np.bool_)
    for place, event in enumerate(events.tolist()):
        marks[place, list(range(N_PANELS) if event in LOST else HOLED.get(event, ()))] = True
    return marks


def assert_kept(store: Path, data: np.ndarray, fill: float) -> None:
    """Panels that could be read are there bit for bit, and the others are marked."""
    table = open_table(store)
    events = table["source_index"].values
    assert {*HOLED, *LOST} <= set(events.tolist())
    marks = expected_marks(events)
    np.testing.assert_array_equal(table["panel_missing"].values, marks)
    reading = open_run(store).source.read(range(events.size))
    for place, event in enumerate(events.tolist()):
        if event in LOST:
            assert reading.lost[place]
            continue
        held, wanted = reading.pixels[place], data[event]
        assert held[~marks[place]].tobytes() == wanted[~marks[place]].tobytes()
        np.testing.assert_array_equal(held[marks[place]], np.full_like(held, fill)[marks[place]])
        assert bool(reading.reasons[place]) == (event in HOLED)


@pytest.mark.parametrize(
    ("dtype", "declared", "fill"),
    [
        ("i2", None, -(2**15)),
        ("u2", None, 2**16 - 1),
        ("f4", None, np.nan),
        ("i4", -7, -7),
        ("f8", 0, np.nan),
    ],
)
def test_panels_that_can_be_read_are_kept_and_the_others_marked(
    dtype: str, declared: int | None, fill: float, tmp_path: Path
) -> None:
    # An event with one missing module was stored as all missing, and "verified".
    data = frames(dtype)
    hits = filtered(write_run(tmp_path / "run.h5", data, fill=declared))
    assert_kept(hits, data, fill)
    made = read_ledger(open_table(hits, "ledger"), where="hits")
    odd = [*HOLED, *LOST]
    assert (made.decision[odd] == Decision.UNDECIDED).all()
    reason = made.reason & np.uint32(UNSAFE)
    assert reason[[*UNWRITTEN, *LOST]].tolist() == [Reason.DATA_HOLE] * 4
    assert reason[list(DAMAGED)].tolist() == [Reason.READ_ERROR] * 2


@pytest.mark.parametrize("make", [by_modules, lambda f, data: write_run(f / "run.h5", data)])
def test_missing_panels_come_through_verify_archive_and_restore(
    make: Callable[[Path, np.ndarray], Path],
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    people_by_name(monkeypatch)
    data = frames()
    run = make(tmp_path, data)
    hits = filtered(run)
    assert_kept(hits, data, -(2**15))
    status, found, _ = call("verify", "--in", hits, "--against", run, "--serial")
    assert (status, found["ok"], found["mismatched"]) == (0, True, 0)
    assert (found["kept_without_pixels"], found["kept_with_holes"]) == (len(LOST), len(HOLED))
    text = call("verify", "--in", hits, "--against", run, "--serial", json_too=False)[1]
    assert f"equals its source where read; kept with missing panels: {len(HOLED)}" in text
    savings = report_savings([run], hits=[hits], sample=4).to_json()["runs"][0]
    assert (savings["kept_without_pixels"], savings["kept_with_holes"]) == (1, len(HOLED))
    assert any("not safe without the raw run" in note for note in savings["notes"])

    for name in ("tape_a", "tape_b"):
        (tmp_path / name).mkdir()
    pools = [f"--to=a=posix:{tmp_path}/tape_a", f"--to=b=posix:{tmp_path}/tape_b"]
    made = call("archive", "plan", run, "--hits", hits, "--as", "ann", "--serial")[1]
    token = made["plan_id"][:8]
    assert (done := call("archive", "approve", run, "--as", "bob"))[0] == 0, done
    assert call("archive", "execute", run, *pools, "--execute", token)[0] == 0
    assert call("archive", "recall-test", run, *pools)[0] == 0
    wall = wall_clock()
    set_clock(monkeypatch, lambda: wall + 8 * DAY_NS)
    assert call("archive", "release", run, *pools, "--serial", "--execute", token)[0] == 0
    raw = {path.name: path.read_bytes() for path in tmp_path.glob("*.h5")}
    for name in raw:
        (tmp_path / name).unlink()
    out = tmp_path / "events.zarr"
    events = [e for e in range(N_EVENTS) if e not in LOST]
    names = ",".join(f"@{n}" for n in events)
    status, found, _ = call(
        "archive", "restore", run, *pools, "--events", names, "--out", out, "--serial"
    )
    assert (status, found["events"]) == (0, len(events))
    marks = expected_marks(np.array(events))
    np.testing.assert_array_equal(open_table(out)["panel_missing"].values, marks)
    held = open_run(out).source.read(range(len(events))).pixels
    assert held[~marks].tobytes() == data[events][~marks].tobytes()
    assert call("archive", "restore", run, *pools, "--all", "--out", tmp_path / "back")[0] == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "back").iterdir()} == raw


def test_frames_that_are_not_stored_whole_let_no_raw_run_go(call: Call, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.h5", frames())
    hits = filtered(run)
    policy = tmp_path / "policy.toml"
    text = (files("sfxreduce.archive.rules") / "presets" / "laptop.toml").read_text()
    assert 'disposition = "tape-raw"' in text
    policy.write_text(text.replace('"tape-raw"', '"tape-rejects"'))
    plan = ["archive", "plan", run, "--hits", hits, "--policy", policy, "--as", "ann", "--serial"]
    status, found, _ = call(*plan)
    assert status == 3
    (refusal,) = [r for r in found["refusals"] if r["code"] == "R18"]
    assert f"{len(HOLED) + len(LOST)} are there without all of their pixels" in refusal["message"]


@pytest.mark.parametrize("cxi_filter", ["gzip", "blosc"])
def test_a_cxi_file_masks_missing_panels_in_their_events(cxi_filter: str, tmp_path: Path) -> None:
    data = frames()
    run = write_run(tmp_path / "run.h5", data)
    hits = tmp_path / "hits.zarr"
    outputs = Outputs(
        store=hits, cxi=tmp_path / "hits.cxi", cxi_filter=cxi_filter, cxi_without_geometry=True
    )
    filter_run(
        open_run(run),
        settings=FilterSettings(scorer=BrightestPixel()),
        outputs=outputs,
        pool=SerialPool(),
    )
    events = open_table(hits)["source_index"].values
    with h5py.File(tmp_path / "hits.cxi") as file:
        pixels = file["/entry_1/data_1/data"][()].reshape(events.size, *data.shape[1:])
        mask = file["/entry_1/data_1/mask"][()].reshape(events.size, *data.shape[1:])
    for place, event in enumerate(events.tolist()):
        missing = list(HOLED.get(event, ()))
        there = [panel for panel in range(N_PANELS) if panel not in missing]
        if event not in LOST:
            assert pixels[place, there].tobytes() == data[event, there].tobytes()
            assert (mask[place, missing] == PixelFlag.INVALID).all()
            assert not mask[place, there].any()


def test_a_panel_that_every_event_lacks_is_masked_and_events_are_judged(tmp_path: Path) -> None:
    data = frames()
    run = tmp_path / "run.h5"
    with h5py.File(run, "w") as file:
        stored = file.create_dataset(DATA, data.shape, "i2", chunks=(1, 1, *data.shape[2:]))
        stored[:, :2] = data[:, :2]
    hits = filtered(run)
    made = read_ledger(open_table(hits, "ledger"), where="hits")
    seen = data[:, :2].reshape(N_EVENTS, -1).max(axis=1) >= 500
    np.testing.assert_array_equal(made.decision == Decision.HIT, seen)
    assert made.count(Decision.REJECT) == N_EVENTS - int(seen.sum())
    assert "panel_missing" not in open_table(hits)
    kept = open_run(hits)
    assert (kept.detector.mask[2] == PixelFlag.INVALID).all()
    assert not kept.detector.mask[:2].any()
    reading = kept.source.read(range(kept.n_events))
    assert not reading.reasons.any()
    assert reading.pixels[:, :2].tobytes() == data[made.kept, :2].tobytes()
    assert (reading.pixels[:, 2] == -(2**15)).all()
    found = verify_run(hits, against=open_run(run), pool=POOL)
    assert (found.ok, found.kept_with_holes, found.kept_without_pixels) == (True, 0, 0)


def test_a_panel_that_one_of_two_files_lacks_is_a_hole_in_its_events(tmp_path: Path) -> None:
    data = frames()
    for name, panels in (("a.h5", 3), ("b.h5", 2)):
        with h5py.File(tmp_path / name, "w") as file:
            stored = file.create_dataset(DATA, data.shape, "i2", chunks=(1, 1, *data.shape[2:]))
            stored[:, :panels] = data[:, :panels]
    run = open_run([tmp_path / "a.h5", tmp_path / "b.h5"])
    assert not run.detector.mask.any()
    reading = run.source.read(range(2 * N_EVENTS))
    assert reading.reasons.tolist() == [0] * N_EVENTS + [Reason.DATA_HOLE] * N_EVENTS
    assert not reading.lost.any()
    hits = tmp_path / "hits.zarr"
    filter_run(
        run,
        settings=FilterSettings(scorer=BrightestPixel()),
        outputs=Outputs(store=hits),
        pool=POOL,
    )
    made = read_ledger(open_table(hits, "ledger"), where="hits")
    assert (made.decision[N_EVENTS:] == Decision.UNDECIDED).all()
    assert open_table(hits)["panel_missing"].values[-N_EVENTS:].tolist() == [[0, 0, 1]] * N_EVENTS
    found = verify_run(hits, against=run, pool=POOL)
    assert (found.ok, found.kept_with_holes) == (True, N_EVENTS)


def test_missing_panels_come_through_a_run_store_and_a_process_of_its_own(tmp_path: Path) -> None:
    data = frames()
    run = write_run(tmp_path / "run.h5", data)
    ingest_run(open_run(run, untrusted=True), out=tmp_path / "run.zarr", pool=SerialPool())
    assert open_table(tmp_path / "run.zarr")["panel_missing"].values.sum() == sum(
        len(panels) for panels in HOLED.values()
    ) + N_PANELS * len(LOST)
    hits = filtered(tmp_path / "run.zarr")
    assert_kept(hits, data, -(2**15))
    found = verify_run(hits, against=open_run(tmp_path / "run.zarr"), pool=POOL)
    assert (found.ok, found.kept_with_holes) == (True, len(HOLED))


def test_a_chunk_that_is_missing_of_a_camera_of_one_panel_costs_that_chunk_only(
    tmp_path: Path,
) -> None:
    data = frames()[:, 0]
    n_y = data.shape[1]
    with h5py.File(tmp_path / "run.h5", "w") as file:
        chunk = (1, n_y // 2, data.shape[2])
        stored = file.create_dataset(DATA, data.shape, "i2", chunks=chunk, compression="gzip")
        for event in range(N_EVENTS):
            stored[event, : n_y // 2] = data[event, : n_y // 2]
            if event != 4:
                stored[event, n_y // 2 :] = data[event, n_y // 2 :]
    hits = filtered(tmp_path / "run.h5")
    table = open_table(hits)
    place = table["source_index"].values.tolist().index(4)
    assert table["panel_missing"].values[place].tolist() == [True]
    reading = open_run(hits).source.read([place])
    assert reading.pixels[0, : n_y // 2].tobytes() == data[4, : n_y // 2].tobytes()
    assert (reading.pixels[0, n_y // 2 :] == -(2**15)).all()
    found = verify_run(hits, against=open_run(tmp_path / "run.h5"), pool=POOL)
    assert (found.ok, found.kept_with_holes, found.kept_without_pixels) == (True, 1, 0)


@pytest.mark.parametrize("shards", [None, (2, N_PANELS)])
def test_a_damaged_chunk_of_a_zarr_run_of_others_costs_that_chunk_only(
    shards: tuple[int, int] | None, tmp_path: Path
) -> None:
    # One damaged chunk of an event cost all of its pixels.
    data, path = frames(), tmp_path / "run.zarr"
    side = data.shape[2:]
    stored = zarr.create_group(path).create_array(
        "frames",
        shape=data.shape,
        dtype="i2",
        chunks=(1, 1, *side),
        shards=(*shards, *side) if shards else None,
        compressors=zarr.codecs.GzipCodec(),
    )
    stored[:] = data
    if shards:
        file = path / "frames" / "c" / "5" / "0" / "0" / "0"
        raw = bytearray(file.read_bytes())
        raw[8:24] = b"\xff" * 16  # in the first chunk of event 10
        file.write_bytes(raw)
        damaged = {10: 0}
    else:
        damaged = {11: 1, 12: 0}
        for event, panel in damaged.items():
            file = path / "frames" / "c" / str(event) / str(panel) / "0" / "0"
            file.write_bytes(file.read_bytes()[:40])
    hits = filtered(path)
    table = open_table(hits)
    events = table["source_index"].values.tolist()
    held = open_run(hits).source.read(range(len(events))).pixels
    for event, panel in damaged.items():
        place = events.index(event)
        others = [one for one in range(N_PANELS) if one != panel]
        assert table["panel_missing"].values[place].nonzero()[0].tolist() == [panel]
        assert held[place, others].tobytes() == data[event, others].tobytes()
        assert (held[place, panel] == -(2**15)).all()
    found = verify_run(hits, against=open_run(path), pool=POOL)
    assert (found.ok, found.kept_with_holes, found.kept_without_pixels) == (True, len(damaged), 0)
