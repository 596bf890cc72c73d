"""Hidden folders that somebody laid beside an output: nothing outside is read, removed, published.

Some are laid there by another user, which takes root; without it they are skipped and counted.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from archived import Call
from commands import run as command
from planted import planted_run

from hostile.test_hostile import picture
from sfxreduce.cluster import SerialPool
from sfxreduce.errors import SfxReduceWarning
from sfxreduce.io.files.durable import hidden_folder, hidden_folders
from sfxreduce.io.files.journal import Entry, chain_line, open_journal
from sfxreduce.io.writers.publish import JOURNAL
from sfxreduce.io.writers.resume import unfinished_folder
from sfxreduce.pipeline.ingest import ingest_run

NOBODY = 65534
STOPPED = "sfxreduce.pipeline.stages.write.write_manifest"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A folder with a run, an output to be, and what must not be touched."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "hits.zarr"

    @property
    def victim(self) -> Path:
        """A folder that somebody cares for, outside."""
        return self.folder / "victim"

    def name(self, rng: random.Random) -> Path:
        """A hidden folder's name, as today's or as an older version's."""
        token = "".join(rng.choices("0123456789abcdef", k=16))
        return self.folder / rng.choice([f".hits.zarr.unfinished-{token}", ".hits.zarr.unfinished"])

    @property
    def words(self) -> list[object]:
        """The command whose output it is."""
        return [
            "filter", "--in", self.folder / "run.zarr", "--out", self.out, "--scorer", "peaks",
            "--min-peaks", 1, "--serial",
        ]  # fmt: skip

    def filter(self, call: Call) -> tuple[int, str]:
        status, _, err = call(*self.words)
        return status, err

    def cut_off(self, patches: pytest.MonkeyPatch) -> None:
        """Begin it, and be interrupted when all but the manifest is there."""

        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with patches.context() as patched:
            patched.setattr(STOPPED, stop)
            assert command(*self.words).exit_code == 130


def journal(folder: Path, *bodies: dict[str, object]) -> None:
    """A journal whose chain holds, whoever wrote it."""
    data, last = b"", None
    for body in bodies:
        line, last = chain_line(body, after=last)
        data += line
    (folder / JOURNAL).write_bytes(data)
    if isinstance(last, Entry):
        (folder / f"{JOURNAL}.head").write_text(last.sha256)


def link(scene: Scene, rng: random.Random) -> Path:
    """A link to a folder that is not ours to touch."""
    path = scene.name(rng)
    path.symlink_to(scene.victim)
    return path


def link_inside(scene: Scene, rng: random.Random) -> Path:
    """A folder of this user whose parts are links."""
    path = scene.name(rng)
    path.mkdir(mode=0o700)
    for part in rng.sample(["output", "shards", "files", JOURNAL], 2):
        (path / part).symlink_to(scene.victim / "precious" if part == JOURNAL else scene.victim)
    return path


def file(scene: Scene, rng: random.Random) -> Path:
    """A file, or a pipe."""
    path = scene.name(rng)
    path.write_text("not a folder") if rng.random() < 0.5 else os.mkfifo(path)
    return path


def foreign(scene: Scene, rng: random.Random) -> Path:
    """A folder of another user, with a journal that would publish a store of theirs."""
    path = forged(scene, rng)
    for each in [path, *path.rglob("*")]:
        os.chown(each, NOBODY, NOBODY, follow_symlinks=False)
    return path


def forged(scene: Scene, rng: random.Random) -> Path:
    """A folder of this user with a journal that names folders elsewhere."""
    path = scene.name(rng)
    path.mkdir(mode=0o700)
    (path / "output").mkdir()
    (path / "output" / "theirs").write_text("a foreign store")
    inode = (path / "output").stat().st_ino
    name = rng.choice(["victim", "../victim", str(scene.victim), "hits.zarr", "../../victim"])
    appear = rng.choice([
        {"appear": [[name, inode, True]]},
        {"appear": [["hits.zarr", inode, True], [name, inode, True]]},
        {"appear": [[str(path / "output"), str(scene.out), str(scene.victim)]]},
        {"appear": "victim"},
    ])  # fmt: skip
    kind = rng.choice(["filter", "staged", "beside", ""])
    journal(path, {"kind": kind, "begin": {"threshold": 1}}, appear)
    return path


def open_to_all(scene: Scene, rng: random.Random) -> Path:
    """A folder of this user that others can write to."""
    path = forged(scene, rng)
    path.chmod(0o777)
    return path


def stray(scene: Scene, rng: random.Random) -> Path:
    """A folder of this user without a journal, and with something in it."""
    path = scene.name(rng)
    path.mkdir(mode=0o700)
    (path / rng.choice(["notes", "output", "shards"])).mkdir()
    return path


PLANTS: list[Callable[[Scene, random.Random], Path]] = [
    link, link_inside, file, foreign, forged, open_to_all, stray,
]  # fmt: skip


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    made = Scene(folder=tmp_path)
    ingest_run(planted_run(n_events=12), out=tmp_path / "run.zarr", pool=SerialPool())
    made.victim.mkdir()
    (made.victim / "precious").write_text("do not touch")
    (made.victim / "zarr.json").write_text(json.dumps({"attributes": {"schema": "x"}}))
    return made


def trials(scene: Scene, call: Call, n_trials: int) -> dict[str, int]:
    """Filter beside planted folders, each kind in turn; return how often each was met."""
    met: dict[str, int] = {}
    outside = picture(scene.victim)
    assert scene.filter(call)[0] == 0
    expected = picture(scene.out)
    shutil.rmtree(scene.out)
    rng = random.Random(7)
    for number in range(n_trials):
        plant = PLANTS[number % len(PLANTS)]
        if plant is foreign and os.geteuid():
            continue
        path = plant(scene, rng)
        status, err = scene.filter(call)
        where = (plant.__name__, path.name, err)
        assert "Traceback" not in err, where
        assert picture(scene.victim) == outside, where
        if status == 0:
            assert picture(scene.out) == expected, where
            shutil.rmtree(scene.out)
        else:
            # A journal that was changed, or that another command began, is refused in one line.
            assert not scene.out.exists(), where
            assert plant in (forged, link_inside), where
            assert len([line for line in err.splitlines() if line.startswith("sfxreduce: ")]) == 1
        kept = os.path.lexists(path)
        assert kept or plant in (forged, link_inside), where
        call("clean", scene.folder)
        assert picture(scene.victim) == outside, where
        if kept and plant in (link, foreign, open_to_all):
            assert os.path.lexists(path), where
            assert "unfinished-" not in path.name or "it is left alone" in err, where
        if os.path.lexists(path):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for left in scene.folder.glob(".hits.zarr.unfinished*"):
            shutil.rmtree(left)
        met[plant.__name__] = met.get(plant.__name__, 0) + 1
    return met


@pytest.mark.timeout(900)
def test_nothing_that_was_planted_is_believed(scene: Scene, call: Call) -> None:
    # A link there had its target emptied, and a journal could remove any folder it named.
    met = trials(scene, call, 60)
    assert sum(met.values()) == 60 - (0 if not os.geteuid() else met.get("foreign", 0))
    assert len(met) >= len(PLANTS) - 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_that_was_planted_is_believed_three_hundred_times(scene: Scene, call: Call) -> None:
    assert sum(trials(scene, call, 300).values()) >= 300 - 300 // len(PLANTS) - 1


def test_a_hidden_folder_is_open_to_its_owner_alone(
    scene: Scene, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.cut_off(monkeypatch)
    (folder,) = hidden_folders(scene.out)
    assert folder.stat().st_mode & 0o777 == 0o700
    token = folder.name.removeprefix(".hits.zarr.unfinished-")
    assert len(token) == 16
    assert set(token) <= set("0123456789abcdef")
    assert scene.filter(call)[0] == 0
    assert not hidden_folders(scene.out)


def test_of_two_unfinished_outputs_the_newest_is_gone_on_with(
    scene: Scene, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.cut_off(monkeypatch)
    newest = unfinished_folder(scene.out)
    assert newest is not None
    older = newest.with_name(f".hits.zarr.unfinished-{secrets.token_hex(8)}")
    shutil.copytree(newest, older)
    os.utime(older / JOURNAL, (1, 1))
    with pytest.warns(SfxReduceWarning, match="older unfinished output"):
        assert unfinished_folder(scene.out) == newest
    status, err = scene.filter(call)
    assert status == 0
    assert "is an older unfinished output" in err
    assert scene.out.exists()
    assert hidden_folders(scene.out) == [older]
    status, done, _ = call("clean", scene.out, "--dry-run")
    assert [left["path"] for left in done["leftovers"]] == [str(older)]
    assert older.exists()
    status, done, _ = call("clean", scene.out)
    assert (status, done["leftovers"][0]["removed"]) == (0, True)
    assert not older.exists()


def test_what_is_being_worked_on_is_not_cleaned(scene: Scene, call: Call) -> None:
    folder = hidden_folder(scene.out)
    with open_journal(folder / JOURNAL) as held:
        held.append({"kind": "staged", "begin": {}})
        for words in (["clean", scene.out], ["clean", scene.out, "--dry-run"]):
            _, done, _ = call(*words)
            assert "another process is at work" in done["leftovers"][0]["kept_because"]
        assert folder.exists()
    call("clean", scene.out)
    assert not folder.exists()
