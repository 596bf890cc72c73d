"""The tree of errors, one exit status each.

::

    SfxReduceError            1   anything that stops a command
    ├── UsageError            2   the options contradict each other
    ├── RunNotFound           1   nothing lies at the given path
    ├── SchemaError           1   something lies there, but it is not what was expected
    │   └── LeadsOutside      1   a file leads to one outside the folders that may be read
    ├── SourceError           1   a source file is damaged or cannot be read
    ├── ObjectStoreError      1   an object store is out of reach, or its objects changed
    ├── OutputError           1   the output cannot be written
    │   └── OutputExists      1   an output is already there and was not to be overwritten
    ├── LabelError            1   events cannot be told into hits and misses
    ├── ModelError            1   a model folder is incomplete or does not fit the run
    ├── ClusterError          1   the workers cannot be reached or do not fit the task
    ├── ArchiveError          1   an archive does not answer, or not as agreed
    ├── RefusedError          3   a policy or a missing proof forbids it
    │   └── UnfinishedRun     3   the run looks as if it was still being written
    └── VerificationError     4   an output differs from its source or from its manifest

Every message is one line: where, what was expected, what was found, what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "ArchiveError",
    "ClusterError",
    "LabelError",
    "LeadsOutside",
    "ModelError",
    "ObjectStoreError",
    "OutputError",
    "OutputExists",
    "RefusedError",
    "RunNotFound",
    "SchemaError",
    "SfxReduceError",
    "SfxReduceWarning",
    "SourceError",
    "UnfinishedRun",
    "UsageError",
    "VerificationError",
]


class SfxReduceError(Exception):
    """Base of every error this library raises on purpose."""

    exit_status = 1

    @property
    def lines(self) -> tuple[str, ...]:
        """The message; one line for each refusal where there are several."""
        return (" ".join(str(self).split()),)

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {"error": self.lines[0], "exit_status": self.exit_status}


class UsageError(SfxReduceError):
    """The options contradict each other."""

    exit_status = 2


class RunNotFound(SfxReduceError):
    """Nothing lies at the given path."""


class SchemaError(SfxReduceError):
    """Something lies at the path, but it is not what was expected there."""


class LeadsOutside(SchemaError):
    """A file leads to one outside the folders that may be read."""


class SourceError(SfxReduceError):
    """A source file is damaged or cannot be read."""


class ObjectStoreError(SfxReduceError):
    """An object store is out of reach, or its objects changed.

    It says nothing of the data: no event counts as damaged for it.
    """


class OutputError(SfxReduceError):
    """The output cannot be written."""


class OutputExists(OutputError):
    """An output is already there and was not to be overwritten."""


class LabelError(SfxReduceError):
    """Events cannot be told into hits and misses."""


class ModelError(SfxReduceError):
    """A model folder is incomplete or does not fit the run."""


class ClusterError(SfxReduceError):
    """The workers cannot be reached or do not fit the task."""


class ArchiveError(SfxReduceError):
    """An archive does not answer, or not as agreed."""


class RefusedError(SfxReduceError):
    """A policy or a missing proof forbids it."""

    exit_status = 3


class UnfinishedRun(RefusedError):
    """The run looks as if it was still being written.

    Parameters
    ----------
    path : str
        Of the run.
    signs : sequence of str
        "CODE: words" of each sign of it.
    """

    def __init__(self, path: str, signs: Sequence[str]) -> None:
        self.path, self.signs = path, list(signs)
        told = [sign.partition(": ") for sign in signs]
        self.codes = [code for code, _, _ in told]
        words = "; ".join(word for _, _, word in told)
        super().__init__(
            f"{path}: looks unfinished ({words}); wait, or 'filter --follow' it; --incomplete "
            "takes it as it is"
        )

    def __reduce__(self) -> tuple[type[UnfinishedRun], tuple[str, list[str]]]:
        return type(self), (self.path, self.signs)

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return super().to_json() | {"codes": self.codes}


class VerificationError(SfxReduceError):
    """An output differs from its source or from its manifest."""

    exit_status = 4


class SfxReduceWarning(UserWarning):
    """Something that stops nothing, and that somebody should know of; one line."""
