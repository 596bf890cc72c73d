"""`doctor` names each fault that is provoked, and says what to do about it."""

from __future__ import annotations

import json
import shutil
import socket
from collections import namedtuple
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from commands import run as command

from sfxreduce.pipeline import doctor
from sfxreduce.pipeline.doctor import doctor_run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes a second, for tests of other checks."""
    monkeypatch.setattr(doctor, "_self_test", lambda _: "left out")


def wrong(**asked: object) -> dict[str, str]:
    """Names of the checks that found something, and what."""
    return {one.name: one.problem for one in doctor_run(**asked) if one.problem}  # type: ignore[arg-type]


def test_nothing_is_wrong_here_and_the_self_test_filters_frames(tmp_path: Path) -> None:
    done = command("doctor", "--out", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["ok"]
    assert [one["name"] for one in facts["checks"]][-1] == "self-test"
    assert "8 events filtered and verified" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
class TestFaults:
    def test_a_missing_plugin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        known, gone = h5py.h5z.filter_avail, hdf5plugin.FILTERS["bshuf"]
        monkeypatch.setattr(h5py.h5z, "filter_avail", lambda n: n != gone and known(n))
        assert list(found := wrong()) == ["codecs"]
        assert "bshuf" in found["codecs"]
        assert "reinstall hdf5plugin" in found["codecs"]

    @pytest.mark.parametrize("kind", ["absent", "no run", "damaged frame"])
    def test_a_store_that_cannot_be_read(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "run.h5"
        if kind == "no run":
            path.write_bytes(b"no HDF5")
        if kind == "damaged frame":
            with h5py.File(path, "w") as file:
                frames = file.create_dataset(
                    "/entry_1/data_1/data", (3, 60, 60), "i2", chunks=(1, 60, 60), compression=1
                )
                frames[:] = np.arange(60)
                at = frames.id.get_chunk_info(0).byte_offset
            with path.open("r+b") as stored:
                stored.seek(at)
                stored.write(b"\xff" * 20)
        assert list(found := wrong(store=path)) == ["run"]
        assert str(path) in found["run"]

    def test_a_busy_port(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            assert list(found := wrong(ports=[port])) == ["ports"]
        assert f"127.0.0.1:{port}" in found["ports"]
        assert wrong(ports=[port]) == {}

    def test_a_full_disk(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        usage = namedtuple("usage", "total used free")(10**12, 10**12 - 10**8, 10**8)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        assert list(found := wrong(out=tmp_path)) == ["disk"]
        assert "0.1 GB are free" in found["disk"]

    @pytest.mark.parametrize(
        ("variable", "name"),
        [("NUMBA_CACHE_DIR", "cache of numba"), ("MPLCONFIGDIR", "cache of matplotlib")],
    )
    def test_a_cache_that_cannot_be_written(
        self, variable: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv(variable, str(tmp_path / "file" / "cache"))
        assert list(found := wrong()) == [name]
        assert variable in found[name]

    def test_a_build_of_torch_that_does_not_fit_the_machine(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(doctor, "visible_cards", lambda: ["0", "1"])
        monkeypatch.setattr(doctor, "cuda_available", lambda: False)
        assert list(found := wrong()) == ["torch"]
        assert "2 graphics cards" in found["torch"]

    def test_a_version_that_was_not_allowed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        needs = ["torch<1", "no-such-package>=1", "onnx; extra == 'bench'"]
        monkeypatch.setattr(doctor, "requires", lambda _: needs)
        assert list(found := wrong()) == ["versions"]
        assert "torch" in found["versions"]
        assert "no-such-package is missing" in found["versions"]
        assert "onnx" not in found["versions"]

    def test_a_model_that_is_not_there(self, tmp_path: Path) -> None:
        done = command("doctor", "--model", tmp_path / "none", "--out", tmp_path)
        assert done.exit_code == 1
        assert done.stdout.splitlines()[0] == "Wrong: model"
