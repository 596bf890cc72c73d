"""An output that is not finished, and what of it need not be done again.

It lies in a hidden folder beside the output's final name: a journal, the shards that were written
under names that tell their content, and the store that they will be part of. A program that is
killed at any moment leaves that folder; the same command goes on from there.
"""

from __future__ import annotations

import hashlib
import time
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from glob import escape
from pathlib import Path
from typing import Any

from sfxreduce.errors import OutputError, RefusedError, SfxReduceError, VerificationError
from sfxreduce.io.files.durable import PARTIAL, output_errors, sweep_partial
from sfxreduce.io.files.journal import Entry, Journal, open_journal, read_journal
from sfxreduce.io.writers.publish import (
    Move,
    check_replaceable,
    complete_moves,
    planned_moves,
    remove,
    sync_tree,
    under_final_names,
)
from sfxreduce.io.writers.shards import ShardWritten

__all__ = [
    "Unfinished",
    "appearing",
    "moves_under_way",
    "sweep_finished",
    "unfinished",
    "unfinished_folder",
]

JOURNAL = "journal.jsonl"
NOTE_SECONDS = 1.0
"""What was done in this time is acknowledged together: a line of the journal is a wait for the
disk, and a run has tens of thousands of tasks."""

NOTE_BYTES = 256_000


class Unfinished:
    """What is there of an output; made by `unfinished`.

    Parameters
    ----------
    hidden : mapping of Path to Path
        Where each output is made until all of them are complete.
    """

    def __init__(self, folder: Path, journal: Journal, hidden: Mapping[Path, Path]) -> None:
        self.folder = folder
        self.hidden = dict(hidden)
        self.store = next(iter(self.hidden))
        self._journal = journal
        self._notes: dict[str, dict[int, bytes]] = {}
        self._shards: dict[str, ShardWritten] = {}
        self._waiting: list[dict[str, Any]] = []
        self._waiting_bytes = 0
        self._acknowledged = time.monotonic()
        self._may_appear = False
        for entry in journal.entries:
            self._recall(entry.body)

    @property
    def shards_folder(self) -> Path:
        """Where tasks write shards."""
        return self.folder / "shards"

    @property
    def pins(self) -> Mapping[str, Any]:
        """Everything the output depends on."""
        pins: Mapping[str, Any] = self._journal.entries[0].body["begin"]
        return pins

    @property
    def published(self) -> bool:
        """Whether all outputs were complete before, and only their appearing was cut off."""
        return bool(moves_under_way(self._journal.entries))

    @property
    def may_appear(self) -> bool:
        """Whether the journal may say that the outputs are appearing: a line of it that could not
        be brought to the disk may be there all the same.
        """
        return self._may_appear or self.published

    @property
    def begun(self) -> bool:
        """Whether anything is there that need not be done again."""
        return bool(self._notes or self._shards)

    @property
    def shards(self) -> Mapping[str, ShardWritten]:
        """Shards that are there whole, by their place in the store."""
        return {
            path: shard
            for path, shard in self._shards.items()
            if _has_size(self.shards_folder / shard.written, shard.size)
        }

    def noted(self, stage: str) -> Mapping[int, bytes]:
        """Return what the parts of a stage came to: see `sfxreduce.cluster.pool.Notes`."""
        return dict(self._notes.get(stage, {}))

    def note(self, stage: str, number: int, data: bytes) -> None:
        """Take down what a part of a stage came to."""
        text = b64encode(data).decode("ascii")
        self._wait({"note": [stage, number, text]}, n_bytes=len(text))

    def keep(self, shard: ShardWritten) -> None:
        """Take down that a shard was written.

        Raises
        ------
        VerificationError
            If it was written before and held something else.
        """
        before = self._shards.get(shard.path)
        same_events = before is not None and before.event_list == shard.event_list
        if before and same_events and before.digest != shard.digest:
            raise VerificationError(
                f"{self.shards_folder}: {shard.path} came out differently than before; nothing was "
                "published, check this machine's memory and the source's disk"
            )
        self._wait({"shard": asdict(shard)}, n_bytes=500)

    def discard(self, shard: ShardWritten) -> None:
        """Remove a shard that holds other events than are wanted now."""
        with output_errors(self.store):
            remove(self.shards_folder / shard.written)

    def acknowledge(self) -> None:
        """Bring to the disk what was taken down so far."""
        if self._waiting:
            done, self._waiting, self._waiting_bytes = self._waiting, [], 0
            self._journal.append({"done": done})
        self._acknowledged = time.monotonic()

    def _wait(self, done: dict[str, Any], *, n_bytes: int) -> None:
        self._recall({"done": [done]})
        self._waiting.append(done)
        self._waiting_bytes += n_bytes
        late = time.monotonic() - self._acknowledged > NOTE_SECONDS
        if late or self._waiting_bytes > NOTE_BYTES:
            self.acknowledge()

    def _recall(self, body: Mapping[str, Any]) -> None:
        for done in body.get("done", ()):
            if "note" in done:
                stage, number, text = done["note"]
                self._notes.setdefault(stage, {})[number] = b64decode(text)
            else:
                shard = _shard_from_json(done["shard"])
                self._shards[shard.path] = shard

    def place_shards(self, shards: Iterable[ShardWritten]) -> None:
        """Give shards their places in the store that is being made.

        Raises
        ------
        OutputError
            If one of them cannot be moved.
        """
        self.acknowledge()
        with output_errors(self.store):
            for shard in shards:
                place = self.hidden[self.store] / shard.path
                place.parent.mkdir(parents=True, exist_ok=True)
                (self.shards_folder / shard.written).rename(place)

    def take_back(self) -> None:
        """Make ready to go on: shards back from the store, and nothing half-written."""
        for path, shard in self._shards.items():
            place, home = self.hidden[self.store] / path, self.shards_folder / shard.written
            if place.is_file():
                home.parent.mkdir(parents=True, exist_ok=True)
                place.rename(home)
        for hidden in self.hidden.values():
            remove(hidden)
            for torn in hidden.parent.glob(f".{escape(hidden.name)}.*{PARTIAL}"):
                torn.unlink()
        self.shards_folder.mkdir(exist_ok=True)
        sweep_partial(self.shards_folder)

    def publish(self, *, overwrite: bool) -> None:
        """Let all outputs appear under their names.

        The intent is in the journal first: if this is cut off, the same command completes it.

        Raises
        ------
        OutputExists
            If something appeared under a final name meanwhile.
        OutputError
            If one of them cannot be moved; then none is.
        """
        self.acknowledge()
        for final, path in self.hidden.items():
            with output_errors(final):
                sync_tree(path)
            check_replaceable(final, is_store=final == self.store, overwrite=overwrite)
        moves = planned_moves(self.hidden, overwrite=overwrite)
        self._may_appear = True
        self._journal.append({"appear": [move.to_json() for move in moves]})
        try:
            complete_moves(moves, undo=True)
        except OutputError:
            self._journal.append({"appear": []})
            self._may_appear = False
            raise

    def complete(self) -> None:
        """Go on with outputs that were appearing when a program was cut off.

        Raises
        ------
        OutputError
            If one of them cannot be moved, or is no longer there.
        """
        complete_moves(moves_under_way(self._journal.entries), undo=False)


def unfinished_folder(store: Path) -> Path:
    """Where a store lies until it is finished."""
    name = store.name
    if len(name) > 80:
        name = f"{name[:60]}.{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    # Workers elsewhere have folders of their own.
    return store.parent.resolve() / f".{name}.unfinished"


def appearing(store: Path) -> list[Path]:
    """Outputs of an unfinished run that were appearing under their names when it was cut off."""
    journal = unfinished_folder(store) / JOURNAL
    try:
        entries = read_journal(journal)
    except SfxReduceError:
        return []
    return [move.final for move in moves_under_way(entries)]


def sweep_finished(store: Path) -> None:
    """Remove the folder that a program left empty that was cut off right after it had finished."""
    if store.exists():
        with suppress(OSError):  # what is not empty stays
            unfinished_folder(store).rmdir()


@contextmanager
def unfinished(
    store: Path, *, files: Sequence[Path] = (), pins: Mapping[str, Any], overwrite: bool = False
) -> Iterator[Unfinished]:
    """Begin an output or go on with it, and let it appear when the block ends well.

    Where the block raises, what is done stays in a hidden folder beside the final name; a folder
    with nothing in it is removed.

    Parameters
    ----------
    store : Path
        A run store.
    files : sequence of Path
        Single files that appear together with it.
    pins : mapping
        Everything the output depends on, by the name people know it by; plain JSON.
    overwrite : bool
        Whether outputs may be replaced, and an unfinished one of other pins begun anew.

    Raises
    ------
    RefusedError
        If an unfinished output is there that other pins were given for.
    OutputError
        If another process is at work on it, or the disk is full.
    VerificationError
        If its journal was changed.
    """
    folder = unfinished_folder(store)
    hidden = {store: folder / "store", **{file: unfinished_folder(file) for file in files}}
    with ExitStack() as stack:
        journal = _journal(stack, store, folder, pins, overwrite=overwrite)
        work = Unfinished(folder, journal, hidden)
        try:
            if work.published:
                _check_asked_for(work)
            else:
                with output_errors(store):
                    work.take_back()
            yield work
            if work.published:
                work.complete()
            else:
                work.publish(overwrite=overwrite)
        except BaseException as error:
            _leave(work)
            if isinstance(error, OutputError):
                raise under_final_names(error, hidden) from error
            raise
        # The outputs are complete: a folder that stays does not make them less so, and the same
        # command would remove it.
        with suppress(OSError):
            _remove_folder(folder)


def _check_asked_for(work: Unfinished) -> None:
    """Refuse to complete outputs together with one that was not made with them."""
    made = appearing(work.store)
    for final in work.hidden:
        if final.absolute() not in made:
            raise RefusedError(
                f"{final}: was not asked for when {work.store} was made, which is complete and has "
                "only to appear; give the same command as then, without this output"
            )


def _leave(work: Unfinished) -> None:
    """Leave what is done for the same command to go on with; nothing else."""
    with suppress(OutputError):  # on a full disk these parts will be done again
        work.acknowledge()
    if work.may_appear:
        return
    for path in list(work.hidden.values())[1:]:
        remove(path)
    if not work.begun:
        _remove_folder(work.folder)


def _journal(
    stack: ExitStack, store: Path, folder: Path, pins: Mapping[str, Any], *, overwrite: bool
) -> Journal:
    """Open the journal of an output, begun with these pins or to be begun with them."""
    for attempt in range(2):
        with output_errors(store):
            folder.mkdir(exist_ok=True)
        try:
            with ExitStack() as opened:
                journal = opened.enter_context(open_journal(folder / JOURNAL))
                if not journal.entries:
                    journal.append({"begin": dict(pins)})
                # Of one that did no more than begin nothing is lost.
                overwrite = overwrite or len(journal.entries) == 1
                _check_pins(store, folder, journal.entries[0].body, pins)
                stack.push(opened.pop_all())
                return journal
        except (RefusedError, VerificationError):
            if attempt or not overwrite:
                raise
        _remove_folder(folder)
    raise AssertionError  # pragma: no cover - the second attempt returns or raises


def _check_pins(
    store: Path, folder: Path, begun: Mapping[str, Any], pins: Mapping[str, Any]
) -> None:
    before = begun.get("begin", {})
    changed = [name for name in {**pins, **before} if before.get(name) != pins.get(name)]
    if changed:
        name, now = changed[0], pins.get(changed[0])
        raise RefusedError(
            f"{store}: an unfinished output is there, but its {', '.join(changed)} changed "
            f"(expected {name} {before.get(name)}, found {now}); give it as before to go "
            f"on, pass --overwrite to begin anew, or remove {folder}"
        )


def moves_under_way(entries: Sequence[Entry]) -> list[Move]:
    """Moves of outputs that were appearing when the last line was written; none if none were."""
    for entry in reversed(entries):
        if "appear" in entry.body:
            return [Move.from_json(facts) for facts in entry.body["appear"]]
    return []


def _shard_from_json(facts: Mapping[str, Any]) -> ShardWritten:
    lists = {name: tuple(facts[name]) for name in ("holes", "payloads", "unstable")}
    return ShardWritten(**{**facts, **lists})


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _remove_folder(folder: Path) -> None:
    """Remove all of an unfinished output; its journal last, so that it never lacks its end."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name.startswith(JOURNAL)):
        if not path.name.startswith(JOURNAL):
            remove(path)
    (folder / f"{JOURNAL}.head").unlink(missing_ok=True)
    remove(folder)
