"""Workers that were lost, or started again, while there was work: which, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from distributed import Client

__all__ = ["Restart", "Restarts"]

TOPICS = ("scheduler", "worker-restart-memory", "all")
"""Of a scheduler's events. The last one says who is gone, the others say why."""

DIED = "its process ended or its connection was lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """One worker that was lost; its nanny, if it has one, starts another in its place.

    Parameters
    ----------
    cause : str
        In words: "no sign of life for 120 seconds".
    """

    name: str
    address: str
    cause: str


class Restarts:
    """Listens to a scheduler and keeps the list of workers that were lost.

    Parameters
    ----------
    name_of : callable
        Gives the name of a worker at an address.
    tell : callable
        Given one line about each.
    """

    def __init__(
        self, client: Client, *, name_of: Callable[[str], str], tell: Callable[[str], None]
    ) -> None:
        self._client, self._name_of, self._tell = client, name_of, tell
        self._causes: dict[str, str] = {}
        self._lost: list[Restart] = []
        self._leaving: set[str] = set()
        for topic in TOPICS:
            client.subscribe_topic(topic, partial(self._hear, topic))

    def close(self) -> None:
        """Listen no more: workers that end from now on were told to."""
        with suppress(Exception):  # a scheduler that is gone says nothing more
            for topic in TOPICS:
                self._client.unsubscribe_topic(topic)

    def to_json(self) -> list[dict[str, str]]:
        """In the order in which they were lost."""
        return [asdict(restart) for restart in self._lost]

    def expect(self, address: str, cause: str) -> None:
        """Say why a worker will be gone in a moment."""
        self._causes.setdefault(address, cause)

    def _hear(self, topic: str, event: tuple[float, Mapping[str, Any]]) -> None:
        told = event[1]
        action = told.get("action")
        if topic == "worker-restart-memory":
            self.expect(told["worker"], f"it took {told['rss'] / 1e6:,.0f} MB, nearly its limit")
        elif action == "worker-ttl-timed-out":
            for address in told["workers"]:
                self.expect(address, f"no sign of life for {told['ttl']:g} seconds")
        elif action == "retire-workers":
            # They leave all the same: nobody was there who could have taken what they hold.
            self._leaving.update(told["could-not-retire"])
        elif action == "remove-worker":
            leaves = told["worker"] in self._leaving
            self._note(told["worker"], expected=leaves or bool(told["expected"]))

    def _note(self, address: str, *, expected: bool) -> None:
        """Take down that a worker is gone; one that was told to go is none of ours."""
        cause = self._causes.pop(address, "" if expected else DIED)
        if not cause:
            return
        lost = Restart(name=self._name_of(address), address=address, cause=cause)
        self._lost.append(lost)
        self._tell(
            f"worker {lost.name or '?'} at {address} was lost: {cause}; its tasks are done again"
        )
