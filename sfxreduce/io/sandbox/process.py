"""A process that reads a run for us, and may crash on it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from sfxreduce import errors
from sfxreduce.errors import SfxReduceError, SourceError
from sfxreduce.io.process import end_process, how_it_ended, start_module
from sfxreduce.io.sandbox.messages import MessageError, receive, send

__all__ = ["ProcessLimits", "ReaderDied", "ReaderProcess"]

CHILD = "sfxreduce.io.sandbox_child"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLimits:
    """What a process that reads an untrusted run may use.

    Parameters
    ----------
    memory_bytes : int
        Address space.
    cpu_seconds : int
        Processor time until it is replaced by a fresh one.
    seconds : float
        Time for one answer; some hundred megabytes of pixels at most.
    """

    memory_bytes: int = 4 << 30
    cpu_seconds: int = 600
    seconds: float = 120.0


class ReaderDied(Exception):
    """The process ended, or was ended, before it answered."""


class ReaderProcess:
    """A process of its own that reads a run; it has no way to write a file."""

    def __init__(self, limits: ProcessLimits) -> None:
        self._limits = limits
        self._process = start_module(
            CHILD,
            json.dumps(asdict(limits)),
            stderr=subprocess.DEVNULL,
            OMP_NUM_THREADS="1",  # every thread takes address space, which is limited
            OPENBLAS_NUM_THREADS="1",
        )

    def ask(
        self, question: Mapping[str, Any], *, most_bytes: int
    ) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """Ask, and wait for the answer.

        Parameters
        ----------
        question : mapping
            Plain JSON.
        most_bytes : int
            Most bytes of arrays in the answer.

        Raises
        ------
        ReaderDied
            If it did not answer, in time and in form. It is gone then.
        SfxReduceError
            Whatever it raised on purpose.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ReaderDied("it was never started")
        try:
            send(stdin.fileno(), question)
            answer, arrays = receive(
                stdout.fileno(), most_bytes=most_bytes, seconds=self._limits.seconds
            )
        except (MessageError, ValueError) as error:
            raise ReaderDied(self._cause(error)) from error
        if "error" in answer:
            kind = getattr(errors, str(answer["error"]), SourceError)
            known = isinstance(kind, type) and issubclass(kind, SfxReduceError)
            raise (kind if known else SourceError)(" ".join(str(answer.get("message")).split()))
        return answer, arrays

    def end(self) -> None:
        """End it, whatever it does; may be called again."""
        end_process(self._process)

    def _cause(self, error: Exception) -> str:
        """Why it did not answer."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=0.5)
        status = self._process.returncode
        self.end()
        if status is None:
            return f"it gave no answer within {self._limits.seconds:g} s"
        return f"it {how_it_ended(status)} ({error})"
