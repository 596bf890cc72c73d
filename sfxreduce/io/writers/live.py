"""Hits of a run that is still being followed, a store for each batch, and the journal of it all.

The stores lie in the group ``OUT.live`` beside the output, which is removed when that appears. The
journal lies in a hidden folder. An event counts as seen once the journal has its batch: what a
program that was killed had made of another one is removed and made again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import zarr
from zarr.storage import LocalStore

from sfxreduce.errors import (
    OutputError,
    OutputExists,
    RefusedError,
    SfxReduceError,
    VerificationError,
)
from sfxreduce.io.files.durable import hidden_folder, hidden_folders, output_errors
from sfxreduce.io.files.journal import Entry, Journal, open_journal, read_journal
from sfxreduce.io.store.provisional import PROVISIONAL, is_provisional, mark_provisional
from sfxreduce.io.writers.publish import JOURNAL, kind_of, one_at_a_time, remove, remove_hidden

__all__ = ["LiveHits", "begun_final", "live_hits", "live_path"]

KIND = "follow"
"""Of a hidden folder with the journal of a run that is followed."""

WORDS = "hits so far of a run that is still being followed; removed when the output is complete"


def live_path(store: Path) -> Path:
    """Where the hits so far appear while an output is not there.

    Examples
    --------
    >>> live_path(Path("hits.zarr")).name
    'hits.zarr.live'
    """
    return store.with_name(f"{store.name}.live")


class LiveHits:
    """What was made of a run that is followed; made by `live_hits`."""

    def __init__(self, place: Path, folder: Path, journal: Journal) -> None:
        self.place = place
        self.folder = folder
        self._journal = journal

    @property
    def batches(self) -> Sequence[Mapping[str, Any]]:
        """What was noted of each batch, in order."""
        return [e.body["batch"] for e in self._journal.entries if "batch" in e.body]

    @property
    def finishing(self) -> Mapping[str, Any]:
        """What was noted when the final output was begun; empty if it was not."""
        return _finishing(self._journal.entries)

    @property
    def staged(self) -> Path:
        """Where the store of the next batch is made."""
        return self.folder / "batch"

    def keep(self, facts: Mapping[str, Any]) -> None:
        """Take a batch down; its store, if one was made, appears.

        Parameters
        ----------
        facts : mapping
            Plain JSON.

        Raises
        ------
        OutputError
            If that cannot be written.
        """
        with output_errors(self.place):
            if self.staged.is_dir():
                mark_provisional(self.staged, WORDS)
                self.staged.rename(self.place / _name(len(self.batches)))
        self._journal.append({"batch": dict(facts)})

    def clear_staged(self) -> None:
        """Remove what was made of a batch that came to nothing."""
        with output_errors(self.place):
            remove(self.staged)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Take down that the final output is begun, and of what."""
        self._journal.append({"finish": dict(facts)})

    def remove(self) -> None:
        """Remove the hits and the journal: the output is there."""
        with output_errors(self.place):
            if os.path.lexists(self.place):
                self.place.rename(self.folder / "old")  # gone at once, whatever happens next
            remove_hidden(self.folder)

    def leave(self) -> None:
        """Leave what was followed for the same command to go on with; nothing, if nothing was."""
        if len(self._journal.entries) == 1:
            with suppress(OutputError):
                self.remove()

    def make_ready(self) -> None:
        """Make the group if it is not there, and remove what no line of the journal speaks of."""
        with output_errors(self.place):
            remove(self.staged)
            if not os.path.lexists(self.place):
                made = self.folder / "group"
                remove(made)
                zarr.create_group(LocalStore(made), attributes={PROVISIONAL: WORDS})
                made.rename(self.place)
            known = {_name(number) for number in range(len(self.batches))}
            for path in self.place.iterdir():
                if path.is_dir() and path.name not in known:
                    remove(path)


def begun_final(store: Path) -> Mapping[str, Any]:
    """What was noted when an output was begun after a run was followed; empty if it was not."""
    for folder in hidden_folders(live_path(store)):
        with suppress(SfxReduceError):
            if kind_of(folder) == KIND and (noted := _finishing(read_journal(folder / JOURNAL))):
                return noted
    return {}


def _finishing(entries: Sequence[Entry]) -> Mapping[str, Any]:
    noted = (entry.body["finish"] for entry in reversed(entries) if "finish" in entry.body)
    found: Mapping[str, Any] = next(noted, {})
    return found


def _name(number: int) -> str:
    return f"batch-{number:06}"


@contextmanager
def live_hits(store: Path, *, pins: Mapping[str, Any], overwrite: bool) -> Iterator[LiveHits]:
    """Begin to follow a run, or go on with it.

    Parameters
    ----------
    store : Path
        The output that will come of it.
    pins : mapping
        Everything the hits depend on, by the name people know it by; plain JSON.
    overwrite : bool
        Begin anew where something else was followed.

    Raises
    ------
    OutputExists
        If something lies under the name of the hits that is not such a group.
    RefusedError
        If another run, or other settings, were followed for the same output.
    OutputError
        If another process follows it, or nothing can be written.
    VerificationError
        If the journal was changed.
    """
    place = live_path(store)
    with ExitStack() as stack:
        with one_at_a_time(store):
            if os.path.lexists(place) and (place.is_symlink() or not is_provisional(place)):
                raise OutputExists(
                    f"{place}: hits would appear there, and something else lies there; move it "
                    "away, or choose another output path"
                )
            live = _begun(stack, store, place, pins, overwrite=overwrite)
            live.make_ready()
        try:
            yield live
        except BaseException:
            live.leave()
            raise


def _begun(
    stack: ExitStack, store: Path, place: Path, pins: Mapping[str, Any], *, overwrite: bool
) -> LiveHits:
    """Open what was begun with these pins, or begin it."""
    for folder in hidden_folders(place):
        if kind_of(folder) != KIND:
            with suppress(OutputError, OSError):
                remove_hidden(folder)  # nothing was noted yet
            continue
        try:
            with ExitStack() as opened:
                journal = opened.enter_context(open_journal(folder / JOURNAL))
                # Of one that did no more than begin nothing is lost.
                overwrite = overwrite or len(journal.entries) == 1
                _check_pins(store, folder, journal, pins)
                stack.push(opened.pop_all())
                return LiveHits(place, folder, journal)
        except (RefusedError, VerificationError):
            if not overwrite:
                raise
            remove_hidden(folder)
    with output_errors(place):
        remove(place)  # it has the mark, and no journal that says what it holds
    folder = hidden_folder(place)
    journal = stack.enter_context(open_journal(folder / JOURNAL))
    journal.append({"kind": KIND, "begin": dict(pins)})
    return LiveHits(place, folder, journal)


def _check_pins(store: Path, folder: Path, journal: Journal, pins: Mapping[str, Any]) -> None:
    before = journal.entries[0].body["begin"]
    changed = [name for name in {**pins, **before} if before.get(name) != pins.get(name)]
    if changed:
        name = changed[0]
        raise RefusedError(
            f"{store}: a run is being followed for it, but the {', '.join(changed)} changed "
            f"(expected {name} {before.get(name)}, found {pins.get(name)}); give it as before to "
            f"go on, pass --overwrite to begin anew, or remove {folder}"
        )
