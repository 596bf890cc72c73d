"""Threads prepare the next sub-batches while the device works on the last ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Protocol, TypeVar

from sfxreduce.scorers.cnn.gpu.device import Slot

__all__ = ["Work", "overlap"]

Loaded = TypeVar("Loaded")
Staged = TypeVar("Staged")
Launched = TypeVar("Launched")


class Work(Protocol[Loaded, Staged, Launched]):
    """Four steps of a sub-batch. The first two run on threads, the last two in the caller."""

    def load(self, events: range) -> Loaded:
        """Read, decode, find: whatever needs a processor and no slot."""
        ...

    def stage(self, slot: Slot, loaded: Loaded) -> Staged:
        """Write what the device needs into a slot that is free."""
        ...

    def launch(self, slot: Slot, staged: Staged) -> Launched:
        """Start the device's part; the slot is handed on when this returns."""
        ...

    def finish(self, events: range, launched: Launched) -> None:
        """Wait for the device's answer and put it where it belongs."""
        ...


def overlap(
    parts: Sequence[range],
    work: Work[Loaded, Staged, Launched],
    *,
    slots: Sequence[Slot],
    n_threads: int,
) -> None:
    """Take sub-batches through the four steps, several of them at once.

    Sub-batches are launched as they become ready, in any order. A thread that has loaded one waits
    for a free slot, so that at most ``n_threads + len(slots)`` of them are in memory, and at most
    ``len(slots)`` on the device. What a thread raises is raised here; nothing that has not begun
    is begun after that, and no thread is left behind.

    Parameters
    ----------
    parts : sequence of range
        Events of each sub-batch.
    """
    free: SimpleQueue[Slot | None] = SimpleQueue()
    ready: SimpleQueue[Future[tuple[range, Slot, Staged]]] = SimpleQueue()
    for slot in slots:
        free.put(slot)

    def prepare(events: range) -> tuple[range, Slot, Staged]:
        loaded = work.load(events)
        slot = free.get()
        if slot is None:
            free.put(None)  # the next thread that waits must wake up too
            raise CancelledError
        slot.wait()
        return events, slot, work.stage(slot, loaded)

    launched: deque[tuple[range, Launched]] = deque()
    with ThreadPoolExecutor(n_threads, thread_name_prefix="sfxreduce-decode") as threads:
        try:
            for events in parts:
                threads.submit(prepare, events).add_done_callback(ready.put)
            for _ in parts:
                events, slot, staged = ready.get().result()
                launched.append((events, work.launch(slot, staged)))
                slot.release()
                free.put(slot)
                if len(launched) > len(slots):
                    work.finish(*launched.popleft())
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            free.put(None)
    while launched:
        work.finish(*launched.popleft())
