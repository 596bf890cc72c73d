"""An output that is not finished, and what of it need not be done again.

It lies in a hidden folder beside the output's final name: a journal, the shards that were written
under names that tell their content, and the store that they will be part of. A program that is
killed at any moment leaves that folder; the same command goes on from there.
"""

from __future__ import annotations

import os
import time
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sfxreduce.errors import OutputError, RefusedError, SfxReduceError, VerificationError
from sfxreduce.io.files.durable import (
    hidden_folders,
    output_errors,
    sweep_partial,
    warn,
    why_not_ours,
)
from sfxreduce.io.files.journal import open_journal, read_journal
from sfxreduce.io.writers.publish import (
    JOURNAL,
    Staging,
    begin_staging,
    kind_of,
    moves_under_way,
    one_at_a_time,
    remove,
    remove_hidden,
    under_final_names,
)
from sfxreduce.io.writers.shards import ShardWritten

__all__ = ["IDENTITY", "JOURNAL", "Unfinished", "appearing", "unfinished", "unfinished_folder"]

KIND = "filter"
"""Of a hidden folder that can be gone on with; all others hold nothing worth it."""

IDENTITY = "identity"
"""Stage under which it is noted which files the source consisted of when the output was begun."""

NOTE_SECONDS = 1.0
"""What was done in this time is acknowledged together: a line of the journal is a wait for the
disk, and a run has tens of thousands of tasks."""

NOTE_BYTES = 256_000


class Unfinished:
    """What is there of an output; made by `unfinished`."""

    def __init__(self, staging: Staging) -> None:
        self.staging = staging
        self.folder = staging.folder
        self.hidden = staging.hidden
        self.store = staging.first
        self._journal = staging.journal
        self._notes: dict[str, dict[int, bytes]] = {}
        self._shards: dict[str, ShardWritten] = {}
        self._waiting: list[dict[str, Any]] = []
        self._waiting_bytes = 0
        self._acknowledged = time.monotonic()
        for entry in self._journal.entries:
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
        return bool(self.staging.appearing)

    @property
    def begun(self) -> bool:
        """Whether anything is there that need not be done again."""
        return bool(self._notes.keys() - {IDENTITY} or self._shards)

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

    def forget_after(self, stage: str) -> None:
        """Forget what rests on a stage: see `sfxreduce.cluster.pool.Notes`."""
        stages = list(self._notes)
        if later := stages[stages.index(stage) + 1 :]:
            self._wait({"forget": later}, n_bytes=100)

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
        """Remove a shard that holds other events than are wanted now, or holes."""
        with output_errors(self.store):
            remove(self.shards_folder / shard.written)
        self._shards.pop(shard.path, None)

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
            elif "forget" in done:
                for stage in done["forget"]:
                    self._notes.pop(stage, None)
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

    def take_back(self, stack: ExitStack) -> None:
        """Make ready to go on: shards back from the store, and nothing half-written.

        Parameters
        ----------
        stack : ExitStack
            As for `Staging.clear`.
        """
        for path, shard in self._shards.items():
            place, home = self.hidden[self.store] / path, self.shards_folder / shard.written
            if place.is_file():
                home.parent.mkdir(parents=True, exist_ok=True)
                place.rename(home)
        self.staging.clear(stack)
        self.shards_folder.mkdir(exist_ok=True)
        sweep_partial(self.shards_folder)


def unfinished_folder(store: Path) -> Path | None:
    """Hidden folder of an output that `filter` can go on with; None if there is none.

    Raises
    ------
    VerificationError
        If there is one, and its journal was changed.

    Warns
    -----
    SfxReduceWarning
        Of every older one.
    """
    newest, changed = None, None
    begun = [folder for folder in hidden_folders(store) if kind_of(folder) == KIND]
    for folder in sorted(begun, key=_written_ns, reverse=True):
        if newest is not None:
            warn(f"{folder}: is an older unfinished output and is left alone; 'sfxreduce clean' it")
            continue
        try:
            read_journal(folder / JOURNAL)
        except VerificationError as error:
            changed = error
        else:
            newest = folder
    if newest is None and changed:
        raise changed
    return newest


def _written_ns(folder: Path) -> int:
    try:
        return (folder / JOURNAL).stat().st_mtime_ns
    except OSError:
        return 0


def appearing(store: Path) -> list[Path]:
    """Outputs of an unfinished run that were appearing under their names when it was cut off."""
    try:
        folder = unfinished_folder(store)
        entries = [] if folder is None else read_journal(folder / JOURNAL)
    except SfxReduceError:
        return []
    return [Path(os.path.normpath(store.parent.resolve() / n)) for n in moves_under_way(entries)]


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
    with ExitStack() as stack:
        with one_at_a_time(store):
            staging = _begun(stack, store, files, pins, overwrite=overwrite)
        work = Unfinished(staging)
        try:
            if not work.published:
                with output_errors(store):
                    work.take_back(stack)
            yield work
            if not work.published:
                work.acknowledge()
                staging.appear(overwrite=overwrite)
        except BaseException as error:
            _leave(work)
            if isinstance(error, OutputError):
                raise under_final_names(error, staging.hidden) from error
            raise
        # The outputs are complete: a folder that stays does not make them less so, and the same
        # command would remove it.
        with suppress(OSError):
            staging.remove()


def _leave(work: Unfinished) -> None:
    """Leave what is done for the same command to go on with; nothing else."""
    with suppress(OutputError):  # on a full disk these parts will be done again
        work.acknowledge()
    if not work.staging.may_appear:
        work.staging.remove(all_of_it=not work.begun)


def _begun(
    stack: ExitStack,
    store: Path,
    files: Sequence[Path],
    pins: Mapping[str, Any],
    *,
    overwrite: bool,
) -> Staging:
    """Open what was begun with these pins, or begin it."""
    folder = None
    try:
        folder = unfinished_folder(store)
        if folder is not None:
            with ExitStack() as opened:
                journal = opened.enter_context(open_journal(folder / JOURNAL))
                if why := why_not_ours(folder):
                    raise OutputError(f"{folder}: {why}; start again")
                # Of one that did no more than begin nothing is lost.
                overwrite = overwrite or len(journal.entries) == 1
                _check_pins(store, folder, journal.entries[0].body, pins)
                staging = Staging(folder, journal, (store, *files))
                if staging.appearing:
                    staging.complete()
                stack.push(opened.pop_all())
                return staging
    except (RefusedError, VerificationError):
        if not overwrite:
            raise
        for left in [folder] if folder is not None else hidden_folders(store):
            remove_hidden(left)
    return begin_staging(stack, (store, *files), kind=KIND, pins=pins)


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


def _shard_from_json(facts: Mapping[str, Any]) -> ShardWritten:
    lists = {name: tuple(facts[name]) for name in ("holes", "payloads", "unstable", "changed")}
    missing = tuple(tuple(panels) for panels in facts["missing"])
    return ShardWritten(**{**facts, **lists, "missing": missing})


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False
