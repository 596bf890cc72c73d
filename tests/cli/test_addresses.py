"""An address is no path: it is refused in one line that names the option."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from commands import run as command

from sfxreduce.errors import UsageError
from sfxreduce_cli.help import READ_THERE, takes_path
from sfxreduce_cli.main import app


def path_options(group: Any, words: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every option and argument of every command that takes a path."""
    found = []
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            found += path_options(one, (*words, name))
            continue
        for parameter in one.params:
            if takes_path(parameter):
                found.append(((*words, name), parameter))
    return found


OPTIONS = path_options(typer.main.get_command(app))


def test_paths_are_found_in_all_kinds_of_commands() -> None:
    named = {(words[0], parameter.name) for words, parameter in OPTIONS}
    assert {("filter", "in_"), ("filter", "out"), ("archive", "runs"), ("info", "path")} <= named
    assert len(OPTIONS) > 60


@pytest.mark.parametrize(
    ("words", "parameter"),
    [pytest.param(w, p, id=f"{' '.join(w)} {p.name}") for w, p in OPTIONS],
)
def test_an_address_is_refused_wherever_a_path_is_taken(
    words: tuple[str, ...], parameter: Any
) -> None:
    is_option = parameter.param_type_name == "option"
    option = max(parameter.opts, key=len) if is_option else parameter.name.upper()
    is_read = READ_THERE.get(" ".join(words)) == option
    address = f"{'gs' if is_read else 's3'}://bucket/run.zarr"
    done = command(*words, *([option] if is_option else []), address)
    assert done.exit_code == 2
    assert isinstance(done.exception, UsageError)
    line = str(done.exception)
    assert line.startswith(f"{option} {address}: expected a path of this machine")
    assert "\n" not in line


def test_a_folder_with_a_colon_is_still_a_folder(tmp_path: Path) -> None:
    (tmp_path / "s3:").mkdir()
    done = command("info", f"{tmp_path}/s3:/run.zarr")
    assert done.exit_code == 1
    assert "no such file or folder" in str(done.exception)


def test_what_reads_object_stores_is_there() -> None:
    named = {(" ".join(words), max(one.opts, key=len)) for words, one in OPTIONS}
    assert {item for item in READ_THERE.items() if item[1].startswith("--")} <= named


def test_several_inputs_are_all_looked_at() -> None:
    done = command("ingest", "--in", "a.h5", "gs://bucket/b.h5", "--out", "run.zarr")
    assert done.exit_code == 2
    assert str(done.exception).startswith("--in gs://bucket/b.h5: ")
