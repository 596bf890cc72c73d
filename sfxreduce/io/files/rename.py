"""Outputs that appear under their final names together: renames that can be undone or completed."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfxreduce.errors import OutputError, OutputExists
from sfxreduce.io.files.durable import interrupts_wait, output_errors, sync_folder

__all__ = ["Move", "complete_moves", "hidden_name", "planned_moves", "remove", "sync_tree"]

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
