"""A run whose frames lie in other files than its own is archived, released and restored whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from archived import Call, snapshot
from beamtimes import DAY_NS, POOL, set_clock
from planted import ArrayFrames, BrightestPixel, planted_run

from sfxreduce.archive.evidence.subject import wall_clock
from sfxreduce.archive.savings.report import report_savings
from sfxreduce.archive.savings.values import Part
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs

N_EVENTS = 40
DATA = "/entry/data/data"


def frames() -> np.ndarray:
    source = planted_run(n_events=N_EVENTS).source
    assert isinstance(source, ArrayFrames)
    return source.frames


def write_raw(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=data, chunks=(1, *data.shape[1:]))


def by_external_link(folder: Path) -> Path:
    """A master file that names its frames in another file, which has them under another name."""
    write_raw(folder / "raw" / "frames.h5", frames())
    with h5py.File(folder / "raw" / "frames.h5", "a") as file:
        file["alias"] = h5py.SoftLink("/raw")
    with h5py.File(folder / "run.h5", "w") as file:
        file[DATA] = h5py.ExternalLink("raw/frames.h5", "/alias")
    return folder / "run.h5"


def by_virtual_sources(folder: Path) -> Path:
    """A virtual dataset over two files, one of which leads on to a third."""
    half = N_EVENTS // 2
    write_raw(folder / "raw" / "a.h5", frames()[:half])
    write_raw(folder / "raw" / "c.h5", frames()[half:])
    with h5py.File(folder / "raw" / "b.h5", "w") as file:
        file["raw"] = h5py.ExternalLink("c.h5", "/raw")
    shape = frames().shape
    layout = h5py.VirtualLayout(shape, frames().dtype)
    for part, name in ((slice(0, half), "raw/a.h5"), (slice(half, N_EVENTS), "raw/b.h5")):
        layout[part] = h5py.VirtualSource(name, "raw", (half, *shape[1:]))
    with h5py.File(folder / "run.h5", "w") as file:
        file.create_virtual_dataset(DATA, layout)
    return folder / "run.h5"


def filtered(run: Path) -> Path:
    hits = run.with_name("hits.zarr")
    settings = FilterSettings(scorer=BrightestPixel())
    filter_run(open_run(run), settings=settings, outputs=Outputs(store=hits), pool=POOL)
    for name in ("tape_a", "tape_b"):
        (run.parent / name).mkdir()
    return hits


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("make", [by_external_link, by_virtual_sources])
def test_every_file_that_frames_come_from_is_archived_released_and_restored(
    make: Callable[[Path], Path], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a master file three kilobytes were pinned, and the ticket said that all could be restored.
    folder = tmp_path / "beamtime"
    folder.mkdir()
    run = make(folder)
    whole = files_below(folder)
    hits = filtered(run)
    before = snapshot(folder / "raw")
    pools = [f"--to=a=posix:{folder}/tape_a", f"--to=b=posix:{folder}/tape_b"]
    status, made, _ = call("archive", "plan", run, "--hits", hits, "--as", "ann", "--serial")
    assert (status, made["plans"][0]["archive_files"]) == (0, len(whole))
    assert made["plans"][0]["release_bytes"] == sum(map(len, whole.values()))
    token = made["plan_id"][:8]
    assert call("archive", "approve", run, "--as", "bob")[0] == 0
    assert call("archive", "execute", run, *pools, "--execute", token)[0] == 0
    assert call("archive", "recall-test", run, *pools)[0] == 0
    wall = wall_clock()
    set_clock(monkeypatch, lambda: wall + 8 * DAY_NS)
    status, released, _ = call("archive", "release", run, *pools, "--serial", "--execute", token)
    assert (status, released["state"]) == (0, "RELEASE_TICKETED")
    ticket = json.loads(Path(released["ticket"]).read_text())
    assert {file["path"] for file in ticket["files"]} == set(whole)
    assert snapshot(folder / "raw") == before
    savings = report_savings([run], hits=[hits], sample=10)
    raw = savings.runs[0].parts[Part.RAW]
    assert (raw.files, raw.bytes) == (len(whole), sum(map(len, whole.values())))

    for file in ticket["files"]:
        (folder / file["path"]).unlink()
    assert report_savings([run], hits=[hits]).runs[0].freed.realised == ticket["bytes"]
    out = tmp_path / "events.zarr"
    names = ",".join(f"@{n}" for n in range(N_EVENTS))
    status, found, _ = call(
        "archive", "restore", run, *pools, "--events", names, "--out", out, "--serial"
    )
    assert status == 0, found["error"]
    assert found["events"] == N_EVENTS
    assert found["from_archive"] > 0
    restored = open_run(out).source.read(range(N_EVENTS))
    assert not restored.reasons.any()
    assert restored.pixels.tobytes() == frames().tobytes()
    assert call("archive", "restore", run, *pools, "--all", "--out", tmp_path / "back")[0] == 0
    assert files_below(tmp_path / "back") == whole


@pytest.mark.parametrize("data_path", ["/mine/raw", "/shot-{tag}/data"])
def test_events_of_a_run_that_was_read_by_a_path_come_back(
    data_path: str, call: Call, tmp_path: Path
) -> None:
    """The archive knew nothing of the option, and brought back none of them."""
    run, hits = tmp_path / "run.h5", tmp_path / "hits.zarr"
    with h5py.File(run, "w") as file:
        if data_path == "/mine/raw":
            file[data_path] = frames()
        else:
            for event, frame in enumerate(frames()):
                file[f"shot-{event}/data"] = frame
    settings = FilterSettings(scorer=BrightestPixel())
    opened = open_run(run, data_path=data_path)
    filter_run(opened, settings=settings, outputs=Outputs(store=hits), pool=POOL)
    for name in ("tape_a", "tape_b"):
        (tmp_path / name).mkdir()
    pools = [f"--to=a=posix:{tmp_path}/tape_a", f"--to=b=posix:{tmp_path}/tape_b"]
    status, made, _ = call("archive", "plan", run, "--hits", hits, "--as", "ann", "--serial",
                           "--data-path", data_path)  # fmt: skip
    assert status == 0
    assert call("archive", "approve", run, "--as", "bob")[0] == 0
    token = made["plan_id"][:8]
    assert call("archive", "execute", run, *pools, "--execute", token)[0] == 0
    for number, place in enumerate(("from_run", "from_archive")):
        out = tmp_path / f"{number}.zarr"
        status, found, _ = call("archive", "restore", run, *pools, "--events", "@1,@20", "--out",
                                out, "--serial")  # fmt: skip
        assert (status, found[place]) == (0, 2), found
        back = open_run(out).source.read([0, 1]).pixels
        assert back.tobytes() == frames()[[1, 20]].tobytes()
        run.unlink(missing_ok=True)


def test_a_folder_of_single_files_is_to_be_stored_first(call: Call, tmp_path: Path) -> None:
    folder, hits = tmp_path / "images", tmp_path / "hits.zarr"
    folder.mkdir()
    for event, frame in enumerate(frames()[:12]):
        with h5py.File(folder / f"{event}.h5", "w") as file:
            file["image"] = frame
    opened = open_run(folder, data_path="/image")
    settings = FilterSettings(scorer=BrightestPixel())
    filter_run(opened, settings=settings, outputs=Outputs(store=hits), pool=POOL)
    status, found, _ = call("archive", "plan", folder, "--hits", hits, "--as", "ann", "--serial",
                            "--data-path", "/image")  # fmt: skip
    assert status == 2
    assert "store them with 'sfxreduce ingest'" in found["error"]


@pytest.mark.parametrize("how", ["append", "touch", "remove", "swap"])
def test_a_change_of_a_file_that_a_run_leads_to_is_a_change_of_the_run(
    how: str, call: Call, tmp_path: Path
) -> None:
    run = by_external_link(tmp_path)
    hits = filtered(run)
    status, made, _ = call("archive", "plan", run, "--hits", hits, "--as", "ann", "--serial")
    assert status == 0
    assert call("archive", "approve", run, "--as", "bob")[0] == 0
    led_to = tmp_path / "raw" / "frames.h5"
    if how == "append":
        led_to.write_bytes(led_to.read_bytes() + b"x")
    elif how == "touch":
        led_to.touch()
    elif how == "remove":
        led_to.unlink()
    else:
        copy = tmp_path / "copy.h5"
        copy.write_bytes(led_to.read_bytes())
        copy.replace(led_to)
    pools = [f"--to=a=posix:{tmp_path}/tape_a", f"--to=b=posix:{tmp_path}/tape_b"]
    status, found, _ = call("archive", "execute", run, *pools, "--execute", made["plan_id"][:8])
    assert (status, {refusal["code"] for refusal in found["refusals"]}) == (3, {"R03"})


def _missing(folder: Path) -> Path:
    run = by_virtual_sources(folder)
    (folder / "raw" / "c.h5").unlink()
    return run


def _by_a_path(target: Callable[[Path], str]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        run = by_external_link(folder)
        write_raw(folder.parent / "outside.h5", frames())
        (folder / "link.h5").symlink_to("raw/frames.h5")
        with h5py.File(run, "w") as file:
            file[DATA] = h5py.ExternalLink(target(folder), "/raw")
        return run

    return make


def _a_link_itself(folder: Path) -> Path:
    run = by_external_link(folder)
    run.rename(folder / "real.h5")
    run.symlink_to("real.h5")
    return run


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_missing, "which is not there"),
        (_by_a_path(lambda folder: "../outside.h5"), "outside the folder"),
        (_by_a_path(lambda folder: "link.h5"), "over a symbolic link"),
        (_by_a_path(lambda folder: str(folder / "raw" / "frames.h5")), "an absolute path"),
        (_a_link_itself, "found a symbolic link"),
    ],
)
def test_a_run_that_a_copy_would_not_hold_whole_is_refused(
    make: Callable[[Path], Path], says: str, call: Call, tmp_path: Path
) -> None:
    folder = tmp_path / "beamtime"
    folder.mkdir()
    run = make(folder)
    hits = tmp_path / "hits.zarr"
    settings = FilterSettings(scorer=BrightestPixel())
    readable = open_run(run, roots=[tmp_path])
    filter_run(readable, settings=settings, outputs=Outputs(store=hits), pool=POOL)
    status, found, _ = call("archive", "plan", run, "--hits", hits, "--as", "ann", "--serial")
    assert (status, {refusal["code"] for refusal in found["refusals"]}) == (3, {"R23"})
    assert any(says in refusal["message"] for refusal in found["refusals"])
    assert not (folder / "run.h5.evidence" / "plan.json").exists()
