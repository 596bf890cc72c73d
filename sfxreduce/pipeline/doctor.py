"""``sfxreduce doctor``: what a filter run will need, tried one by one before it is needed."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
from packaging.requirements import Requirement

import sfxreduce as package
from sfxreduce.cluster import SerialPool
from sfxreduce.cluster.local import visible_cards
from sfxreduce.errors import SfxReduceError
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
from sfxreduce.pipeline.verify.output import verify_run
from sfxreduce.report.report import counted
from sfxreduce.run.reasons import Reason
from sfxreduce.scorers.cnn.folder import default_model, read_model
from sfxreduce.scorers.cnn.scorer import CnnScorer, cuda_available
from sfxreduce.simulate.run import simulate_run

__all__ = ["Diagnosis", "doctor_run"]

LEAST_FREE_BYTES = 1_000_000_000
"""Below which a disk counts as full: a shard of a reduced store and its copy while it is staged
take up to that."""

CODECS = ("blosc", "bshuf", "lz4", "zstd")
"""Filters of HDF5 that frames of facilities are packed with, by the names of hdf5plugin."""

FAULTS = (SfxReduceError, OSError, ImportError, RuntimeError, ValueError)
"""What a check may end with; it is a finding then, not an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What came of one check.

    Parameters
    ----------
    fact : str
        What is there.
    problem : str
        What is wrong and what to do about it; empty if nothing is.
    """

    name: str
    fact: str = ""
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return {**asdict(self), "ok": not self.problem}


def doctor_run(
    store: Path | None = None,
    *,
    out: Path = Path(),
    ports: Sequence[int] = (),
    model: Path | None = None,
) -> list[Diagnosis]:
    """Try what a filter run needs: versions, GPU, codecs, caches, ports, disk, model, a small run.

    Parameters
    ----------
    store : Path, optional
        A run to be opened, whose first frame is read.
    out : Path
        Folder that outputs will go to.
    ports : sequence of int
        Ports of 127.0.0.1 that have to be free.
    model : Path, optional
        Model folder; the shipped one if not given.

    Returns
    -------
    list of Diagnosis
        One of each check; no fault is raised.
    """
    folder = model or default_model()
    checks: dict[str, Callable[[], str]] = {
        "versions": _versions,
        "torch": _torch,
        "codecs": _codecs,
        "cache of numba": _numba_cache,
        "cache of matplotlib": _matplotlib_cache,
        "ports": partial(_ports, ports),
        "disk": partial(_disk, out),
        "model": partial(_model, folder),
    }
    if store is not None:
        checks["run"] = partial(_run, store)
    checks["self-test"] = partial(_self_test, folder)
    return [_tried(name, check) for name, check in checks.items()]


def _tried(name: str, check: Callable[[], str]) -> Diagnosis:
    try:
        return Diagnosis(name=name, fact=check())
    except FAULTS as error:
        return Diagnosis(name=name, problem=" ".join(str(error).split()) or type(error).__name__)


def _versions() -> str:
    """Python and this package; every requirement is there in a version that was allowed."""
    wrong = []
    for line in requires("sfxreduce") or ():
        need = Requirement(line)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(need.name)
        except PackageNotFoundError:
            wrong.append(f"{need.name} is missing")
            continue
        if not need.specifier.contains(installed, prereleases=True):
            wrong.append(f"{need.name} {installed} is not {need.specifier}")
    if wrong:
        raise ImportError(f"{'; '.join(wrong)}: install with 'pip install -c constraints.txt .'")
    return f"sfxreduce {version('sfxreduce')}, Python {platform.python_version()}"


def _torch() -> str:
    """The build of torch fits the graphics cards of the machine."""
    build, cards = version("torch"), visible_cards()
    if cards and not cuda_available():
        found = "a build without CUDA" if "+cpu" in build else "one whose CUDA does not start"
        raise ImportError(
            f"expected a torch for the {len(cards)} graphics cards here, found {build}, {found}: "
            "install the build for the driver's CUDA, or pass --device cpu"
        )
    return f"{build}, {len(cards)} graphics cards"


def _codecs() -> str:
    numbers = hdf5plugin.FILTERS
    missing = [name for name in CODECS if not h5py.h5z.filter_avail(numbers[name])]
    if missing:
        raise ImportError(
            f"HDF5 has no filter {', '.join(missing)}: frames packed with it cannot be read; "
            "reinstall hdf5plugin"
        )
    return ", ".join(CODECS)


def _numba_cache() -> str:
    """One of the places where Numba keeps machine code can be written to."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    beside = Path(package.__file__).with_name("__pycache__")
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numba"
    places = [Path(named)] if named else [beside, usual]
    for place in places:
        with suppress(OSError):
            _write_into(place)
            return str(place)
    raise OSError(
        f"{places[0]} cannot be written to: every process compiles for half a minute; set "
        "NUMBA_CACHE_DIR to a folder of your own"
    )


def _matplotlib_cache() -> str:
    named = os.environ.get("MPLCONFIGDIR")
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "matplotlib"
    place = Path(named) if named else usual
    try:
        _write_into(place)
    except OSError as error:
        raise OSError(
            f"{place} cannot be written to ({error.strerror}): every page looks for fonts "
            "anew; set MPLCONFIGDIR to a folder of your own"
        ) from error
    return str(place)


def _write_into(folder: Path) -> None:
    """Create a file in a folder, which is made if need be, and remove it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder):
        pass


def _ports(ports: Sequence[int]) -> str:
    for port in (0, *ports):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except (OSError, OverflowError) as error:
                raise OSError(
                    f"127.0.0.1:{port} cannot be listened on ({error}): another program has it; "
                    "end that, or choose another port"
                ) from error
    return ", ".join(map(str, ports)) if ports else "a free one is taken"


def _disk(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        raise OSError(
            f"{folder.absolute()}: {free / 1e9:.3g} GB are free, expected at least "
            f"{LEAST_FREE_BYTES / 1e9:.0f} GB: make room, or write elsewhere"
        )
    with tempfile.TemporaryFile(dir=folder):
        pass
    return f"{free / 1e9:,.0f} GB free in {folder.absolute()}"


def _model(folder: Path) -> str:
    read_model(folder)
    return str(folder)


def _run(store: Path) -> str:
    """A run that opens, and whose first frame can be read."""
    run = open_run(store)
    if run.n_events:
        reason = Reason(int(run.source.read([0]).reasons[0]))
        if reason:
            raise OSError(
                f"{run.path}: the first frame cannot be read ({str(reason.name).lower()}): "
                "copy the run again, or ask who wrote it"
            )
    return f"{counted(run.n_events, 'event')} in {run.path}"


def _self_test(model: Path) -> str:
    """A few simulated frames of one tile, filtered and verified."""
    run = simulate_run("photosystem-i-8kev", n_events=8, hit_rate=0.5, frame_shape=(350, 350))
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "hits.zarr"
        report = filter_run(
            run,
            settings=FilterSettings(scorer=CnnScorer(model)),
            outputs=Outputs(store=store),
            pool=SerialPool(),
        )
        verified = verify_run(store, against=run, pool=SerialPool())
    if not verified.ok:
        raise OSError(f"{verified.problems[0]}: this machine does not write what it is given")
    return f"{report.events} events filtered and verified"
