"""A run is followed while it is written, and its output is that of the whole run, to the byte."""

from __future__ import annotations

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from commands import run as command
from growing_runs import (
    DATA,
    Follower,
    end_of,
    frames_with_peaks,
    store_of,
    tree,
    write_file,
    writing,
)

from sfxreduce.cluster import IN_PROCESS
from sfxreduce.errors import (
    OutputError,
    OutputExists,
    RefusedError,
    RunNotFound,
    SchemaError,
    SourceError,
    UnfinishedRun,
    UsageError,
)
from sfxreduce.io.growing import growing
from sfxreduce.io.open import open_run
from sfxreduce.io.store.provisional import is_provisional
from sfxreduce.io.writers.live import live_hits, live_path
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.follow import FollowEnds, follow_run
from sfxreduce.pipeline.stages.live import MOST_TRIES, Followed, LiveScores
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs, pinned
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.scorers.peaks.finder import PeakScorer

N_EVENTS = 48
SETTINGS = FilterSettings(scorer=PeakScorer(min_peaks=8))
NOW = FollowEnds(until_events=1)


def offline(run: Path, out: Path) -> dict[str, bytes]:
    """Every file of an output that was made without following."""
    done = command("filter", "--in", run, "--out", out, "--scorer", "peaks", "--serial")
    assert done.exit_code == 0, done.output
    return tree(out)


def filtered(run: Path, out: Path) -> dict[str, bytes]:
    """The same in Python, which notes no options."""
    filter_run(open_run(run), out, SETTINGS)
    return tree(out)


def check_followed(follower: Follower, *, n_events: int, n_hits: int) -> None:
    """Every event once, every sure hit once, and all of it marked."""
    noted, live = follower.noted(), follower.live()
    assert len(noted) == n_events
    assert set(noted.values()) == {1}
    assert len(live) == n_hits
    assert set(live.values()) == {1}
    place = live_path(follower.out)
    assert is_provisional(place)
    assert all(is_provisional(store) for store in place.glob("batch-*"))


def check_ended(follower: Follower, process_end: tuple[int, dict, str], folder: Path) -> None:
    """The output is that of the whole run, and nothing else is left."""
    status, told, said = process_end
    assert status == 0, said
    assert tree(follower.out) == offline(follower.run, folder / "offline.zarr")
    left = {path.name for path in follower.out.parent.iterdir() if "hits" in path.name}
    assert left == {follower.out.name}
    assert told["ended_by"] == "until-file"
    assert told["follow"]["events"] == told["events"]
    assert told["follow"]["live_hits"] == told["hits"]
    assert 0 <= told["follow"]["delay_s"]["median"] <= told["follow"]["delay_s"]["max"]
    assert told["follow"]["cost_of_following"] > 0


@pytest.mark.parametrize("kind", ["folder", "store", "swmr"])
def test_a_run_is_followed_through_kills_to_the_same_output(kind: str, tmp_path: Path) -> None:
    frames, stop = frames_with_peaks(N_EVENTS), tmp_path / "stop"
    given = tmp_path / "frames.npy"
    np.save(given, frames)
    run = {"folder": tmp_path / "run", "store": tmp_path / "run.zarr", "swmr": tmp_path / "run.h5"}
    if kind == "folder":
        run[kind].mkdir()
    if kind == "store":
        given = store_of(tmp_path / "whole.zarr", frames, each=8)
    (tmp_path / "out").mkdir()
    follower = Follower(run[kind], tmp_path / "out" / "hits.zarr", ("--until-file", stop))
    rng = np.random.default_rng(len(kind))
    with writing(kind, run[kind], given, rate=6, each=8):
        for seconds in rng.uniform(2.5, 5, 2):
            assert follower.killed_after(seconds)
    with follower.start() as process:
        follower.wait_for(N_EVENTS)
        check_followed(follower, n_events=N_EVENTS, n_hits=N_EVENTS // 3)
        stop.touch()
        check_ended(follower, end_of(process), tmp_path)


class Stamped:
    """Writes down what it is told of a run that grows."""

    def __init__(self) -> None:
        self.events: list[int] = []
        self.waiting: list[int] = []
        self.whole_events = 0

    def followed(self, so_far: Followed, *, waiting: int) -> None:
        self.events.append(so_far.events)
        self.waiting.append(waiting)

    def whole(self, run: Run, so_far: Followed) -> None:
        assert so_far.ended_by
        self.whole_events = run.n_events


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return frames_with_peaks(12)


@pytest.fixture
def run(tmp_path: Path, frames: np.ndarray) -> Path:
    """Folder with two files of six events each."""
    folder = tmp_path / "run"
    folder.mkdir()
    for number in range(2):
        write_file(folder / f"f{number}.h5", frames[6 * number : 6 * number + 6])
    return folder


def hits_beside(out: Path) -> list[str]:
    """Names that have to do with an output."""
    return sorted(path.name for path in out.parent.iterdir() if out.name in path.name)


def test_what_grows_is_told_and_the_report_is_that_of_the_whole(run: Path, tmp_path: Path) -> None:
    told, out = Stamped(), tmp_path / "hits.zarr"
    report, followed = follow_run(run, out, SETTINGS, ends=NOW, watcher=told)
    assert report is not None
    assert (report.events, report.hits, told.whole_events) == (12, 4, 12)
    assert (told.events, told.waiting) == ([12], [0])
    assert (followed.events, followed.batches, followed.live_hits) == (12, 1, 4)
    assert followed.ended_by == "until-events"
    assert f"{followed.cost:.2f} times the processor time" in followed.sentence
    assert hits_beside(out) == ["hits.zarr"]


def test_a_file_that_is_damaged_is_undecided_and_kept_as_without_following(
    run: Path, tmp_path: Path, frames: np.ndarray
) -> None:
    damaged = run / "f0.h5"
    with h5py.File(damaged, "w") as file:
        packing = {"chunks": (1, *frames.shape[1:]), "compression": "gzip"}
        data = file.create_dataset(DATA, data=frames[:6], **packing)
        place = data.id.get_chunk_info(2).byte_offset
    with damaged.open("r+b") as file:
        file.seek(place)
        file.write(b"no deflated data")
    out = tmp_path / "hits.zarr"
    report, followed = follow_run(run, out, SETTINGS, ends=NOW)
    assert report is not None
    assert report.undecided == 1
    assert followed.events == 11
    assert tree(out) == filtered(run, tmp_path / "offline.zarr")
    # One that cannot even be opened stands in nobody's way before the end.
    damaged.write_bytes(b"nothing of the kind")
    told = Stamped()
    with pytest.raises(SourceError, match="expected a whole HDF5 file"):
        follow_run(run, tmp_path / "none.zarr", SETTINGS, ends=NOW, watcher=told)
    assert told.events == [6]
    write_file(damaged, frames[:6])
    report, followed = follow_run(run, tmp_path / "none.zarr", SETTINGS, ends=NOW)
    assert report is not None
    assert followed.events == 12


def test_an_event_that_cannot_be_read_is_tried_again_a_few_times_only(tmp_path: Path) -> None:
    store = store_of(tmp_path / "run.zarr", frames_with_peaks(6), each=3)
    shards = sorted(p for p in (store / "frames" / "c").rglob("*") if p.is_file())
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[:10])
    source = growing(store, open_run)
    with live_hits(tmp_path / "hits.zarr", pins={}, overwrite=False) as live:
        scores = LiveScores(live, SETTINGS, pool=IN_PROCESS)
        left = []
        for _ in range(MOST_TRIES + 1):
            look = source.look()
            assert look.n_events == 6
            left.append(scores.waiting(look))
            scores.take(look)
        assert left == [6, *[6 // len(shards)] * (MOST_TRIES - 1), 0]
        shards[1].write_bytes(whole)
        scores.take(source.look())
        assert scores.so_far().events == 6
        assert scores.so_far().batches == 2


def test_events_that_were_there_are_read_when_the_file_has_grown(
    tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.h5"
    with h5py.File(path, "w") as file:
        shape = frames.shape[1:]
        file.create_dataset(DATA, data=frames[:6], maxshape=(None, *shape), chunks=(4, *shape))
    monkeypatch.setattr("sfxreduce.io.growing.hdf5_writer", lambda _: "SWMR: open for writing")
    source = growing(path, open_run)
    (piece,) = source.look().pieces
    # The last chunk may be half written.
    assert np.flatnonzero(piece.changed_ns).tolist() == [0, 1, 2, 3]
    before = open_run(path)
    with h5py.File(path, "a") as file:
        file[DATA].resize(12, axis=0)
        file[DATA][6:] = frames[6:]
    assert before.source.read([3]).reasons[0] == Reason.UNEXPECTED_FORMAT
    reading = piece.run.source.read([3])
    assert reading.reasons[0] == 0
    assert np.array_equal(reading.pixels[0], frames[3])
    assert source.look().n_events == 8
    monkeypatch.setattr("sfxreduce.io.growing.hdf5_writer", lambda _: "")
    os.utime(path)
    assert source.look().n_events == 12
    assert source.look() is source.look()


def test_frames_of_another_shape_stand_in_nobodys_way(run: Path, tmp_path: Path) -> None:
    with h5py.File(run / "f9.h5", "w") as file:
        file[DATA] = np.zeros((2, 64, 64), np.int16)
    told = Stamped()
    with pytest.raises(SchemaError):
        follow_run(run, tmp_path / "hits.zarr", SETTINGS, ends=NOW, watcher=told)
    assert told.events[-1] >= 12


def test_a_writer_that_stopped_is_refused_at_the_end_and_nothing_is_lost(
    run: Path, tmp_path: Path, frames: np.ndarray
) -> None:
    out = tmp_path / "hits.zarr"
    with h5py.File(run / "f9.h5", "w", libver="latest") as file:
        file.create_dataset(DATA, data=frames[:3], chunks=(1, *frames.shape[1:]))
        file.flush()
        for _ in range(2):
            with pytest.raises(UnfinishedRun, match="open for writing") as refused:
                follow_run(run, out, SETTINGS, ends=NOW)
            assert refused.value.exit_status == 3
            assert not out.exists()
            assert is_provisional(live_path(out))
    report, followed = follow_run(run, out, SETTINGS, ends=NOW)
    assert report is not None
    assert (report.events, followed.events, followed.batches) == (15, 15, 2)
    assert hits_beside(out) == ["hits.zarr"]


def test_a_run_that_has_grown_since_its_output_was_begun_is_begun_anew(
    run: Path, tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "hits.zarr"

    def full(*_: object, **__: object) -> None:
        raise OutputError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("sfxreduce.pipeline.stages.write.write_manifest", full)
        with pytest.raises(OutputError, match="the disk is full"):
            follow_run(run, out, SETTINGS, ends=NOW)
    assert any(name.startswith(".hits.zarr.unfinished-") for name in hits_beside(out))
    write_file(run / "f9.h5", frames[:3])
    report, _ = follow_run(run, out, SETTINGS, ends=NOW)
    assert report is not None
    assert report.events == 15
    assert hits_beside(out) == ["hits.zarr"]


def test_killed_after_the_output_appeared_there_is_only_something_to_remove(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "hits.zarr"
    with monkeypatch.context() as patched:
        patched.setattr("sfxreduce.io.writers.live.LiveHits.remove", lambda _: None)
        follow_run(run, out, SETTINGS, ends=NOW)
    assert len(hits_beside(out)) == 3
    before = tree(out)
    words = ("filter", "--in", run, "--out", out, "--scorer", "peaks", "--serial", "--follow")
    done = command(*words, "--until-events", 1, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["follow"]["events"] == 12
    assert "was complete when this command was cut off" in told["complete"]
    assert tree(out) == before
    assert hits_beside(out) == ["hits.zarr"]
    with pytest.raises(OutputExists, match="already exists"):
        follow_run(run, out, SETTINGS, ends=NOW)


def test_what_is_there_is_replaced_only_if_told_to(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "hits.zarr"
    before = offline(run / "f0.h5", out)
    with pytest.raises(OutputExists, match="already exists"):
        follow_run(run, out, SETTINGS, ends=NOW)
    assert tree(out) == before
    assert hits_beside(out) == ["hits.zarr"]
    report, _ = follow_run(run, Outputs(store=out, overwrite=True), SETTINGS, ends=NOW)
    assert report is not None
    assert tree(out) == filtered(run, tmp_path / "offline.zarr")
    live_path(out).mkdir()
    (live_path(out) / "notes.txt").write_text("mine")
    with pytest.raises(OutputExists, match="something else lies there"):
        follow_run(run, Outputs(store=out, overwrite=True), SETTINGS, ends=NOW)
    assert (live_path(out) / "notes.txt").read_text() == "mine"


def test_other_settings_are_not_mixed_in(run: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "hits.zarr", FilterSettings(scorer=PeakScorer(min_peaks=9))
    with pytest.raises(RunNotFound):
        follow_run(run, out, SETTINGS, ends=NOW, opened=_only_files)
    assert is_provisional(live_path(out))
    with pytest.raises(RefusedError, match=r"scorer.min-peaks changed"):
        follow_run(run, out, other, ends=NOW)
    with (
        live_hits(out, pins=_pins(run, SETTINGS), overwrite=False),
        pytest.raises(OutputError, match="another process is at work on it"),
    ):
        follow_run(run, out, SETTINGS, ends=NOW)
    report, followed = follow_run(run, Outputs(store=out, overwrite=True), other, ends=NOW)
    assert report is not None
    assert followed.batches == 1


def _only_files(path: Path) -> Run:
    """Open the files of a run, and not the run."""
    if path.is_dir():
        raise RunNotFound(f"{path}: is gone")
    return open_run(path)


def _pins(run: Path, settings: FilterSettings) -> dict[str, object]:
    return {"source": str(run.absolute()), **pinned(settings, by_content=True)}


def test_hits_so_far_never_go_to_the_archive(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "hits.zarr"
    with pytest.raises(RunNotFound):
        follow_run(run, out, SETTINGS, ends=NOW, opened=_only_files)
    live = live_path(out)
    (batch,) = live.glob("batch-*")
    for words in (
        (run / "f0.h5", "--hits", live),
        (run / "f0.h5", "--hits", batch),
        (batch, "--hits", out),
    ):
        done = command("archive", "plan", *words, "--as", "ann")
        assert done.exit_code == 3
        assert "expected a final output, found hits of a run that" in str(done.exception)
    # Anybody may look at them.
    opened = open_run(batch)
    assert opened.n_events == 4
    assert opened.columns["source_index"].values.tolist() == [0, 3, 0, 3]


def test_quiet_begins_when_nothing_is_written_any_more(run: Path, tmp_path: Path) -> None:
    ends = FollowEnds(quiet_seconds=0.2, until_file=tmp_path / "never")
    report, followed = follow_run(run, tmp_path / "hits.zarr", SETTINGS, ends=ends)
    assert report is not None
    assert followed.ended_by == "quiet"


def test_a_run_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    for name in ("later.h5", "later.zarr", "later", "later/*.h5"):
        assert growing(tmp_path / name, open_run).look().n_events == 0
    with pytest.raises(RunNotFound, match="there is no folder"):
        growing(tmp_path / "none" / "later.h5", open_run)
    ends = FollowEnds(quiet_seconds=0.1)
    with pytest.raises(RunNotFound, match="no such file or folder"):
        follow_run(tmp_path / "later.h5", tmp_path / "hits.zarr", SETTINGS, ends=ends)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_followed_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.cbf").write_text("")
    with pytest.raises(UsageError, match=r"expected HDF5 files or a run store, found a\.cbf"):
        follow_run(tmp_path / "images", tmp_path / "hits.zarr", SETTINGS, ends=NOW)
    foreign = tmp_path / "foreign.zarr"
    zarr.create_array(foreign, name="frames", shape=(4, 64, 64), chunks=(1, 64, 64), dtype="i2")
    with pytest.raises(UsageError, match="of which nothing says what is there yet"):
        follow_run(foreign, tmp_path / "hits.zarr", SETTINGS, ends=NOW)


def test_the_options_need_one_another(tmp_path: Path) -> None:
    words = ("filter", "--in", tmp_path, "--scorer", "peaks", "--serial")
    one = (*words, "--out", tmp_path / "hits.zarr")
    for more, text in {
        ("--until-file", "x"): "--until-file means nothing without --follow",
        ("--until-events", "3"): "--until-events means nothing without --follow",
        ("--quiet", "3"): "--quiet means nothing without --follow",
        ("--follow",): "nothing says when the run is whole; add --until-file PATH",
        ("--follow", "--quiet", "-1"): "expected more than 0 events or seconds, found -1",
        ("--follow", "--quiet", "1", "--dry-run"): "--dry-run means nothing to --follow",
        ("--follow", "--quiet", "1", "--source", "X"): "--source means nothing to --follow",
    }.items():
        done = command(*one, *more)
        assert (done.exit_code, text in str(done.exception)) == (2, True), more
    done = command(*words, "--out-dir", tmp_path, "--follow", "--quiet", 3)
    assert done.exit_code == 2
    assert "--follow means nothing to --out-dir" in str(done.exception)


def test_an_interrupt_says_how_to_go_on(run: Path, tmp_path: Path) -> None:
    follower = Follower(run, tmp_path / "hits.zarr", ("--until-file", tmp_path / "stop"))
    with follower.start() as process:
        follower.wait_for(12)
        process.send_signal(signal.SIGINT)
        status, told, said = end_of(process)
    assert status == 130
    assert told["exit_status"] == 130
    assert "resumes from here if the same command is given again" in said
    assert "Traceback" not in said
    check_followed(follower, n_events=12, n_hits=4)
    (tmp_path / "stop").touch()
    check_ended(follower, follower.ended(), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_writers_and_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    """Three writers at 30 events a second each; the follower is killed twenty times meanwhile."""
    n_each, stop = 1200, tmp_path / "stop"
    (tmp_path / "run").mkdir()
    (tmp_path / "out").mkdir()
    follower = Follower(tmp_path / "run", tmp_path / "out" / "hits.zarr", ("--until-file", stop))
    rng, n_events = np.random.default_rng(6), 3 * n_each
    with ExitStack() as stack:
        for seed, name in enumerate("abc"):
            given = tmp_path / f"{name}.npy"
            few = frames_with_peaks(60, seed=seed)
            np.save(given, np.concatenate([few] * (n_each // len(few))))
            stack.enter_context(writing(name, tmp_path / "run", given, rate=30, each=40))
        for seconds in rng.uniform(1, 6, 20):
            assert follower.killed_after(seconds)
    with follower.start() as process:
        follower.wait_for(n_events, seconds=600)
        check_followed(follower, n_events=n_events, n_hits=n_events // 3)
        process.send_signal(signal.SIGKILL)
    stop.touch()
    for seconds in rng.uniform(2, 8, 3):  # in the middle of the final filter
        follower.killed_after(seconds)
    end = follower.ended()
    print(json.dumps(end[1]["follow"], indent=1))
    check_ended(follower, end, tmp_path)
