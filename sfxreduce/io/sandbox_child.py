"""The process that reads a run that is not trusted; see `sfxreduce.io.sandbox.source`."""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

__all__ = ["main"]

STDIN, STDOUT, STDERR = 0, 1, 2
MOST_QUESTION_BYTES = 0
"""Questions carry no arrays."""


def main() -> None:
    """Answer questions on standard input until it is closed; the argument holds the limits."""
    limits = json.loads(sys.argv[1])
    for what, most in (
        (resource.RLIMIT_AS, int(limits["memory_bytes"])),
        (resource.RLIMIT_CPU, int(limits["cpu_seconds"])),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (allowed, allowed))
    # What a library prints must not pass for an answer.
    pipe = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    _serve(pipe)


def _serve(pipe: int) -> None:
    # Only now, when the limits hold: these imports load every library that reads a format.
    from sfxreduce.errors import SfxReduceError
    from sfxreduce.io.open import open_run
    from sfxreduce.io.sandbox.answers import Answers
    from sfxreduce.io.sandbox.messages import MessageError, receive, send

    answers = Answers(open_run)
    while True:
        try:
            question, _ = receive(STDIN, most_bytes=MOST_QUESTION_BYTES)
        except MessageError:
            return
        body: dict[str, Any]
        try:
            body, arrays = answers.to(question)
        except SfxReduceError as error:
            body, arrays = {"error": type(error).__name__, "message": str(error)}, []
        except MemoryError:
            body, arrays = {"error": "SourceError", "message": _no_memory(question)}, []
        send(pipe, body, arrays)


def _no_memory(question: dict[str, Any]) -> str:
    return (
        f"{', '.join(question.get('paths', ['the run']))}: reading it takes more memory than an "
        "untrusted run may use; is it what it should be?"
    )


if __name__ == "__main__":
    main()
