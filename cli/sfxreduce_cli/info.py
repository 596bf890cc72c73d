"""``sfxreduce info``: what a store holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sfxreduce
from sfxreduce_cli.options import AsJson, DataPath, Roots, Untrusted
from sfxreduce_cli.output import print_json, print_table

__all__ = ["info"]


def info(
    path: Annotated[Path, typer.Argument(help="Run store, reduced store, CXI or HDF5 file.")],
    data_path: DataPath = "",
    root: Roots = None,
    untrusted: Untrusted = False,
    as_json: AsJson = False,
) -> None:
    """Say what a store holds, without reading its frames.

    Example: sfxreduce info run.zarr
    """
    run = sfxreduce.open_run(path, data_path=data_path, roots=root or (), untrusted=untrusted)
    facts = sfxreduce.describe_run(run).to_json()
    if as_json:
        print_json(facts)
    else:
        print_table(str(path), {name: value for name, value in facts.items() if value is not None})
