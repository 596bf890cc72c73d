"""Processes that are asked to read a run, and do something else."""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.io import sandbox_child as reader_child
from sfxreduce.io.sandbox import answers as untrusted_answers


def crash() -> None:
    """Read where no memory is."""
    ctypes.string_at(0)


class Deadly(untrusted_answers.Answers):
    """Dies of some events."""

    events = range(3, 4)

    def to(self, question: Mapping[str, Any]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        if set(self.events) & set(question.get("events", ())):
            crash()
        return super().to(question)


class Liar(untrusted_answers.Answers):
    """Says that a run has fewer than no events."""

    def to(self, question: Mapping[str, Any]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        body, arrays = super().to(question)
        body["facts"]["n_events"] = -1
        return body, arrays


class Greedy(untrusted_answers.Answers):
    """Takes more memory than there may be."""

    def to(self, question: Mapping[str, Any]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        return {}, [np.ones(1 << 40)]


class Writer(untrusted_answers.Answers):
    """Writes a file, as nobody who reads has to."""

    def to(self, question: Mapping[str, Any]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        Path(os.environ["SFXREDUCE_TEST_CANARY"]).write_text("sings")
        return super().to(question)


class Slow(untrusted_answers.Answers):
    """Works for ever."""

    def to(self, question: Mapping[str, Any]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        while True:
            pass


class Opens:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, (os.environ["SFXREDUCE_TEST_CANARY"], "w")


def say(data: bytes) -> None:
    os.write(1, struct.pack("<Q", len(data)) + data)
    time.sleep(60)


def serve(answers: type[untrusted_answers.Answers]) -> None:
    untrusted_answers.Answers = answers  # type: ignore[misc]
    reader_child.main()


class AllDeadly(Deadly):
    events = range(1000)


BEHAVIOURS = {
    "dies_at_once": crash,
    "dies_of_event_3": lambda: serve(Deadly),
    "dies_of_every_event": lambda: serve(AllDeadly),
    "lies_about_the_run": lambda: serve(Liar),
    "takes_memory": lambda: serve(Greedy),
    "writes_a_file": lambda: serve(Writer),
    "takes_time": lambda: serve(Slow),
    "says_nothing": lambda: time.sleep(60),
    "says_nonsense": lambda: say(b"[" * 1000),
    "says_too_much": lambda: say(
        json.dumps({"body": {}, "arrays": [{"dtype": "<f8", "shape": [1 << 40]}]}).encode()
    ),
    "pickles": lambda: say(pickle.dumps(Opens())),
    "raises_what_is_no_error": lambda: say(
        json.dumps({"body": {"error": "__all__", "message": "told\n so"}, "arrays": []}).encode()
    ),
}

if __name__ == "__main__":
    BEHAVIOURS[os.environ["SFXREDUCE_TEST_CHILD"]]()
    sys.exit(1)
