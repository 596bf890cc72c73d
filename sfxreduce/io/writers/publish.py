"""Outputs that appear under their final names together, and what may lie in their way."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sfxreduce.errors import OutputError, OutputExists, UsageError
from sfxreduce.io.files.durable import PARTIAL, interrupts_wait, output_errors, sync_folder
from sfxreduce.io.store.metadata import SCHEMA

__all__ = [
    "CXI_FILTERS",
    "Move",
    "check_cxi_filter",
    "check_outputs",
    "check_replaceable",
    "complete_moves",
    "hidden_name",
    "planned_moves",
    "remove",
    "staged",
    "sync_tree",
    "under_final_names",
]

REMOVE_ATTEMPTS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One output and its way to its name.

    Parameters
    ----------
    old : Path or None
        Where what it replaces goes until all is done.
    """

    hidden: Path
    final: Path
    old: Path | None

    def to_json(self) -> list[str]:
        """Return the same as a JSON list."""
        return [str(self.hidden), str(self.final), str(self.old or "")]

    @classmethod
    def from_json(cls, facts: Sequence[str]) -> Move:
        """Read what `to_json` gave."""
        hidden, final, old = facts
        return cls(hidden=Path(hidden), final=Path(final), old=Path(old) if old else None)


def planned_moves(hidden: Mapping[Path, Path], *, overwrite: bool) -> list[Move]:
    """Plan the moves of all outputs; what lies under a name is set aside if it may be replaced."""
    return [
        Move(
            hidden=path,
            final=final.absolute(),
            old=hidden_name(final, ".old") if overwrite and os.path.lexists(final) else None,
        )
        for final, path in hidden.items()
    ]


def complete_moves(moves: Sequence[Move], *, undo: bool) -> None:
    """Do those of the moves that are not done yet; what they replace is removed after that.

    Parameters
    ----------
    undo : bool
        Undo all of them if one fails.

    Raises
    ------
    OutputError
        If one of them fails.
    """
    done: list[Move] = []
    with interrupts_wait():
        try:
            for move in moves:
                with output_errors(move.final):
                    done.append(move)
                    _do(move)
        except OutputError:
            if undo:
                _undo(done)
            raise
    for move in moves:
        if move.old:
            remove(move.old)


def _do(move: Move) -> None:
    if os.path.lexists(move.hidden):
        if move.old and os.path.lexists(move.final) and not os.path.lexists(move.old):
            move.final.rename(move.old)
        if os.path.lexists(move.final):
            raise OutputExists(
                f"{move.final}: already exists, it was not there before; move it away to go on"
            )
        move.hidden.rename(move.final)
    elif not os.path.lexists(move.final):
        raise OutputError(
            f"{move.final}: was complete and is gone, or its folder was moved; pass --overwrite to "
            "begin anew"
        )
    sync_folder(move.final.parent)


def _undo(done: Sequence[Move]) -> None:
    """Undo renames, the last one first."""
    for move in reversed(done):
        if os.path.lexists(move.final) and not os.path.lexists(move.hidden):
            move.final.rename(move.hidden)
        if move.old and os.path.lexists(move.old):
            move.old.rename(move.final)


def hidden_name(final: Path, suffix: str) -> Path:
    """Name beside the final one; absolute, because workers elsewhere have folders of their own."""
    return final.parent.resolve() / f".{final.name[:80]}.{uuid.uuid4().hex[:12]}{suffix}"


def sync_tree(path: Path) -> None:
    """Bring folders and files to the disk; children first, so that no name outlives its bytes."""
    if path.is_dir():
        for child in path.iterdir():
            sync_tree(child)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
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
