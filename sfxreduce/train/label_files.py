"""Labels from files: a table of labels, or what CrystFEL could index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.cluster.pool import Progress
from sfxreduce.errors import UsageError
from sfxreduce.io.label_table import read_labels
from sfxreduce.io.readers.crystfel_stream import Mention, read_stream
from sfxreduce.run.labels import Label, Labels
from sfxreduce.run.run import Run

__all__ = ["FileLabelling", "StreamLabelling"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLabelling:
    """Labels that a CSV file gives, one file a run.

    Parameters
    ----------
    files : tuple of (str, Path)
        Path of a run, and of the file with its labels.
    """

    files: tuple[tuple[str, Path], ...]

    @classmethod
    def of(cls, runs: Sequence[Run], files: Sequence[Path]) -> FileLabelling:
        """Pair runs with their files.

        Raises
        ------
        UsageError
            If there are not as many of one as of the other.
        """
        if len(runs) != len(files):
            raise UsageError(
                f"--labels: expected one file for each of {len(runs)} runs, found {len(files)}; "
                "give them in the order of --in"
            )
        return cls(files=tuple((r.path, file) for r, file in zip(runs, files, strict=True)))

    @property
    def sentence(self) -> str:
        """The rule in one sentence."""
        names = ", ".join(file.name for _, file in self.files)
        return f"as listed in {names}; events not listed there are left out"

    def __call__(self, run: Run, *, pool: Pool, progress: Progress) -> Labels:  # noqa: ARG002
        """Label every event of a run; see `sfxreduce.io.label_table.read_labels`."""
        return _unbounded(read_labels(dict(self.files)[run.path], run=run))


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLabelling:
    """What CrystFEL indexed is a hit. That it did not index an event proves nothing by itself.

    Parameters
    ----------
    path : Path
        Of the ``.stream`` file.
    unindexed_is_miss : bool
        Call events misses that the stream does not hold, or holds without a hit.
    """

    path: Path
    unindexed_is_miss: bool = False

    @property
    def sentence(self) -> str:
        """The rule in one sentence."""
        rest = (
            "hits it could not index are left out, all other events are misses"
            if self.unindexed_is_miss
            else "all other events are left out"
        )
        return f"hits were indexed by CrystFEL in {self.path.name}; {rest}"

    def __call__(self, run: Run, *, pool: Pool, progress: Progress) -> Labels:  # noqa: ARG002
        """Label every event of a run; see `sfxreduce.io.readers.crystfel_stream.read_stream`."""
        seen = read_stream(self.path, run=run)
        label = np.where(seen == Mention.INDEXED, Label.HIT, Label.MAYBE).astype(np.int8)
        if self.unindexed_is_miss:
            label[seen < Mention.UNCLEAR] = Label.MISS
        return _unbounded(label)


def _unbounded(label: NDArray[np.int8]) -> Labels:
    """Labels that no peak count has set."""
    return Labels(label=label, miss_at_most=math.nan, hit_at_least=math.nan)
