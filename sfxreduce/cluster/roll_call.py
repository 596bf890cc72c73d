"""The roll call: no worker gets a task before it has shown what it is made of and what it sees.

A worker that runs other code, or does not see the run, answers fastest, and what it says is taken
down. So workers are asked first, also those that join later. Those that pass are given a resource
that every task asks for; the scheduler itself keeps tasks from all others.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from distributed import Client
from distributed.client import ClosedClientError
from distributed.protocol import pickle

from sfxreduce.cluster.answers import ALWAYS_ENOUGH, Answering, Question, admit, signature
from sfxreduce.cluster.pool import Needs
from sfxreduce.cluster.supply import NO_SUPPLY, Supply
from sfxreduce.cluster.verdict import Expected, Verdict, judged
from sfxreduce.errors import ClusterError, RefusedError
from sfxreduce.io.files.durable import output_errors
from sfxreduce.io.files.safe_read import content_pin
from sfxreduce.io.files.sentinel import sentinels
from sfxreduce.io.process import START_SECONDS
from sfxreduce.io.store.manifest import made_here

__all__ = ["RollCall"]

LOOK_SECONDS = 0.5
"""Between two looks at who is there: workers come and go while they are asked."""

ASK_SECONDS = 60
"""In which a scheduler has to pass a question on."""

ADMIT_SECONDS = 2
"""After which a worker is told once more that it may have tasks, unless it is gone."""

WARM_BYTES = 320 << 20
"""Resident memory of a worker that has loaded all modules but torch, measured; rounded up."""

TORCH_BYTES = 512 << 20
"""What torch takes besides, without a graphics card."""

GONE = (OSError, ClosedClientError, RuntimeError, ValueError, KeyError)
"""What is raised of a worker that goes away while it is asked. Those of Dask's connections are
`OSError`; the last three are of workers, and schedulers, that are about to close."""

USABLE = 0.8
"""Share of a worker's limit up to which Dask gives it work."""


class RollCall:
    """Asks workers, judges their answers, and keeps the list of those that may have tasks.

    Parameters
    ----------
    drop_bad : bool
        Do without workers that fail; else the work stops.
    tell : callable
        Given one line about each worker that is done without.
    supply : Supply
        Where workers come from that are not there yet.
    """

    def __init__(
        self,
        client: Client,
        *,
        drop_bad: bool,
        tell: Callable[[str], None],
        supply: Supply = NO_SUPPLY,
    ) -> None:
        self._client, self._drop_bad, self._tell = client, drop_bad, tell
        self._supply = supply
        supply.attach(self._wake)
        self._token = f"sfxreduce-{uuid.uuid4().hex[:16]}"
        self._answers: SimpleQueue[tuple[float, dict[str, Any]] | None] = SimpleQueue()
        self._news = threading.Condition()
        self._judge: threading.Thread | None = None
        self._asked: Question | None = None
        self._expected = Expected()
        self._number = 0
        self._workers: dict[str, Verdict] = {}
        self._admitted: set[str] = set()
        self._retired: dict[tuple[str, str], str] = {}
        self._wakers: set[Callable[[None], None]] = set()

    @property
    def resources(self) -> dict[str, float]:
        """What tasks have to ask for."""
        return {self._token: 1}

    def threads(self, ncores: Mapping[str, int]) -> int:
        """Threads of the workers that may have tasks."""
        return sum(n for address, n in ncores.items() if address in self._admitted)

    def name_of(self, address: str) -> str:
        """Name of a worker, as far as it told it; empty if not."""
        with self._news:
            verdict = self._workers.get(address)
        return verdict.name if verdict else ""

    def to_json(self) -> list[dict[str, Any]]:
        """Every worker that answered, and what became of it."""
        with self._news:
            return [verdict.to_json() for verdict in self._workers.values()]

    @contextmanager
    def waking(self, wake: Callable[[None], None]) -> Iterator[None]:
        """Call something, as long as the block lasts, when a worker is admitted or refused."""
        self._wakers.add(wake)
        try:
            yield
        finally:
            self._wakers.discard(wake)

    @contextmanager
    def of(self, needs: Needs) -> Iterator[None]:
        """Call the roll for some work, and for workers that join before the block ends."""
        self.begin(needs)
        try:
            yield
        finally:
            self._end()

    def begin(self, needs: Needs | None = None) -> None:
        """Call the roll, unless that is done and nothing else is asked; wait for the answers.

        Raises
        ------
        RefusedError
            If a worker fails, or none is left.
        ClusterError
            If none answers.
        """
        if needs is None and self._asked is not None:
            return
        asked = self._question(needs or Needs())
        if self._judge is None:
            self._client.subscribe_topic(self._token, self._answers.put)
            self._judge = threading.Thread(target=self._judge_all, name="roll call", daemon=True)
            self._judge.start()
        with self._news:
            self._asked, self._workers = asked, {}
        self._send(asked)
        self._wait()

    def check(self) -> None:
        """Stop the work if a worker that joined is not to be trusted.

        Raises
        ------
        RefusedError
            In one line, of the first of them.
        ClusterError
            If workers should come, and will not.
        """
        self._supply.check()
        if self._drop_bad:
            return
        with self._news:
            bad = [v for v in self._workers.values() if v.fault and v.state != "retired"]
        if bad:
            raise RefusedError(f"{bad[0].line}{_and_more(len(bad) - 1)}")

    def retire(self, address: str, why: str) -> None:
        """Take a worker's tasks from it, and let it go.

        Raises
        ------
        RefusedError
            If no other is left.
        """
        with self._news:
            verdict = self._workers.get(address) or Verdict(address=address)
            self._workers[address] = verdict = verdict.retired(why)
            self._retired[verdict.name, verdict.told.get("host", "")] = why
            self._admitted.discard(address)
        if not self._admitted.intersection(self._there()):
            raise RefusedError(f"{verdict.line}; no other worker is left")
        self._tell(f"{verdict.line}; it gets no more tasks")
        self._let_go(address)

    def _let_go(self, address: str) -> None:
        """Have the scheduler forget a worker."""
        self._admitted.discard(address)
        # Not by its leave: a worker that retires hands on what it holds, and none of that is
        # believed. Like this others do it again.
        self._ask("unregister", address=address, stimulus_id=f"retire-{self._token}", expected=True)

    def close(self) -> None:
        """Ask nobody any more."""
        self._end()
        if self._judge is not None:
            self._answers.put(None)
            with suppress(Exception):  # a scheduler that is gone has forgotten it
                self._client.unsubscribe_topic(self._token)
                self._client.unregister_worker_plugin(self._token)

    def _end(self) -> None:
        """Count no more answers; what was written for the question is removed."""
        asked, self._asked = self._asked, None
        if asked is not None and asked.folder:
            for file in Path(asked.folder).glob(f"{asked.nonce}*"):
                with suppress(OSError):
                    file.unlink()

    def _question(self, needs: Needs) -> Question:
        """What workers have to answer; what is expected is looked at here, at the same time."""
        self._number += 1
        nonce = uuid.uuid4().bytes
        name = f"roll-call.{nonce.hex()[:12]}"
        if needs.folder is not None:
            with output_errors(needs.folder):
                (needs.folder / name).write_bytes(nonce)
        program = WARM_BYTES + (TORCH_BYTES if "torch" in needs.modules else 0)
        self._expected = Expected(
            made_by=made_here(),
            files=sentinels(needs.inputs),
            model=content_pin(needs.model) if needs.model else "",
            folder=needs.folder,
            nonce=nonce,
            memory_bytes=int((program + needs.memory_bytes) / USABLE),
            model_path=needs.model,
        )
        return Question(
            topic=self._token,
            number=self._number,
            files=tuple(self._expected.files),
            folder=str(needs.folder or ""),
            nonce=name,
            model=str(needs.model or ""),
            modules=needs.modules,
            least_bytes=self._expected.memory_bytes,
        )

    def _send(self, asked: Question) -> None:
        """Put the question to all workers, and to those that join later.

        Raises
        ------
        RefusedError
            If a worker does not understand it.
        ClusterError
            If the scheduler does not pass it on.
        """
        try:
            answers = self._ask(
                "register_worker_plugin",
                plugin=pickle.dumps(Answering(asked)),
                name=self._token,
                idempotent=False,
            )
        except (OSError, TimeoutError) as error:
            raise ClusterError(
                "the scheduler does not answer the roll call; look at it, or work elsewhere"
            ) from error
        for address, answer in answers.items():
            if answer["status"] == "error":
                with self._news:
                    self._workers[address] = Verdict(address=address, fault=_not_understood(answer))

    def _wait(self) -> None:
        """Wait until every worker that is there has answered and was judged."""
        deadline = time.monotonic() + START_SECONDS
        while silent := self._silent():
            if silent == {""} and self._supply.is_coming():
                self._supply.check()
                deadline = time.monotonic() + START_SECONDS
            if time.monotonic() > deadline:
                self._give_up_on(silent)
                break
            with self._news:
                self._news.wait(LOOK_SECONDS)
            # One that was quicker than our subscription is heard here.
            for event in self._client.get_events(self._token) if silent else ():
                told = _whole(event)
                if told is not None and told["address"] in silent:
                    self._answers.put(event)
        self.check()
        if not self._admitted.intersection(self._there()):
            with self._news:
                bad = [verdict for verdict in self._workers.values() if verdict.fault]
            if not bad and self._supply.is_coming():
                self._wait()  # they left as they were asked; others take their place
                return
            raise RefusedError(
                f"{bad[0].line}{_and_more(len(bad) - 1)}; no other worker is left"
                if bad
                else "no worker answered the roll call; look at them, or at their scheduler"
            )

    def _there(self) -> set[str]:
        return set(self._ask("ncores"))

    def _ask(self, question: str, **arguments: Any) -> Any:
        ask = getattr(self._client.scheduler, question)
        return self._client.sync(ask, callback_timeout=ASK_SECONDS, **arguments)

    def _silent(self) -> set[str]:
        """Workers that are there and have not been judged; none if not one is there yet."""
        there = self._there()
        with self._news:
            silent = there - set(self._workers)
        # All may be on their way back at this moment.
        return silent if there else {""}

    def _give_up_on(self, silent: set[str]) -> None:
        for address in silent - {""}:
            with self._news:
                self._workers[address] = verdict = Verdict(
                    address=address,
                    fault=f"expected an answer to the roll call within {START_SECONDS} seconds, "
                    "found none; look at its machine, or leave it out",
                )
            if self._drop_bad:
                self._tell(verdict.line)
                if address in self._admitted:
                    self._let_go(address)

    def _judge_all(self) -> None:
        """Judge answers as they come, until there are none any more."""
        while (event := self._answers.get()) is not None:
            asked = self._asked
            told = _whole(event)
            if asked is None or told is None or told["number"] != asked.number:
                continue
            with self._news:
                if self._is_known(told):
                    continue
                others = [v for v in self._workers.values() if not v.fault]
            if asked.folder:
                told["answered"] = _read_answer(self._expected, asked, told)
            verdict = judged(told, self._expected, others)
            # Its nanny may have started it again, on the machine that is at fault.
            if why := self._retired.get((told["name"], told.get("host", ""))):
                verdict = verdict.retired(why)
            self._conclude(verdict)

    def _is_known(self, told: Mapping[str, Any]) -> bool:
        """Whether this process was judged; one that was started again at an address was not."""
        address = told["address"]
        known = self._workers.get(address)
        if known is None or not known.told or known.told.get("id") == told.get("id"):
            return known is not None
        self._admitted.discard(address)
        return False

    def _conclude(self, verdict: Verdict) -> None:
        """Act on a verdict, before anybody reads it."""
        address = verdict.address
        if not verdict.fault and address not in self._admitted:
            if not self._let(address):
                return  # it answers again if it comes back
            self._admitted.add(address)
        if verdict.fault:
            self._withdraw(address)
            if self._drop_bad and verdict.state != "retired":
                self._tell(verdict.line)
        with self._news:
            self._workers[address] = verdict
        self._wake()

    def _wake(self) -> None:
        """Have those look who wait for a result."""
        with self._news:
            self._news.notify_all()
        for wake in list(self._wakers):
            wake(None)

    def _withdraw(self, address: str) -> None:
        if address in self._admitted:
            self._admitted.discard(address)
            self._let(address, 0.0)

    def _let(self, address: str, amount: float = ALWAYS_ENOUGH) -> bool:
        """Let a worker have tasks, or no longer; whether it heard it."""

        async def tell() -> None:
            await self._client.run(admit, self._token, amount, workers=[address])

        # Dask calls one that has died for half a minute, and others wait to be judged.
        while address in self._there():
            try:
                self._client.sync(tell, callback_timeout=ADMIT_SECONDS)
            except TimeoutError:
                continue
            except GONE:
                return False
            return True
        return False


def _whole(event: Any) -> dict[str, Any] | None:
    """What a worker told; None of what is no answer, which any worker may send."""
    told = event[1] if isinstance(event, tuple | list) and len(event) > 1 else None
    if not isinstance(told, dict) or not isinstance(told.get("number"), int):
        return None
    named = all(isinstance(told.get(fact), str) for fact in ("address", "name"))
    return told if named else None


def _read_answer(expected: Expected, asked: Question, told: Mapping[str, Any]) -> bool:
    """Whether a worker's answer lies where it says; it is removed."""
    mine = signature(expected.nonce, told["address"])
    file = Path(asked.folder) / f"{asked.nonce}.{mine}"
    with suppress(OSError):
        found = file.read_text() == mine
        file.unlink()
        return found
    return False


def _not_understood(answer: Mapping[str, Any]) -> str:
    cause = " ".join(str(answer.get("exception_text", "")).split())[:200]
    return (
        f"expected a worker that understands the roll call, found one that does not ({cause}); "
        "start it with the sfxreduce of this command"
    )


def _and_more(n: int) -> str:
    return f" (and {n} more like it)" if n else ""
