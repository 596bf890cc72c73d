"""``sfxreduce info``: a summary of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sfxreduce
from sfxreduce_cli.options import AsJson, InputOptions, spread_options
from sfxreduce_cli.output import as_typed, print_json, print_table

__all__ = ["info"]


@spread_options
def info(
    *,
    path: Annotated[Path, typer.Argument(help="Run store, reduced store, CXI or HDF5 file.")],
    inputs: InputOptions,
    as_json: AsJson = False,
) -> None:
    """Show a summary of a store, without reading its frames.

    Example: sfxreduce info run.zarr
    """
    facts = sfxreduce.info_run(path, **inputs.reading).to_json()
    if as_json:
        print_json(facts)
    else:
        known = {name: value for name, value in facts.items() if value is not None}
        print_table(as_typed(path), known)
