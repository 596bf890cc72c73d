"""What a run may lead to, what an output may be read by, and what is never imported."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from planted import planted_run

from sfxreduce.cluster import SerialPool
from sfxreduce.errors import SchemaError, SourceError
from sfxreduce.io.chunks.limits import (
    MOST_CHUNK_BYTES,
    MOST_RATIO,
    SPARED_BYTES,
    check_packed,
    check_ratio,
)
from sfxreduce.io.files.journal import open_journal
from sfxreduce.io.files.safe_read import open_regular, read_small
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.filter import Outputs, filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.scorers.peaks.finder import PeakScorer

ROOT = Path(__file__).resolve().parents[2]
FRAMES = np.arange(4 * 12 * 10, dtype="i2").reshape(4, 12, 10)


def linked_run(folder: Path, raw: Path, kind: str) -> Path:
    """A run whose frames lie in another file."""
    raw.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(raw, "w") as file:
        file["raw"] = FRAMES
    folder.mkdir(exist_ok=True)
    path = folder / "run.cxi"
    with h5py.File(path, "w") as file:
        if kind == "link":
            file["/entry_1/data_1/data"] = h5py.ExternalLink(str(raw), "/raw")
        else:
            layout = h5py.VirtualLayout(FRAMES.shape, "i2")
            layout[...] = h5py.VirtualSource(str(raw), "/raw", shape=FRAMES.shape)
            file.create_virtual_dataset("/entry_1/data_1/data", layout)
    return path


@pytest.mark.parametrize("kind", ["link", "virtual"])
@pytest.mark.parametrize("untrusted", [False, True])
def test_links_lead_into_the_folders_that_were_named_and_no_others(
    kind: str, untrusted: bool, tmp_path: Path
) -> None:
    path = linked_run(tmp_path / "proc", tmp_path / "raw" / "deep" / "r.h5", kind)
    run = open_run(path, roots=[tmp_path / "raw"], untrusted=untrusted)
    np.testing.assert_array_equal(run.source.read(range(4)).pixels, FRAMES)
    for roots in ([], [tmp_path / "raw2"], [tmp_path / "raw" / "de"]):
        with pytest.raises(SchemaError, match=r"outside the folder .* --root"):
            open_run(path, roots=roots, untrusted=untrusted)


def test_a_link_out_of_a_named_folder_is_refused(tmp_path: Path) -> None:
    path = linked_run(tmp_path / "proc", tmp_path / "secret.h5", "link")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "r.h5").symlink_to(tmp_path / "secret.h5")
    with h5py.File(path, "w") as file:
        file["/entry_1/data_1/data"] = h5py.ExternalLink(str(tmp_path / "raw" / "r.h5"), "/raw")
    with pytest.raises(SchemaError, match="outside the folder"):
        open_run(path, roots=[tmp_path / "raw"])


def test_outputs_are_for_whom_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        ingest_run(planted_run(n_events=6), out=tmp_path / "run.zarr", pool=SerialPool())
        filter_run(
            open_run(tmp_path / "run.zarr"),
            settings=FilterSettings(scorer=PeakScorer()),
            outputs=Outputs(
                store=tmp_path / "hits.zarr",
                cxi=tmp_path / "hits.cxi",
                cxi_without_geometry=True,
                report=tmp_path / "report.html",
            ),
            pool=SerialPool(),
        )
        with open_journal(tmp_path / "journal") as journal:
            journal.append({"event": "begin"})
    finally:
        os.umask(before)
    made = list(tmp_path.rglob("*"))
    assert len(made) > 60
    for path in made:
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode & 0o027 == 0, f"{path}: {mode:o}"
        assert mode & 0o040, f"{path} is not for the group: {mode:o}"


@pytest.mark.parametrize("name", ["secret-token-0123", "hunter2"])
def test_nothing_of_the_environment_is_stored_or_said(name: str, tmp_path: Path) -> None:
    ingest_run(planted_run(n_events=6), out=tmp_path / "run.zarr", pool=SerialPool())
    command = ["filter", "--in", str(tmp_path / "run.zarr"), "--out", str(tmp_path / "hits.zarr")]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sfxreduce_cli", *command, "--scorer", "peaks", "--serial"),
            *("--report", str(tmp_path / "report.html"), "--cxi", str(tmp_path / "hits.cxi")),
            "--cxi-without-geometry",
        ],
        env={**os.environ, "AWS_SECRET_ACCESS_KEY": name, "SLURM_JOB_ACCOUNT": name},
        capture_output=True,
        text=True,
        check=True,
    )
    assert name not in done.stdout + done.stderr
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or name.encode() not in path.read_bytes()


@pytest.mark.parametrize("way", ["write cxi", "untrusted"])
def test_a_module_in_the_working_directory_is_not_imported(way: str, tmp_path: Path) -> None:
    """Programs that we start looked for modules in the working directory before all else."""
    ingest_run(planted_run(n_events=6), out=tmp_path / "run.zarr", pool=SerialPool())
    for name in ("h5py", "numpy", "json", "sfxreduce"):
        (tmp_path / f"{name}.py").write_text("open('canary', 'w')\nraise SystemExit(9)\n")
    more = (
        ["--cxi", "hits.cxi", "--cxi-without-geometry"] if way == "write cxi" else ["--untrusted"]
    )
    program = "import sys; from sfxreduce_cli.main import main; main()"
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-c", program, "filter", "--in", "run.zarr", "--json"),
            *("--out", "hits.zarr", "--scorer", "peaks", "--serial", *more),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["events"] == 6
    assert not (tmp_path / "canary").exists()


def test_plugins_of_hdf5_come_from_one_folder_whatever_the_environment_says(
    tmp_path: Path,
) -> None:
    program = (
        "import h5py, sys; from sfxreduce.io.readers.hdf5.file import open_hdf5\n"
        "import hdf5plugin\n"
        "with open_hdf5(sys.argv[1]): pass\n"
        "found = [h5py.h5pl.get(i).decode() for i in range(h5py.h5pl.size())]\n"
        "assert found == [hdf5plugin.PLUGIN_PATH], found"
    )
    path = linked_run(tmp_path, tmp_path / "raw.h5", "link")
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env={**os.environ, "HDF5_PLUGIN_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_no_pickle_and_no_evaluated_text_on_the_way_of_data() -> None:
    """Pickles go only between our own processes, as Dask sends them: tasks, not what was read."""
    found = []
    for path in sorted([*(ROOT / "sfxreduce").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if re.search(
                r"\b(pickle|cloudpickle|dill|marshal|shelve|joblib)\.\w+\(|torch\.load\(|\beval\(|"
                r"(?<!\.)\bexec\(|yaml\.|allow_pickle=True|import_module\((?!f\"sfxreduce)",
                line,
            ) and not re.search(r"\.eval\(\)", line):
                found.append(f"{path.relative_to(ROOT)}:{number}")
    files = {entry.rpartition(":")[0] for entry in found}
    assert files <= {
        "sfxreduce/cluster/answers.py",
        "sfxreduce/cluster/isolated.py",
        "sfxreduce/cluster/roll_call.py",
        "sfxreduce/io/process.py",
        "sfxreduce/io/process_child.py",
        "sfxreduce/io/writers/cxi_process.py",
    }, found
    assert found


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="pipe or a device"):
            open_regular(path)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)


def test_a_small_file_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"123456")
    assert read_small(path, most_bytes=6) == b"123456"
    with pytest.raises(OSError, match="expected at most 5 bytes"):
        read_small(path, most_bytes=5)
    (tmp_path / "link").symlink_to(path)
    assert read_small(tmp_path / "link", most_bytes=6) == b"123456"
    with pytest.raises(OSError, match="symbolic links"):
        read_small(tmp_path / "link", most_bytes=6, follow=False)


@pytest.mark.parametrize(
    ("n_bytes", "n_packed", "passes"),
    [
        (SPARED_BYTES, 1, True),
        (SPARED_BYTES + 1, 1, False),
        (MOST_RATIO * 10**6, 10**6, True),
        (MOST_RATIO * 10**6 + 1, 10**6, False),
        (MOST_CHUNK_BYTES, 10**8, True),
        (MOST_CHUNK_BYTES + 1, MOST_CHUNK_BYTES, False),
    ],
)
def test_where_the_line_is_drawn(n_bytes: int, n_packed: int, passes: bool) -> None:
    if passes:
        check_ratio(n_bytes, n_packed)
        return
    with pytest.raises(SourceError, match="chunk"):
        check_ratio(n_bytes, n_packed)


def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may list any folder")
    ingest_run(planted_run(n_events=6), out=tmp_path / "run.zarr", pool=SerialPool())
    (tmp_path / "run.zarr" / "frames").chmod(0)
    try:
        with pytest.raises(SourceError, match="cannot be listed"):
            open_run(tmp_path / "run.zarr")
    finally:
        (tmp_path / "run.zarr" / "frames").chmod(0o755)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("n_bytes", [1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_checksum_behind_a_stream_of_whole_megabytes_is_not_read_for_ever(n_bytes: int) -> None:
    # What is left behind the end of a stream stays left however often it is handed over.
    packed = zlib.compress(bytes(n_bytes)) + b"sum4"
    check_packed(memoryview(packed), packing="zlib", most_bytes=n_bytes)
    with pytest.raises(SourceError):
        check_packed(memoryview(packed), packing="zlib", most_bytes=n_bytes - 1)
