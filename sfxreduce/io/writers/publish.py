"""Outputs that appear under their final names together, and what may lie in their way."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfxreduce.errors import (
    OutputError,
    OutputExists,
    RefusedError,
    SfxReduceError,
    UsageError,
    VerificationError,
)
from sfxreduce.io.files.durable import (
    TOKEN_BYTES,
    UNFINISHED,
    hidden_folder,
    hidden_folders,
    interrupts_wait,
    is_token,
    output_errors,
    sweep_partial,
    sync_folder,
    why_not_ours,
)
from sfxreduce.io.files.journal import LINE_BYTES, Entry, Journal, open_journal
from sfxreduce.io.files.safe_read import open_file, parse_json
from sfxreduce.io.store.names import SCHEMA

__all__ = [
    "CXI_FILTERS",
    "CXI_LAYOUTS",
    "JOURNAL",
    "Move",
    "Staging",
    "begin_staging",
    "check_cxi_filter",
    "check_cxi_layout",
    "check_outputs",
    "check_replaceable",
    "complete_moves",
    "exchange",
    "finish",
    "kind_of",
    "moves_under_way",
    "one_at_a_time",
    "planned_moves",
    "recover",
    "recover_in",
    "remove",
    "remove_hidden",
    "staged",
    "strays_in",
    "sync_tree",
    "under_final_names",
]

JOURNAL = "journal.jsonl"
STAGED = "staged"
"""Kind of a hidden folder that holds nothing to go on with."""

REMOVE_ATTEMPTS = 6

LOCK_ATTEMPTS = 40
LOCK_SECONDS = 0.05
"""Two seconds together; what they are waited for takes a few fsyncs."""

AT_FDCWD, RENAME_NOREPLACE, RENAME_EXCHANGE = -100, 1, 2
"""As in ``linux/fcntl.h`` and ``linux/fs.h``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One output and its way to its name.

    Parameters
    ----------
    inode : int
        Of what is to appear: it tells on which side of the move it is after a cut-off.
    replaces : bool
        Whether something was under the name that it may replace.
    """

    hidden: Path
    final: Path
    inode: int
    replaces: bool

    @property
    def old(self) -> Path:
        """Where what it replaces goes, on file systems that cannot swap two names at once."""
        return self.hidden.with_name(f"{self.hidden.name}.old")


def planned_moves(hidden: Mapping[Path, Path], *, overwrite: bool) -> list[Move]:
    """Plan the moves of all outputs; what lies under a name is replaced if it may be."""
    return [
        Move(
            hidden=path,
            final=final,
            inode=path.lstat().st_ino,
            replaces=overwrite and os.path.lexists(final),
        )
        for final, path in hidden.items()
    ]


def complete_moves(moves: Sequence[Move], *, undo: bool) -> None:
    """Do those of the moves that are not done yet. What they replace stays hidden.

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


def _do(move: Move) -> None:
    there, hidden = os.path.lexists(move.final), os.path.lexists(move.hidden)
    if _inode(move.final) == move.inode or (there and not hidden and not move.replaces):
        return
    # In a copy of the folder inodes are others: what is hidden may be the old output or the new.
    if not hidden or (there and _inode(move.hidden) != move.inode):
        raise RefusedError(
            f"{move.final}: was complete and is gone, or its folder was copied from another disk; "
            "pass --overwrite to begin anew"
        )
    if not there or not move.replaces:
        _rename_to_free_name(move.hidden, move.final)
    elif not exchange(move.hidden, move.final):
        move.final.rename(move.old)
        _rename_to_free_name(move.hidden, move.final)
    sync_folder(move.final.parent)
    sync_folder(move.hidden.parent)


def _undo(done: Sequence[Move]) -> None:
    """Undo renames, the last one first."""
    for move in reversed(done):
        appeared = _inode(move.final) == move.inode
        if appeared and os.path.lexists(move.hidden):
            exchange(move.hidden, move.final)
            continue
        if appeared:
            move.final.rename(move.hidden)
        if os.path.lexists(move.old) and not os.path.lexists(move.final):
            move.old.rename(move.final)


def _inode(path: Path) -> int:
    """Number that tells a file or folder from others on its disk; 0 if nothing lies there."""
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return 0


def _rename_to_free_name(path: Path, final: Path) -> None:
    """Give a name to an output; what took the name since it was looked at is not replaced.

    Raises
    ------
    OutputExists
        If something lies under the name.
    """
    try:
        if rename_flagged(path, final, RENAME_NOREPLACE):
            return
        if path.is_dir():  # rename(2) replaces empty folders alone, and no file by a folder
            path.rename(final)
            return
        final.hardlink_to(path)
        path.unlink()
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        raise OutputExists(
            f"{final}: already exists, it was not there before; move it away to go on"
        ) from error


def exchange(one: Path, other: Path) -> bool:
    """Swap what lies under two names, at once; False where system or disk cannot."""
    return rename_flagged(one, other, RENAME_EXCHANGE)


def rename_flagged(one: Path, other: Path, flags: int) -> bool:
    """Rename as Linux can since 3.15; False where system or disk cannot, as NFS and Lustre."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


class Staging:
    """Outputs that are made where nobody looks, and appear together; made by `begin_staging`.

    All of it lies in one hidden folder beside the first output, and in one of the same name beside
    each output that lies elsewhere.

    Parameters
    ----------
    finals : sequence of Path
        Names under which the outputs appear; the first one gives the folder its name.
    """

    def __init__(self, folder: Path, journal: Journal, finals: Sequence[Path]) -> None:
        self.folder = folder
        self.journal = journal
        self.first = finals[0]
        self.hidden = {self.first: folder / "output"}
        for final in finals[1:]:
            self.hidden[final] = self._beside(final) / "files" / final.name
        self._may_appear = False

    @property
    def appearing(self) -> Mapping[str, tuple[int, bool]]:
        """Inode of each output that was appearing, and whether it replaces one, by its name."""
        return moves_under_way(self.journal.entries)

    @property
    def may_appear(self) -> bool:
        """Whether the journal may say that the outputs are appearing: a line of it that could not
        be brought to the disk may be there all the same.
        """
        return self._may_appear or bool(self.appearing)

    @property
    def appeared(self) -> bool:
        """Whether all outputs have their names."""
        made = self.appearing
        return bool(made) and all(
            self._name(final) in made and _inode(final) == made[self._name(final)][0]
            for final in self.hidden
        )

    def clear(self, stack: ExitStack) -> None:
        """Remove what was made of the outputs, and make ready to make them anew.

        Parameters
        ----------
        stack : ExitStack
            Holds the locks on folders beside other outputs.

        Raises
        ------
        OutputError
            If a folder beside another output is not ours, or cannot be made.
        """
        token = self.folder.name[-2 * TOKEN_BYTES :]
        for folder in {self._beside(final): None for final in self.hidden}:
            if folder == self.folder:
                continue
            if not os.path.lexists(folder):
                hidden_folder(folder.parent / self.first.name, token)
            if why := why_not_ours(folder):
                raise OutputError(f"{folder}: {why}; remove it, or choose another output path")
            journal = stack.enter_context(open_journal(folder / JOURNAL))
            if not journal.entries:
                journal.append({"kind": "beside", "begin": {}})
        for final, path in self.hidden.items():
            with output_errors(final):
                path.parent.mkdir(exist_ok=True)
                remove(path)
                remove(path.with_name(f"{path.name}.old"))

    def appear(self, *, overwrite: bool, is_ours: Callable[[Path], bool] | None = None) -> None:
        """Let all outputs appear under their names.

        The intent is in the journal first: if this is cut off, the same command completes it.

        Parameters
        ----------
        is_ours : callable, optional
            As for `check_replaceable`.

        Raises
        ------
        OutputExists
            If something appeared under a final name meanwhile.
        OutputError
            If one of them cannot be moved; then none is.
        """
        for final, path in self.hidden.items():
            with output_errors(final):
                sync_tree(path)
            check_replaceable(final, is_store=path.is_dir(), overwrite=overwrite, is_ours=is_ours)
        for folder in {self._beside(final): None for final in self.hidden}:
            if why := why_not_ours(folder):
                raise OutputError(f"{folder}: {why}; nothing was published, start again")
        moves = planned_moves(self.hidden, overwrite=overwrite)
        self._may_appear = True
        names = [[self._name(move.final), move.inode, move.replaces] for move in moves]
        self.journal.append({"appear": names})
        try:
            complete_moves(moves, undo=True)
        except OutputError:
            self.journal.append({"appear": []})
            self._may_appear = False
            raise

    def complete(self) -> None:
        """Go on with outputs that were appearing when a program was cut off.

        Raises
        ------
        RefusedError
            If the journal names other outputs than these, or one of them is no longer there.
        OutputError
            If one of them cannot be moved.
        """
        asked = {self._name(final): final for final in self.hidden}
        made = self.appearing
        for name in sorted(set(asked) ^ set(made)):
            raise RefusedError(
                f"{asked.get(name, name)}: was {'not ' if name in asked else ''}asked for when "
                f"{self.first} was made, which is complete and has only to appear; give the same "
                "command as then"
            )
        moves = [
            Move(hidden=self.hidden[final], final=final, inode=inode, replaces=replaces)
            for final, (inode, replaces) in ((asked[name], made[name]) for name in made)
        ]
        complete_moves(moves, undo=False)

    def remove(self, *, all_of_it: bool = True) -> None:
        """Remove it, or only what can be made anew of what the journal holds."""
        for final, path in self.hidden.items():
            if self._beside(final) != self.folder:
                remove_hidden(self._beside(final))
            elif final != self.first:
                remove(path)
        if all_of_it:
            remove_hidden(self.folder)

    def _beside(self, final: Path) -> Path:
        return final.parent.resolve() / self.folder.name

    def _name(self, final: Path) -> str:
        """Name of an output seen from the folder's own: it stays true on another mount."""
        return os.path.relpath(final.parent.resolve() / final.name, self.folder.parent)


def begin_staging(
    stack: ExitStack, finals: Sequence[Path], *, kind: str, pins: Mapping[str, Any]
) -> Staging:
    """Make a hidden folder for outputs, with a journal that this process alone adds to.

    Raises
    ------
    OutputError
        If it cannot be made.
    """
    folder = hidden_folder(finals[0])
    journal = stack.enter_context(open_journal(folder / JOURNAL))
    journal.append({"kind": kind, "begin": dict(pins)})
    return Staging(folder, journal, finals)


def moves_under_way(entries: Sequence[Entry]) -> dict[str, tuple[int, bool]]:
    """Inode of each output that was appearing when the last line was written, and whether it
    replaces one, by its name.

    Raises
    ------
    VerificationError
        If the line is not one of ours.
    """
    for entry in reversed(entries):
        if "appear" in entry.body:
            try:
                rows = [(str(n), int(i), bool(replaces)) for n, i, replaces in entry.body["appear"]]
            except (ValueError, TypeError) as error:
                raise VerificationError(
                    f"{JOURNAL}: line {entry.number + 1} is not as 'sfxreduce' writes it; the "
                    "journal is not to be trusted"
                ) from error
            return {name: (inode, replaces) for name, inode, replaces in rows}
    return {}


def recover(final: Path) -> None:
    """Remove what a command that was killed left of an output; the name shows the old or the new.

    What another command is at work on stays, and so does what `filter` can go on with.
    """
    _finish_staged(hidden_folders(final))


def recover_in(folder: Path) -> None:
    """Remove what killed commands left of any output in a folder that this program keeps."""
    left = sorted(folder.glob(f".*{UNFINISHED}*"))
    _finish_staged(path for path in left if is_token(path.name[-2 * TOKEN_BYTES :]))
    sweep_partial(folder)


def _finish_staged(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(SfxReduceError, OSError):
            kind = kind_of(folder)
            if kind == STAGED or (not kind and not strays_in(folder)):
                finish(folder)


def finish(folder: Path, *, dry_run: bool = False) -> None:
    """Remove the hidden folder of a command that was killed.

    Nothing is published: an output that had its name keeps it, and one that was set aside for it is
    put back.

    Parameters
    ----------
    dry_run : bool
        Only look whether that may be done.

    Raises
    ------
    OutputError
        If it is not ours, or another command is at work on it.
    RefusedError
        If it holds a complete output of `filter` that has only to appear.
    """
    if why := why_not_ours(folder):
        raise OutputError(f"{folder}: {why}; it is left alone")
    with ExitStack() as stack:
        journal = stack.enter_context(open_journal(folder / JOURNAL))
        names = [name for name in moves_under_way(journal.entries) if Path(name).name == name]
        staging = Staging(folder, journal, [folder.parent / name for name in names] or [folder])
        if names and journal.entries[0].body["kind"] != STAGED and not staging.appeared:
            raise RefusedError(
                "is complete and has only to appear; give the command that made it again"
            )
        if dry_run:
            return
        with output_errors(folder):
            for final, path in staging.hidden.items():
                old = path.with_name(f"{path.name}.old")
                if names and os.path.lexists(old) and not os.path.lexists(final):
                    old.rename(final)
            remove_hidden(folder)


def strays_in(folder: Path) -> list[str]:
    """Names in a hidden folder that a command has no right to before its journal has a line."""
    return [path.name for path in folder.iterdir() if JOURNAL not in path.name]


def kind_of(folder: Path) -> str:
    """Kind of a hidden folder, by the first line of its journal; empty if there is none."""
    try:
        with open_file(folder / JOURNAL, follow=False) as file:
            facts = parse_json(file.readline(LINE_BYTES))
        return str(facts["body"]["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def remove_hidden(folder: Path) -> None:
    """Remove a hidden folder; its journal last, so that it never lacks its end."""
    if why_not_ours(folder):
        return
    for path in folder.iterdir():
        if not path.name.startswith(JOURNAL):
            remove(path)
    (folder / f"{JOURNAL}.head").unlink(missing_ok=True)
    remove(folder)


@contextmanager
def one_at_a_time(final: Path) -> Iterator[None]:
    """Look for hidden folders of an output, and make one, while no other program does.

    Where folders cannot be locked, or somebody keeps this one locked, nothing is waited for: what
    two programs make then, appears once.
    """
    with output_errors(final):
        descriptor = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(LOCK_ATTEMPTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOCK_SECONDS)
            except OSError:
                break
            else:
                break
        yield
    finally:
        os.close(descriptor)


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
CXI_LAYOUTS = ("modules", "slab")
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
            recover(output)
            if output.absolute() not in appearing:
                check_replaceable(output, is_store=output in stores, overwrite=overwrite)


def check_replaceable(
    path: Path,
    *,
    is_store: bool,
    overwrite: bool,
    is_ours: Callable[[Path], bool] | None = None,
) -> None:
    """Refuse to replace anything but an older output of the same kind, and that if told to.

    Parameters
    ----------
    is_ours : callable, optional
        Whether a folder is such an output; a run store if not given.

    Raises
    ------
    OutputExists
        If something lies there that may not be replaced.
    """
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise OutputExists(f"{path}: already exists; choose another path or pass --overwrite")
    if is_store and not (is_ours or _is_run_store)(path):
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
    *,
    stores: Sequence[Path] = (),
    files: Sequence[Path] = (),
    overwrite: bool = False,
    is_ours: Callable[[Path], bool] | None = None,
) -> Iterator[dict[Path, Path]]:
    """Give hidden paths for outputs, and move all of them to their names when the block ends well.

    If the block raises, or one of them cannot be moved, none is: what was staged is removed and
    every final name is as it was.

    Parameters
    ----------
    stores, files : sequence of Path
        As `check_outputs` allowed them.
    overwrite : bool
        Whether what lies there may be replaced.
    is_ours : callable, optional
        As for `check_replaceable`.

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
    finals = (*stores, *files)
    with ExitStack() as stack:
        with one_at_a_time(finals[0]):
            staging = begin_staging(stack, finals, kind=STAGED, pins={})
        try:
            staging.clear(stack)
            yield staging.hidden
            staging.appear(overwrite=overwrite, is_ours=is_ours)
        except OutputError as error:
            raise under_final_names(error, staging.hidden) from error
        finally:
            if staging.appeared or not staging.may_appear:
                staging.remove()


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


def check_cxi_layout(name: str) -> None:
    """Refuse a layout of panels that is not known.

    Raises
    ------
    UsageError
        If it is none of `CXI_LAYOUTS`.
    """
    if name not in CXI_LAYOUTS:
        raise UsageError(
            f"CXI layout: expected one of {', '.join(CXI_LAYOUTS)}, found '{name}'; choose one"
        )
