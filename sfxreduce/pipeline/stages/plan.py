"""Which event goes where: integers only, before a byte is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.decisions.decide import Decisions
from sfxreduce.decisions.method import Method
from sfxreduce.errors import SchemaError
from sfxreduce.io.chunks.layout import Layout, choose_layout
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.io.store.names import AUDIT_GROUP
from sfxreduce.io.writers.shards import Scored, ShardJob
from sfxreduce.pipeline.stages.score import Rescored
from sfxreduce.quality.conditions import Conditions
from sfxreduce.run.run import FrameSource, Run, WrappedFrames
from sfxreduce.run.window import Window

__all__ = ["FilterPlan", "ReductionPlan", "Reread", "ShardPlan", "plan_output", "plan_reduction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """One output shard and the source events that fill it, in order.

    Parameters
    ----------
    source_index : tuple of int
        Positions in the source run, ascending.
    """

    shard: int
    source_index: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReductionPlan:
    """Where every kept event goes.

    Parameters
    ----------
    n_events : int
        Events of the source run.
    kept : ndarray of int64
        Positions of the kept events in the source, ascending.
    events_per_shard : int
        Of the output.
    copies_tiles : bool
        Whether stored tiles move encoded, as they lie; otherwise frames are decoded and encoded.

    Raises
    ------
    SchemaError
        If an event is kept twice, out of order, or does not exist.
    """

    n_events: int
    kept: NDArray[np.int64]
    events_per_shard: int
    copies_tiles: bool

    def __post_init__(self) -> None:
        steps = np.diff(self.kept)
        if self.kept.size and (
            np.any(steps < 1) or self.kept[0] < 0 or self.kept[-1] >= self.n_events
        ):
            raise SchemaError(
                f"plan: expected ascending positions below {self.n_events}, found "
                f"{self.kept[:3].tolist()} ... {self.kept[-3:].tolist()}"
            )

    @property
    def n_shards(self) -> int:
        """Number of output shards."""
        return -(-self.kept.size // self.events_per_shard)

    def shards(self) -> Iterator[ShardPlan]:
        """Output shards in order; every kept event is in exactly one."""
        for shard in range(self.n_shards):
            start = shard * self.events_per_shard
            events = self.kept[start : start + self.events_per_shard]
            yield ShardPlan(shard=shard, source_index=tuple(events.tolist()))


def plan_output(
    run: Run,
    decisions: Decisions,
    sample: NDArray[np.int64],
    *,
    method: Method,
    conditions: Conditions | None = None,
    scored: Scored | None = None,
) -> FilterPlan:
    """Plan a reduced store with the kept events, and the sampled rejects beside them.

    Parameters
    ----------
    scored : Scored, optional
        What the scores of all events rest on.
    sample : ndarray of int64
        Positions of the rejected events that are kept for an audit, ascending.
    """
    stored = _stored_of(run.source)
    own = stored.layout if isinstance(stored, ZarrFrames) else None
    layout = own or choose_layout(
        run.detector.frame_shape,
        dtype=np.dtype(run.source.dtype),
        boxes=Window.centre(run.detector).boxes(run.detector),
    )
    reduction, audit = (
        plan_reduction(
            events,
            n_events=run.n_events,
            events_per_shard=layout.events_per_shard,
            copies_tiles=own is not None,
        )
        for events in (decisions.kept, sample)
    )
    return FilterPlan(
        run=run,
        method=method,
        decisions=decisions.with_sample(sample),
        layout=layout,
        reduction=reduction,
        audit=audit,
        conditions=conditions,
        scored=scored,
    )


def plan_reduction(
    kept: NDArray[np.int64], *, n_events: int, events_per_shard: int, copies_tiles: bool
) -> ReductionPlan:
    """Plan the output of the kept events, in source order.

    Examples
    --------
    >>> plan = plan_reduction(np.array([2, 3, 7]), n_events=9, events_per_shard=2,
    ...                       copies_tiles=True)
    >>> [shard.source_index for shard in plan.shards()]
    [(2, 3), (7,)]
    """
    return ReductionPlan(
        n_events=n_events,
        kept=np.asarray(kept, np.int64),
        events_per_shard=events_per_shard,
        copies_tiles=copies_tiles,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reread(Rescored):
    """What is read of the source, because an earlier output does not hold it.

    Parameters
    ----------
    frames_read : int
        Frames in the new output that are not in the old one.
    frames_taken_over : int
        Frames that are: they are copied from there as they are stored.
    """

    frames_read: int
    frames_taken_over: int

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FilterPlan:
    """Everything that is decided before a byte is written.

    Parameters
    ----------
    method : Method
        How the events were judged.
    layout : Layout
        Of the reduced store.
    reduction : ReductionPlan
        Which event goes where.
    audit : ReductionPlan
        The same for the sample of rejected events.
    conditions : Conditions or None
        What the run said about its detector; None if the scorer did not ask.
    scored : Scored or None
        What the scores of all events rest on; None if that is not known.
    reread : Reread or None
        What is read of the source although an earlier output is known; None without one.
    """

    run: Run
    method: Method
    decisions: Decisions
    layout: Layout
    reduction: ReductionPlan
    audit: ReductionPlan
    conditions: Conditions | None = None
    scored: Scored | None = None
    reread: Reread | None = None

    @property
    def n_shards(self) -> int:
        """Number of shards of the reduced store, those of the sample included."""
        return self.reduction.n_shards + self.audit.n_shards

    def jobs(self, folder: Path) -> Iterator[ShardJob]:
        """One job for each shard of the reduced store, those of the sample last, in a folder.

        Made one after the other: Python's integers take some forty bytes for each position.
        """
        for group, part in (("", self.reduction), (AUDIT_GROUP, self.audit)):
            for shard in part.shards():
                yield ShardJob(
                    source=self.run.source,
                    store=str(folder),
                    layout=self.layout,
                    shard=shard.shard,
                    events=shard.source_index,
                    group=group,
                    addressed=True,
                    scored=self.scored.of(shard.source_index) if self.scored else None,
                )


def _stored_of(source: FrameSource) -> FrameSource:
    """The source as it is stored: of one that a geometry places, the pixels lie in another."""
    if not isinstance(source, WrappedFrames):
        return source
    from sfxreduce.io.placed import PlacedFrames  # 0.15 s with h5py and fabio, for placed runs

    return source.source if isinstance(source, PlacedFrames) else source
