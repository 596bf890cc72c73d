"""``sfxreduce info``: what a store holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

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
    facts = _facts(path, data_path, root or (), untrusted=untrusted)
    if as_json:
        print_json(facts)
    else:
        print_table(str(path), {name: value for name, value in facts.items() if value is not None})


def _facts(path: Path, data_path: str, roots: Sequence[Path], *, untrusted: bool) -> dict[str, Any]:
    unfinished = None if path.exists() else sfxreduce.describe_unfinished(path)
    if unfinished is None:
        run = sfxreduce.open_run(path, data_path=data_path, roots=roots, untrusted=untrusted)
        return sfxreduce.info_run(run).to_json()
    return {
        "kind": "unfinished output; the same command goes on with it",
        "complete": False,
        "folder": str(unfinished.folder),
        "batches_scored": unfinished.scored,
        "shards_written": unfinished.shards,
        "bytes": unfinished.bytes,
        **unfinished.pins,
    }
