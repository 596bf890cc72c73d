"""The names people import are few, sorted, real, documented, and loaded when they are asked for."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import sfxreduce

API_PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "api.md"
FACADES = (sfxreduce, sfxreduce.archive, sfxreduce.train)
HEAVY = {
    "bagit", "dask", "distributed", "fabio", "h5py", "matplotlib", "numba", "pandas", "pyarrow",
    "pydantic", "safetensors", "scipy", "torch", "xarray", "zarr",
}  # fmt: skip


def names_of(facade: ModuleType) -> list[str]:
    """Public names of a facade, the facades below it left out."""
    return [n for n in facade.__all__ if not isinstance(getattr(facade, n), ModuleType)]


@pytest.mark.parametrize("facade", FACADES, ids=lambda facade: facade.__name__)
def test_every_public_name_is_there_and_documented(facade: ModuleType) -> None:
    assert sorted(set(facade.__all__)) == list(facade.__all__)
    for name in facade.__all__:
        assert getattr(facade, name).__doc__, name
        assert name in dir(facade)


def test_the_page_of_names_is_complete() -> None:
    shown = re.findall(
        r"^\.\. auto(?:function|class|exception):: (\S+)$", API_PAGE.read_text(), re.M
    )
    public = [f"{facade.__name__}.{name}" for facade in FACADES for name in names_of(facade)]
    assert sorted(shown) == sorted(public)


def test_a_command_and_its_library_function_have_the_same_name() -> None:
    names = set(sfxreduce.__all__)
    for command in (
        "convert", "filter", "info", "ingest", "label", "ledger", "redecide", "simulate", "verify",
    ):  # fmt: skip
        assert f"{command}_run" in names
    assert {"train_model", "evaluate_model", "crossval_models"} <= names
    assert {f"audit_{step}" for step in ("draw", "label", "certify", "check")} <= names
    for step in ("plan_runs", "approve_run", "execute_run", "recall_run", "release_run",
                 "restore_run", "status_run", "explain_run", "nightly_runs"):  # fmt: skip
        assert step in sfxreduce.archive.__all__


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="No sfxreduce attribute nothing"):
        _ = sfxreduce.nothing  # type: ignore[attr-defined]


def test_no_public_name_hides_a_module() -> None:
    for facade in FACADES:
        for name in names_of(facade):
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module(f"{facade.__name__}.{name}")


def command(*words: str) -> str:
    argv = ["sfxreduce", *words]
    return f"sys.argv = {argv}; from sfxreduce_cli.main import main; main()"


def help_of(*words: str) -> str:
    return command(*words, "--help")


@pytest.mark.parametrize(
    ("program", "allowed"),
    [
        ("import sfxreduce; dir(sfxreduce), sfxreduce.archive, sfxreduce.train", set()),
        (help_of(), set()),
        # Typer itself loads pydantic where an option has a range.
        (help_of("filter"), {"pydantic"}),
        (help_of("archive", "plan"), {"pydantic"}),
        # What a data manager asks for a thousand runs in a row, of papers and not of frames.
        (command("archive", "status", "run.zarr"), {"pydantic"}),
        (command("archive", "status", "--root", "."), {"pydantic"}),
        (command("hold", "list", "run.zarr"), {"pydantic"}),
    ],
)
def test_importing_the_package_and_asking_for_help_or_states_load_nothing_heavy(
    program: str, allowed: set[str], tmp_path: Path
) -> None:
    (tmp_path / "run.zarr").mkdir()
    assert loaded_by(program, tmp_path) <= allowed


def test_info_loads_what_a_store_is_opened_with_and_nothing_that_reads_or_judges_frames(
    tmp_path: Path,
) -> None:
    # With other readers, Datasets and kernels it took three times as long.
    run = sfxreduce.simulate_run("photosystem-i-8kev", n_events=2, frame_shape=(350, 350), seed=1)
    sfxreduce.ingest_run(run, out=tmp_path / "run.zarr")
    assert loaded_by(command("info", "run.zarr"), tmp_path) <= {"pydantic", "zarr"}
    assert loaded_by(command("info", "run.zarr", "--json"), tmp_path) <= {"pydantic", "zarr"}


def test_filtering_loads_no_reader_or_writer_of_formats_it_does_not_meet(tmp_path: Path) -> None:
    program = "import sfxreduce; sfxreduce.filter_run, sfxreduce.CnnScorer, sfxreduce.open_run"
    needed = {"dask", "numba", "pandas", "pyarrow", "safetensors", "scipy", "xarray", "zarr"}
    assert loaded_by(program, tmp_path) <= needed


def loaded_by(program: str, folder: Path) -> set[str]:
    """Heavy packages that a program loads, which ends well."""
    lines = f"""import sys
try:
    {program}
except SystemExit as done:
    assert not done.code, done.code
print("loaded:", *({HEAVY} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=folder, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split()[1:])
