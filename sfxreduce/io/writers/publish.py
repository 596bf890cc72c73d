"""Outputs appear under their final name complete, or not at all.

Everything is written beside the final name, under a hidden one, brought to the disk, and renamed.
An interruption at any moment leaves the final name as it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from sfxreduce.errors import OutputError, OutputExists, UsageError
from sfxreduce.io.files.durable import PARTIAL, output_errors
from sfxreduce.io.files.rename import complete_moves, hidden_name, planned_moves, remove, sync_tree
from sfxreduce.io.store.metadata import SCHEMA

__all__ = [
    "CXI_FILTERS",
    "check_cxi_filter",
    "check_outputs",
    "check_replaceable",
    "staged",
    "under_final_names",
]


CXI_FILTERS = ("gzip", "blosc")
"""How frames may be packed: as every HDF5 library can unpack them, or as run stores have them."""


def check_outputs(
    *,
    stores: Sequence[Path] = (),
    files: Sequence[Path] = (),
    inputs: Sequence[Path] = (),
    overwrite: bool = False,
    appearing: Sequence[Path] = (),
) -> None:
    """Refuse outputs that would touch an input, each other, or what is not ours to replace.

    Parameters
    ----------
    stores, files : sequence of Path
        Outputs that are run stores, and those that are single files.
    inputs : sequence of Path
        What the run is read from.
    overwrite : bool
        Whether outputs of the same kind may be replaced: stores by stores, files by files.
    appearing : sequence of Path
        Outputs that may be there because a program was cut off while they appeared.

    Raises
    ------
    UsageError
        If an output has no name, or is, contains or lies in an input or another output.
    OutputExists
        If something lies there that may not be replaced.
    OutputError
        If an output's folder does not exist.
    """
    taken = {path.resolve(): "input" for path in inputs}
    for output in (*stores, *files):
        if not output.name or output.name == "..":
            raise UsageError(f"'{output}': expected the name of an output, found none")
        final = output.resolve()
        for other, role in taken.items():
            if final == other or final in other.parents or other in final.parents:
                raise UsageError(
                    f"{output}: overlaps the {role} {other}; choose another output path"
                )
        taken[final] = "output"
        with output_errors(output):
            if not final.parent.is_dir():
                raise OutputError(f"{output}: there is no folder {final.parent}; make it first")
            if output.absolute() not in appearing:
                check_replaceable(output, is_store=output in stores, overwrite=overwrite)


def check_replaceable(path: Path, *, is_store: bool, overwrite: bool) -> None:
    """Refuse to replace anything but an older output of the same kind, and that if told to.

    Raises
    ------
    OutputExists
        If something lies there that may not be replaced.
    """
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise OutputExists(f"{path}: already exists; choose another path or pass --overwrite")
    if is_store and not _is_run_store(path):
        raise OutputExists(f"{path}: is not a run store, so it is not replaced; move it away first")
    if not is_store and (path.is_symlink() or not path.is_file()):
        raise OutputExists(
            f"{path}: is not a plain file, so it is not replaced; move it away first"
        )


def _is_run_store(path: Path) -> bool:
    try:
        facts = json.loads((path / "zarr.json").read_text())
        found = facts["attributes"]["schema"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(found == SCHEMA) and not path.is_symlink()


@contextmanager
def staged(
    *, stores: Sequence[Path] = (), files: Sequence[Path] = (), overwrite: bool = False
) -> Iterator[dict[Path, Path]]:
    """Give hidden paths beside the final ones, and move all of them there when the block ends well.

    If the block raises, or one of them cannot be moved, none is: what was staged is removed and
    every final name is as it was.

    Parameters
    ----------
    stores, files : sequence of Path
        As `check_outputs` allowed them.
    overwrite : bool
        Whether what lies there may be replaced.

    Yields
    ------
    dict of Path to Path
        Hidden path of each final one.

    Raises
    ------
    OutputExists
        If something appeared under a final name meanwhile.
    OutputError
        If the disk is full or a folder cannot be written.
    """
    hidden = {final: hidden_name(final, PARTIAL) for final in (*stores, *files)}
    try:
        yield hidden
        for final, path in hidden.items():
            with output_errors(final):
                sync_tree(path)
            check_replaceable(final, is_store=final in stores, overwrite=overwrite)
        complete_moves(planned_moves(hidden, overwrite=overwrite), undo=True)
    except OutputError as error:
        raise under_final_names(error, hidden) from error
    finally:
        for path in hidden.values():
            remove(path)


def under_final_names(error: OutputError, hidden: Mapping[Path, Path]) -> OutputError:
    """Name outputs as people know them, not by their hidden names."""
    text = str(error)
    for final, path in hidden.items():
        text = text.replace(str(path), str(final))
    return type(error)(text)


def check_cxi_filter(name: str) -> None:
    """Refuse a filter that frames cannot be packed with.

    Raises
    ------
    UsageError
        If it is none of `CXI_FILTERS`.
    """
    if name not in CXI_FILTERS:
        raise UsageError(
            f"CXI filter: expected one of {', '.join(CXI_FILTERS)}, found '{name}'; choose one"
        )
