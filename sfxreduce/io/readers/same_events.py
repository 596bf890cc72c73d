"""Which events of a run a CXI file holds: its hits, as `filter --cxi` or `convert` wrote them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import LabelError, SfxReduceError
from sfxreduce.io.readers.hdf5.run import open_cxi
from sfxreduce.run.columns import MISSING_TIME
from sfxreduce.run.run import Run

__all__ = ["find_same_events"]

COMPARED = 3
"""Events of which every bit is compared, the first and the last among them: another run may have
the same names, but not the same frames. Chosen, not measured."""

SOURCE_INDEX = "/entry_1/data_1/source_index"


def find_same_events(path: Path, run: Run) -> NDArray[np.int64] | None:
    """Find the events of a file in a run, by their names.

    Where several events of the run share a name, it is the one at the position that the file says
    its event had. Time stamps have to agree, and some frames are compared.

    Returns
    -------
    ndarray of int64 or None
        Shape (event of the file,): position in the run, -1 for an event that it does not have. None
        if the file cannot be read, names none of its events, or the run has none of them.

    Raises
    ------
    LabelError
        If names agree, and time stamps or frames do not.
    """
    try:
        file = open_cxi(path)
    except SfxReduceError:
        return None
    names = [str(name) for name in file.columns["event_id"].values]
    if names == [f"{path.stem}-{event}" for event in range(file.n_events)]:
        return None
    by_name: dict[str, list[int]] = {}
    for event, name in enumerate(run.columns["event_id"].values):
        by_name.setdefault(str(name), []).append(event)
    before, here = _source_index(file), _source_index(run)
    found = np.full(len(names), -1, np.int64)
    for event, name in enumerate(names):
        alike = by_name.get(name, [])
        if len(alike) > 1 and before is not None:
            alike = [a for a in alike if (a if here is None else here[a]) == before[event]]
        if len(alike) == 1:
            found[event] = alike[0]
    _check_same(file, run, found)
    return found if (found >= 0).any() else None


def _source_index(run: Run) -> NDArray[np.int64] | None:
    """Positions that events had where they were selected from; None if the run says nothing."""
    for name, column in run.columns.items():
        if name == "source_index" or column.attrs.get("path") == SOURCE_INDEX:
            return np.asarray(column.values, np.int64)
    return None


def _check_same(file: Run, run: Run, found: NDArray[np.int64]) -> None:
    """Refuse a file whose events have the names of others."""
    events = np.flatnonzero(found >= 0)
    times = [
        each.columns["timestamp_ns"].values[which]
        for each, which in ((file, events), (run, found[events]))
    ]
    known = (times[0] != MISSING_TIME) & (times[1] != MISSING_TIME)
    apart = events[known & (times[0] != times[1])]
    spread = np.linspace(0, events.size - 1, min(events.size, COMPARED)).astype(int)
    for event in events[spread].tolist():
        one, other = file.source.read([event]), run.source.read([int(found[event])])
        readable = not (one.reasons.any() or other.reasons.any())
        if readable and one.pixels.tobytes() != other.pixels.tobytes():
            apart = np.append(apart, event)
    if apart.size:
        raise LabelError(
            f"{file.path} //{apart[0]}: has the name of event {found[apart[0]]} of {run.path}, but "
            "another time stamp or frame; give the run that its hits are of with --in"
        )
