"""Some events of a run as a run store of their own, compared bit for bit before it counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.errors import VerificationError
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.verify.frames import CompareJob, differing_events
from sfxreduce.run.run import Run, select_run

__all__ = ["store_events"]


def store_events(run: Run, events: NDArray[np.int64], *, out: Path, pool: Pool) -> None:
    """Write some events of a run, with their positions in it; what lies there is replaced.

    Parameters
    ----------
    events : ndarray of int64
        Positions in the run, ascending.

    Raises
    ------
    VerificationError
        If an event does not read back as it is in the run.
    OutputError
        If it cannot be written.
    """
    chosen = select_run(run, events)
    attrs = {"long_name": "position in the source run", "units": "1"}
    columns = chosen.columns.assign(source_index=("event", events, attrs))
    ingest_run(replace(chosen, columns=columns), out=out, pool=pool, overwrite=True)
    wrong = differing_events(
        CompareJob(
            kept=ZarrFrames(path=str(out)),
            source=run.source,
            first=0,
            source_index=tuple(events.tolist()),
        )
    )
    if wrong:
        raise VerificationError(
            f"{out}: event {wrong[0]} differs from event {int(events[wrong[0]])} of {run.path}; "
            "check the disk and plan again"
        )
