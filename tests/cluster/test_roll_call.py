"""No worker gets a task before it has shown what it is made of and what it sees."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from commands import run as command
from elsewhere import scheduler_elsewhere
from planted import BrightestPixel, planted_run

import sfxreduce
from sfxreduce.cluster import SerialPool, open_pool
from sfxreduce.cluster.dask_pool import DaskPool
from sfxreduce.cluster.pool import Needs
from sfxreduce.errors import RefusedError
from sfxreduce.io.chunks.layout import choose_layout
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import read_manifest
from sfxreduce.io.store.manifest import made_here
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
from sfxreduce.run.detector import Detector
from sfxreduce.scorers.cnn.folder import default_model

N_EVENTS = 128
PACKAGE = Path(sfxreduce.__file__).parent


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@dataclass(frozen=True)
class Site:
    """A scheduler with one good worker, and a run on four shards."""

    root: Path
    address: str

    @property
    def run(self) -> Path:
        return self.root / "data" / "run.zarr"

    @property
    def model(self) -> Path:
        return self.root / "models" / "model"

    @property
    def out(self) -> Path:
        return self.root / "results" / "hits.zarr"

    def words(self, *more: object) -> list[object]:
        return ["filter", "--in", self.run, "--out", self.out, "--overwrite", *more]


def shards_of(store: Path) -> list[Path]:
    return sorted(path for path in (store / "frames" / "c").rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("site")
    with scheduler_elsewhere(root) as (_, address):
        here = Site(root, address)
        here.run.parent.mkdir()
        here.out.parent.mkdir()
        planted = planted_run(n_events=N_EVENTS)
        shard_bytes = N_EVENTS // 4 * planted.source.n_bytes // N_EVENTS
        with pytest.MonkeyPatch.context() as patched:
            small = partial(choose_layout, target_shard_bytes=shard_bytes)
            patched.setattr("sfxreduce.pipeline.ingest.choose_layout", small)
            ingest_run(planted, out=here.run, pool=SerialPool())
        assert len(shards_of(here.run)) == 4
        shutil.copytree(default_model(), here.model)
        yield here


@dataclass(frozen=True)
class Bad:
    """A worker that is not to be trusted, and what is said of it."""

    said: str
    program: str = ""
    options: tuple[str, ...] = ()
    mounts: Callable[[Site, Path], str] | None = None
    preload: str = ""

    @contextmanager
    def at(self, site: Site, folder: Path) -> Iterator[None]:
        """Start it, and wait until the scheduler knows it."""
        if self.mounts and os.geteuid() != 0:
            pytest.skip("only root can hide a folder from a process")
        words = [str(Path(sys.executable).with_name("dask")), "worker", site.address]
        words += ["--nthreads", "1", "--no-dashboard", "--name", "bad", *self.options]
        words += ["--host", "127.0.0.1", "--local-directory", str(folder)]
        path = os.pathsep.join(filter(None, sys.path))
        if self.program:
            shutil.copytree(PACKAGE, folder / "sfxreduce")
            changed = folder / "sfxreduce" / self.program
            changed.write_text(changed.read_text() + "\n# another line\n")
            path = f"{folder}{os.pathsep}{path}"
        if self.preload:
            (folder / "preloaded.py").write_text(self.preload)
            words += ["--preload", str(folder / "preloaded.py")]
        if self.mounts:
            mounts = self.mounts(site, folder)
            words = ["unshare", "-m", "sh", "-c", f"{mounts} && exec {shlex.join(words)}"]
        worker = psutil.Popen(
            words, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path}, cwd=folder
        )
        try:
            yield
        finally:
            for one in [*worker.children(recursive=True), worker]:
                with suppress(psutil.Error):
                    one.kill()
            worker.wait()


def hidden(folder: Callable[[Site], Path]) -> Callable[[Site, Path], str]:
    return lambda site, _: f"mount -t tmpfs none {folder(site)}"


def one_shard(site: Site, folder: Path) -> str:
    """The run with its first shard only, over the run."""
    part = folder / "part.zarr"
    shutil.copytree(site.run, part)
    for shard in shards_of(part)[1:]:
        shard.unlink()
    for path in part.rglob("*"):
        facts = (site.run / path.relative_to(part)).stat()
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    return f"mount --bind {part} {site.run}"


OTHER_DASK = """
import dask
def dask_setup(worker):
    dask.__version__ = "2024.1.0"
"""

BAD = {
    "code": Bad("expected the code of sfxreduce", program="scorers/peaks/finder.py"),
    "run": Bad("expected to read", mounts=hidden(lambda site: site.run.parent)),
    "shards": Bad("expected to read", mounts=one_shard),
    "output": Bad("where the output is made", mounts=hidden(lambda site: site.out.parent)),
    "model": Bad("expected the model", mounts=hidden(lambda site: site.model.parent)),
    "memory": Bad("expected a memory limit of at least", options=("--memory-limit", "300MB")),
    "dask": Bad("expected dask ", preload=OTHER_DASK),
}


def wait_for_workers(address: str, n: int) -> None:
    from distributed import Client

    with Client(address) as client:
        client.wait_for_workers(n, timeout=60)
        # The one that a test before this one killed may not be missed yet.
        deadline = time.monotonic() + 60
        while len(client.scheduler_info(n_workers=-1)["workers"]) != n:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize("kind", BAD)
def test_a_worker_that_is_not_as_we_are_is_refused_and_can_be_done_without(
    kind: str, site: Site, tmp_path: Path
) -> None:
    bad = BAD[kind]
    judge = ["--model", site.model] if kind == "model" else ["--scorer", "peaks"]
    assert command(*site.words("--serial", *judge)).exit_code == 0
    expected = tree(site.out)
    with bad.at(site, tmp_path):
        wait_for_workers(site.address, 2)
        elsewhere = site.words("--scheduler", site.address, *judge)
        refused = command(*elsewhere)
        assert refused.exit_code == 3
        line = str(refused.exception)
        assert line.startswith("worker bad at tcp://127.0.0.1:")
        assert bad.said in line
        assert "found" in line
        assert "; " in line
        assert "\n" not in line
        assert tree(site.out) == expected
        done = command(*elsewhere, "--drop-bad-workers", "--json")
        assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    workers = {worker["name"]: worker for worker in told["cluster"]["workers"]}
    assert workers["bad"]["state"] == "dropped"
    assert bad.said in workers["bad"]["why"]
    assert [w["state"] for w in told["cluster"]["workers"]].count("admitted") == 1
    assert tree(site.out) == expected
    # Nothing is left of what was exchanged.
    assert [path.name for path in site.out.parent.iterdir()] == [site.out.name]


@dataclass(frozen=True)
class Held(BrightestPixel):
    """A scorer that says when it is at work, and waits until it may go on."""

    folder: str = ""

    def __call__(self, pixels: np.ndarray, detector: Detector) -> np.ndarray:
        Path(self.folder, "began").touch()
        while not Path(self.folder, "go").exists():
            time.sleep(0.05)
        return super().__call__(pixels, detector)


def joined_while_at_work(kind: str, site: Site, folder: Path, *, drop: bool) -> DaskPool:
    """Filter a run on the good worker, and let another one join as soon as it is at work."""
    out = Outputs(store=site.out, overwrite=True)
    settings = FilterSettings(scorer=Held(folder=str(folder)))
    with open_pool(scheduler=site.address, drop_bad_workers=drop) as pool:
        assert isinstance(pool, DaskPool)

        def join() -> None:
            while not (folder / "began").exists():
                time.sleep(0.05)
            with BAD[kind].at(site, folder):
                deadline = time.monotonic() + 60
                while time.monotonic() < deadline:
                    if any(w["name"] == "bad" for w in pool.facts["cluster"]["workers"]):
                        break
                    time.sleep(0.05)
                (folder / "go").touch()
                finished.wait(60)

        finished = threading.Event()
        joining = threading.Thread(target=join)
        joining.start()
        try:
            filter_run(open_run(site.run), out, settings, pool=pool)
        finally:
            finished.set()
            joining.join()
    return pool


LATER = ("run", "shards", "output", "memory", "dask")
JOINING = ["code", *(pytest.param(kind, marks=pytest.mark.slow) for kind in LATER)]


@pytest.mark.parametrize("kind", JOINING)
def test_a_worker_that_joins_is_asked_before_it_is_given_anything(
    kind: str, site: Site, tmp_path: Path
) -> None:
    wait_for_workers(site.address, 1)
    (tmp_path / "go").touch()
    settings = FilterSettings(scorer=Held(folder=str(tmp_path)))
    out = Outputs(store=site.out, overwrite=True)
    filter_run(open_run(site.run), out, settings, pool=SerialPool())
    expected = tree(site.out)
    for drop in (False, True):
        folder = tmp_path / str(drop)
        folder.mkdir()
        wait_for_workers(site.address, 1)
        if not drop:
            with pytest.raises(RefusedError, match=r"^worker bad at .*" + BAD[kind].said):
                joined_while_at_work(kind, site, folder, drop=False)
            continue
        joined_while_at_work(kind, site, folder, drop=True)
        assert tree(site.out) == expected


def where(_: int) -> int:
    """Process that does a task."""
    time.sleep(0.05)
    return os.getpid()


def test_a_worker_that_comes_back_at_its_address_is_asked_again(site: Site, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        Bad("", options=("--worker-port", str(port))).at(site, tmp_path),
        open_pool(scheduler=site.address) as pool,
    ):
        assert isinstance(pool, DaskPool)
        wait_for_workers(site.address, 2)

        def its_process() -> int:
            workers = pool.facts["cluster"]["workers"]
            (pid,) = (worker["pid"] for worker in workers if worker["name"] == "bad")
            return int(pid)

        with pool.needing(Needs()):
            before = its_process()
            psutil.Process(before).kill()
            deadline = time.monotonic() + 60
            while its_process() == before:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert its_process() in {pid for _, pid in pool.map("where", where, range(40))}


MUTE = """
import os, pathlib, time
while str(os.getpid()) == pathlib.Path(__file__).with_name("mute").read_text():
    time.sleep(0.1)
"""


def test_a_worker_that_does_not_answer_again_keeps_no_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mutes.py").write_text(MUTE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sfxreduce.cluster.roll_call.START_SECONDS", 5)
    lines: list[str] = []
    with open_pool(n_workers=2, drop_bad_workers=True, tell=lines.append) as pool:
        mute = next(pid for _, pid in pool.map("where", where, range(4)))
        (tmp_path / "mute").write_text(str(mute))
        with pool.needing(Needs(modules=("mutes",))):
            assert mute not in {pid for _, pid in pool.map("where", where, range(40))}
    assert "expected an answer to the roll call within 5 seconds, found none" in lines[0]


def test_the_manifest_says_what_made_the_output(site: Site) -> None:
    assert command(*site.words("--serial", "--scorer", "peaks")).exit_code == 0
    [made_by] = read_manifest(site.out).made_by
    assert made_by == made_here()
    assert made_by.versions["numpy"] == np.__version__
