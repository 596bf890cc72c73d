"""Outputs appear under their final name complete, or not at all.

Everything is written beside the final name, under a hidden one, brought to the disk, and renamed.
An interruption at any moment leaves the final name as it was.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sfxreduce.errors import OutputError, OutputExists, UsageError
from sfxreduce.io.files import PARTIAL, interrupts_wait, output_errors
from sfxreduce.io.schema import SCHEMA

__all__ = ["check_outputs", "staged"]

REMOVE_ATTEMPTS = 6


def check_outputs(
    *,
    stores: Sequence[Path] = (),
    files: Sequence[Path] = (),
    inputs: Sequence[Path] = (),
    overwrite: bool = False,
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
            _check_replaceable(output, is_store=output in stores, overwrite=overwrite)


def _check_replaceable(path: Path, *, is_store: bool, overwrite: bool) -> None:
    """Refuse to replace anything but an older output of the same kind, and that if told to."""
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
    hidden = {final: _hidden(final, PARTIAL) for final in (*stores, *files)}
    try:
        yield hidden
        for final, path in hidden.items():
            with output_errors(final):
                _sync_tree(path)
                _check_replaceable(final, is_store=final in stores, overwrite=overwrite)
        _move_all(hidden)
    except OutputError as error:
        # People know an output by the name they gave it.
        text = str(error)
        for final, path in hidden.items():
            text = text.replace(str(path), str(final))
        raise type(error)(text) from error
    finally:
        for path in hidden.values():
            _remove(path)


def _sync_tree(path: Path) -> None:
    """Bring folders and files to the disk; children first, so that no name outlives its bytes."""
    if path.is_dir():
        for child in path.iterdir():
            _sync_tree(child)
    _sync(path)


def _move_all(hidden: dict[Path, Path]) -> None:
    """Rename all to their final names or none; what they replace is removed after that."""
    moved: list[tuple[Path, Path, Path | None]] = []
    with interrupts_wait():
        try:
            for final, path in hidden.items():
                old = _hidden(final, ".old") if os.path.lexists(final) else None
                with output_errors(final):
                    if old:
                        final.rename(old)
                    moved.append((final, path, old))
                    path.rename(final)
                    _sync(final.parent)
        except OutputError:
            _move_back(moved)
            raise
    for _, _, old in moved:
        if old:
            _remove(old)


def _move_back(moved: list[tuple[Path, Path, Path | None]]) -> None:
    """Undo renames, the last one first."""
    for final, path, old in reversed(moved):
        if os.path.lexists(final):
            final.rename(path)
        if old:
            old.rename(final)


def _hidden(final: Path, suffix: str) -> Path:
    """Name beside the final one; absolute, because workers elsewhere have folders of their own."""
    return final.parent.resolve() / f".{final.name[:80]}.{uuid.uuid4().hex[:12]}{suffix}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a file or folder of our own making, if it is there.

    Tasks that were under way when a run was stopped may still be adding files to it.
    """
    for attempt in range(REMOVE_ATTEMPTS):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=attempt + 1 < REMOVE_ATTEMPTS)
        else:
            path.unlink(missing_ok=True)
        if not os.path.lexists(path):
            return
        time.sleep(0.05 * 2**attempt)
