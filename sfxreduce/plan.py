"""Which event goes where: integers only, before a byte is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SchemaError

__all__ = ["ReductionPlan", "ShardPlan", "plan_reduction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """One output shard and the source events that fill it, in order.

    Parameters
    ----------
    shard : int
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
