"""The command line: one job a command, one line an error, one object a ``--json``."""

from __future__ import annotations

import ast
import fcntl
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from commands import HEARS_HANGUPS, run
from planted import ArrayFrames

import sfxreduce
from sfxreduce.cluster import SerialPool
from sfxreduce.io.files.durable import hidden_folders
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.run.detector import PixelFlag
from sfxreduce.scorers.peaks.finder import MIN_PEAKS, PeakFinder
from sfxreduce.simulate.run import simulate_run
from sfxreduce.train.labelling import MISS_AT_MOST
from sfxreduce_cli.inputs import spread_inputs
from sfxreduce_cli.main import app, main

FILTER_KEYS = {
    "events",
    "hits",
    "undecided",
    "rejected",
    "kept",
    "threshold",
    "scorer",
    "model_sha256",
    "bytes_in",
    "bytes_out",
    "bytes_saved",
    "reduction_factor",
    "wall_seconds",
    "out",
    "report",
    "certified",
    "assurance",
    "gap",
    "gap_reason",
    "kept_for_peaks",
}


def process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "sfxreduce_cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "run.zarr"
    result = run(
        "simulate", "--out", path, "--experiment", "photosystem-i-8kev", "--events", 40,
        "--hit-rate", 0.5, "--frame-shape", "350x350", "--serial",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return path


def test_filter_prints_one_object_whose_counts_add_up(small_run: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "hits.zarr", tmp_path / "report.html"
    result = run(
        "filter", "--in", small_run, "--out", out, "--scorer", "peaks", "--report", page,
        "--serial", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert set(facts) >= FILTER_KEYS
    assert facts["kept"] == facts["hits"] + facts["undecided"]
    assert facts["events"] == facts["kept"] + facts["rejected"] == 40
    assert facts["model_sha256"] is None
    assert facts["bytes_saved"] == facts["bytes_in"] - facts["bytes_out"]
    assert facts["bytes_out"] == sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    assert facts["bytes_in"] == sum(p.stat().st_size for p in small_run.rglob("*") if p.is_file())
    assert facts["report"] == str(page)
    html = page.read_text()
    assert "<svg" in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "https://" not in html
    described = json.loads(run("info", out, "--json").stdout)
    assert described["events"] == facts["kept"]
    assert described["complete"] is True


def test_the_shipped_model_filters_out_of_the_box(small_run: Path, tmp_path: Path) -> None:
    result = run("filter", "--in", small_run, "--out", tmp_path / "h", "--serial", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["scorer"] == "cnn"
    assert len(facts["model_sha256"]) == 64
    verified = run("verify", "--in", tmp_path / "h", "--against", small_run, "--serial", "--json")
    assert json.loads(verified.stdout)["mismatched"] == 0
    assert verified.exit_code == 0


def test_a_changed_byte_in_an_output_is_exit_status_4(small_run: Path, tmp_path: Path) -> None:
    run("filter", "--in", small_run, "--out", tmp_path / "h", "--scorer", "peaks", "--serial")
    shard = next(p for p in (tmp_path / "h" / "frames" / "c").rglob("*") if p.is_file())
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    result = run("verify", "--in", tmp_path / "h", "--against", small_run, "--serial", "--json")
    assert result.exit_code == 4
    found = json.loads(result.stdout)
    assert found["mismatched"] == 1
    assert found["checked"] > 1


def test_a_dry_run_writes_nothing(small_run: Path, tmp_path: Path) -> None:
    result = run(
        "filter", "--in", small_run, "--out", tmp_path / "h", "--scorer", "peaks", "--serial",
        "--dry-run", "--json",
    )  # fmt: skip
    assert json.loads(result.stdout)["dry_run"] is True
    assert list(tmp_path.iterdir()) == []


def no_such_path(tmp_path: Path) -> Path:
    return tmp_path / "none.zarr"


def group_without_frames(tmp_path: Path) -> Path:
    import zarr

    zarr.create_group(str(tmp_path / "empty.zarr"))
    return tmp_path / "empty.zarr"


def truncated_cxi(tmp_path: Path) -> Path:
    import h5py

    path = tmp_path / "cut.cxi"
    with h5py.File(path, "w") as file:
        file["/entry_1/data_1/data"] = np.zeros((4, 50, 50), "int16")
    path.write_bytes(path.read_bytes()[:5000])
    return path


@pytest.mark.parametrize("bad_input", [no_such_path, group_without_frames, truncated_cxi])
def test_a_bad_input_is_one_line_and_exit_status_1(
    bad_input: Callable[[Path], Path], tmp_path: Path
) -> None:
    source = bad_input(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = process("filter", "--in", source, "--out", tmp_path / "hits.zarr", "--scorer", "peaks")
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("sfxreduce: ")
    assert str(source) in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_an_error_with_json_is_an_object_too(tmp_path: Path) -> None:
    done = process("filter", "--in", tmp_path / "no.zarr", "--out", tmp_path / "h", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["exit_status"] == 1


def test_an_existing_output_is_refused_and_stays(small_run: Path, tmp_path: Path) -> None:
    (tmp_path / "h").write_text("mine")
    result = run("filter", "--in", small_run, "--out", tmp_path / "h", "--serial")
    assert result.exit_code == 1
    assert (tmp_path / "h").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments",
    [
        ["filter", "--out", "x"],
        ["filter", "--in", "a", "--out", "b", "--scorer", "guess"],
        ["simulate", "--out", "x", "--frame-shape", "wide"],
        ["simulate", "--out", "x", "--hit-rate", "2"],
        ["nonsense"],
        ["filter", "--in", "a", "--in", "b", "--out", "c"],
        ["verify", "--in", "a", "--in", "b", "--against", "c"],
    ],
)
def test_wrong_usage_is_exit_status_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_an_output_inside_its_input_is_wrong_usage(small_run: Path) -> None:
    result = run("filter", "--in", small_run, "--out", small_run / "hits.zarr", "--serial")
    assert result.exit_code == 2


def begun(folder: Path) -> list[Path]:
    """What a command that is at work has written of its outputs."""
    return [*folder.glob(".*.unfinished-*/shards/*"), *folder.glob(".*.unfinished-*/output")]


def stop_when_staged(
    command: list[str], folder: Path, number: int, *, times: int = 1
) -> tuple[int, str]:
    """Send a signal to a command's process group, as often, once it has begun to write."""
    child = subprocess.Popen(
        [*HEARS_HANGUPS, *command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not begun(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    for _ in range(times):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        time.sleep(0.3)
    _, stderr = child.communicate(timeout=120)
    return child.returncode, stderr


@pytest.mark.parametrize(
    ("pool", "number", "times"),
    [("--serial", signal.SIGINT, 2), ("--workers=2", signal.SIGINT, 1),
     ("--serial", signal.SIGTERM, 1), ("--workers=2", signal.SIGTERM, 2),
     ("--workers=2", signal.SIGHUP, 1)],
)  # fmt: skip
def test_an_interrupted_filter_leaves_no_output_and_goes_on(
    pool: str, number: int, times: int, small_run: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "sfxreduce_cli", "filter", "--in", str(small_run), "--out",
        str(tmp_path / "hits.zarr"), "--cxi", str(tmp_path / "hits.cxi"), "--report",
        str(tmp_path / "report.html"), "--scorer", "peaks", "--threshold", "-1", pool,
    ]  # fmt: skip
    returncode, stderr = stop_when_staged(command, tmp_path, number, times=times)
    assert returncode == 130, stderr
    assert "Traceback" not in stderr
    assert sum("interrupted" in line for line in stderr.splitlines()) == 1
    assert [*tmp_path.iterdir()] == hidden_folders(tmp_path / "hits.zarr")
    subprocess.run(command, check=True, capture_output=True)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["hits.cxi", "hits.geom", "hits.lst", "hits.zarr", "report.html"]


@pytest.mark.parametrize(("before", "status"), [([], 130), (["nohup"], 0)])
def test_a_terminal_that_is_closed_ends_a_command_but_not_under_nohup(
    before: list[str], status: int, small_run: Path, tmp_path: Path
) -> None:
    command = [
        *HEARS_HANGUPS, *before, sys.executable, "-m", "sfxreduce_cli", "filter", "--in",
        str(small_run), "--out", str(tmp_path / "hits.zarr"), "--scorer", "peaks", "--threshold",
        "-1", "--serial",
    ]  # fmt: skip
    master, terminal = os.openpty()
    os.set_blocking(master, False)
    child = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), cwd=tmp_path,
    )  # fmt: skip
    os.close(terminal)
    deadline = time.monotonic() + 120
    while not begun(tmp_path) and time.monotonic() < deadline:
        with suppress(OSError):  # nothing to read, or nobody who writes
            os.read(master, 65536)
        time.sleep(0.02)
    os.close(master)
    assert child.wait(timeout=120) == status
    if status == 0:
        assert (tmp_path / "hits.zarr").is_dir()
    else:
        assert [*tmp_path.iterdir()] == hidden_folders(tmp_path / "hits.zarr")


SWALLOWED = """
class Deaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
def work():
    del [Deaf()][0]
    time.sleep(60)
"""
TURNED = """
def work():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except KeyboardInterrupt:
        raise SystemError("compiled code returned a result with an exception set")
"""
LATE = """
def work():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except KeyboardInterrupt:
        raise SystemExit(0)
"""


@pytest.mark.parametrize(("work", "status"), [(SWALLOWED, 130), (TURNED, 130), (LATE, 0)])
def test_an_interrupt_counts_wherever_it_comes(work: str, status: int) -> None:
    # Inside compiled code that unpickles, SIGTERM once ended in a traceback.
    lines = (
        f"import os, signal, time\nimport sfxreduce_cli.main as m\n{work}\nm._run = work\nm.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == status, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == (1 if status else 0), done.stderr


@pytest.mark.parametrize("pool", ["--serial", "--workers=2"])
def test_ctrl_c_while_simulating_leaves_nothing(pool: str, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "sfxreduce_cli", "simulate", "--out", str(tmp_path / "run.zarr"),
        "--events", "2000", pool,
    ]  # fmt: skip
    returncode, stderr = stop_when_staged(command, tmp_path, signal.SIGINT)
    assert returncode == 130, stderr
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_one_line_and_no_output(small_run: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], check=False
    )
    if not made or made.returncode:
        pytest.skip("this machine does not let tests mount a small disk")
    try:
        for extra in ([], ["--cxi", str(disk / "h.cxi")]):
            done = process(
                "filter", "--in", small_run, "--out",
                disk / "h.zarr" if not extra else tmp_path / "h.zarr",
                "--scorer", "peaks", "--serial", *extra,
            )  # fmt: skip
            assert done.returncode == 1, done.stderr
            error = [line for line in done.stderr.splitlines() if line.startswith("sfxreduce: ")]
            assert len(error) == 1
            assert "space left on" in error[0]
            assert "Traceback" not in done.stderr
            assert not (disk / "h.zarr").exists()
            assert not (tmp_path / "h.zarr").exists()
            # What is done stays for the same command to go on with; it gives no room back.
            for folder in hidden_folders(disk / "h.zarr"):
                shutil.rmtree(folder)
            assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_mask_the_other_way_round_is_told_and_rejects_nothing(tmp_path: Path) -> None:
    """It rejected every event, with a line that did not say why."""
    seen = simulate_run("photosystem-i-8kev", n_events=6, frame_shape=(350, 350))
    turned = np.where(seen.detector.good(), np.uint32(PixelFlag.BAD), np.uint32(0))
    detector = seen.detector.with_mask(turned)
    source = ArrayFrames(frames=seen.source.read(range(6)).pixels, detector=detector)
    path = tmp_path / "run.zarr"
    ingest_run(replace(seen, source=source), out=path, pool=SerialPool())
    for scorer in ("peaks", "cnn"):
        done = process(
            "filter", "--in", path, "--out", tmp_path / f"{scorer}.zarr", "--scorer", scorer,
            "--serial", "--json",
        )  # fmt: skip
        facts = json.loads(done.stdout)
        assert (facts["undecided"], facts["rejected"]) == (6, 0)
        [line] = [one for one in done.stderr.splitlines() if "warning" in one]
        assert "100 % masked: is 1 good? --mask-good-is 1. A score needs half" in line


def test_labels_by_peaks_take_thresholds_by_either_name_and_others_take_none(
    small_run: Path, tmp_path: Path
) -> None:
    base = ["label", "--in", small_run, "--out", tmp_path / "l.csv", "--overwrite", "--serial"]
    default, named, former = (
        json.loads(run(*base, *options, "--json").stdout)
        for options in ((), ("--min-peaks", 8, "--miss-at-most", 2), ("--hit-at-least", 8))
    )
    assert default == named == former
    assert default["source"] == "peaks"
    assert json.loads(run(*base, "--min-peaks", 30, "--json").stdout)["hits"] < default["hits"]
    assert json.loads(run(*base, "--from", "quartiles", "--json").stdout)["hits"] >= 10
    for source in ("quartiles", "truth"):
        refused = run(*base, "--from", source, "--min-peaks", 9)
        assert "go with --from peaks; drop them" in str(refused.exception)
    assert "found 9 and 8" in str(run(*base, "--miss-at-most", 9).exception)
    judged = run(
        "evaluate", "--in", small_run, "--labels", "quartiles", "--hit-at-least", 9, "--serial"
    )
    assert "--labels: they say it all" in str(judged.exception)
    judged = run("evaluate", "--in", small_run, "--labels", "quartiles", "--serial", "--json")
    assert "upper quartile" in json.loads(judged.stdout)["labels"]


def test_options_that_contradict_each_other_are_wrong_usage(
    small_run: Path, tmp_path: Path
) -> None:
    base = ["filter", "--in", small_run, "--out", tmp_path / "h", "--serial"]
    assert run(*base, "--scheduler", "tcp://127.0.0.1:1").exit_code == 2
    assert run(*base, "--scorer", "peaks", "--model", tmp_path).exit_code == 2
    assert run(*base, "--scorer", "peaks", "--threshold", "nan").exit_code == 2
    assert run(*base, "--scorer", "peaks", "--cxi", "").exit_code == 2


def test_a_scheduler_of_the_environment_does_not_forbid_serial_work(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://127.0.0.1:1")
    base = ["filter", "--in", small_run, "--out", tmp_path / "h", "--scorer", "peaks", "--dry-run"]
    assert run(*base, "--serial").exit_code == 0
    monkeypatch.setattr("sfxreduce.cluster.connection.CONNECT_SECONDS", 1)
    assert run(*base).exit_code == 1


def test_a_dry_run_refuses_what_the_real_run_refuses(small_run: Path) -> None:
    base = ["filter", "--in", small_run, "--out", small_run, "--scorer", "peaks", "--serial"]
    assert run(*base).exit_code == run(*base, "--dry-run").exit_code == 2


def test_brackets_in_a_name_are_a_name(small_run: Path, tmp_path: Path) -> None:
    # They were once taken for markup, and the command failed after all was written.
    out = tmp_path / "y[raw][bold].zarr"
    result = run("filter", "--in", small_run, "--out", out, "--scorer", "peaks", "--serial")
    assert result.exit_code == 0
    assert "y[raw][bold].zarr" in result.stdout.replace("\n", "")


def test_the_version_is_told() -> None:
    assert run("--version").stdout.startswith("sfxreduce ")


def test_a_glob_after_in_works() -> None:
    assert spread_inputs(["--in", "a", "b", "c", "--out", "x"]) == [
        "--in", "a", "--in", "b", "--in", "c", "--out", "x",
    ]  # fmt: skip
    assert spread_inputs(["--out", "x", "--in", "a"]) == ["--out", "x", "--in", "a"]


def commands_by_name() -> dict[str, Any]:
    """Every command, those of groups by both words."""
    commands = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for group in ("archive", "audit", "cluster", "geometry", "hold", "policy", "report"):
        commands |= {f"{group} {name}": c for name, c in commands.pop(group).commands.items()}
    return commands


def test_every_command_has_help_with_an_example() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert sorted(commands) == [
        "archive", "audit", "clean", "cluster", "convert", "crossval", "doctor", "evaluate",
        "filter", "geometry", "hold", "info", "ingest", "label", "ledger", "policy", "redecide",
        "report", "review", "simulate", "train", "verify", "view", "why",
    ]  # fmt: skip
    for name, command in commands_by_name().items():
        assert "Example: sfxreduce" in (command.help or ""), name
        assert any("--json" in parameter.opts for parameter in command.params), name


def test_a_command_parses_calls_and_prints() -> None:
    for name, command in commands_by_name().items():
        function = inspect.unwrap(command.callback)
        definition = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        assert isinstance(definition, ast.FunctionDef)
        assert ast.get_docstring(definition), name
        body = definition.body[1:]
        assert (body[-1].end_lineno or 0) - body[0].lineno + 1 <= 15, name


def test_the_command_line_goes_through_the_facade() -> None:
    folder = Path(inspect.getfile(spread_inputs)).parent
    for path in sorted(folder.glob("*.py")):
        imported = imports_at_run_time(ast.parse(path.read_text()))
        deep = {name for name in imported if name.startswith("sfxreduce.")}
        assert deep <= {"sfxreduce.errors"}, path.name


def imports_at_run_time(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported anywhere but for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
        yield from imports_at_run_time(node)


def test_defaults_of_the_command_line_are_those_of_the_library() -> None:
    from sfxreduce.audit.sample import AUDIT_SHARE
    from sfxreduce.decisions.method import MAX_BLANKS_KEPT
    from sfxreduce.decisions.threshold import Promise
    from sfxreduce_cli.filter import filter_
    from sfxreduce_cli.redecide import redecide

    shown = {n: p.default for n, p in inspect.signature(filter_).parameters.items()}
    finder = PeakFinder()
    assert shown["min_peaks"] == MIN_PEAKS == sfxreduce.PeakScorer().min_peaks
    assert shown["min_snr"] == finder.min_snr
    assert shown["min_pixels"] == finder.min_pixels
    assert shown["threshold"] is None
    again = {n: p.default for n, p in inspect.signature(redecide).parameters.items()}
    for name in (
        "max_loss", "confidence", "drift", "audit_share", "threshold", "cxi_filter",
        "keep_from_peaks", "max_blanks_kept",
    ):  # fmt: skip
        assert again[name] == shown[name]
    assert shown["keep_from_peaks"] == MIN_PEAKS
    assert shown["max_blanks_kept"] == MAX_BLANKS_KEPT
    assert (shown["max_loss"], shown["confidence"]) == (Promise().max_loss, Promise().confidence)
    assert shown["audit_share"] == AUDIT_SHARE
    for name in ("label", "train", "evaluate"):
        told = {p.name: str(p.help) for p in commands_by_name()[name].params}
        assert told["min_peaks"].endswith(f"default: {MIN_PEAKS}.")
        assert told["miss_at_most"].endswith(f"default: {MISS_AT_MOST}.")


def test_main_turns_errors_into_a_line_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["sfxreduce", "info", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as told:
        main()
    assert told.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_ingest_says_whether_chunks_were_taken_over_as_they_are(tmp_path: Path) -> None:
    import h5py
    import hdf5plugin

    with h5py.File(tmp_path / "run.h5", "w") as file:
        file.create_dataset(
            "/entry/data/data",
            data=np.arange(4 * 300, dtype="i2").reshape(4, 15, 20),
            chunks=(1, 15, 20),
            **hdf5plugin.Blosc(),
        )
    for options, expected in (((), True), (("--retile",), False)):
        result = run(
            "ingest", "--in", tmp_path / "run.h5", "--out", tmp_path / "run.zarr", "--overwrite",
            "--serial", "--json", *options,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["rewrapped"] is expected
