"""What a pool is, and the one that works in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from typing import Any, Protocol, TypeVar

import dask.array as da
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph
from dask.local import get_sync
from dask.optimization import cull
from numpy.typing import NDArray

from sfxreduce.cluster.tasks import Rescue
from sfxreduce.errors import UsageError

__all__ = ["BLOCKS_AT_ONCE", "Pool", "SerialPool", "part_of"]

Item = TypeVar("Item")
Result = TypeVar("Result")

BLOCKS_AT_ONCE = 512
"""Blocks that are planned and submitted together. A task that is known to the scheduler costs it
and its client some 13 kB; a long run would fill gigabytes if all of its blocks were."""


class Pool(Protocol):
    """Somewhere to run tasks. Every pool gives the same results; only the order may differ."""

    @property
    def dashboard(self) -> str:
        """Address of the dashboard; empty if there is none."""
        ...

    @property
    def has_gpu(self) -> bool:
        """Whether any worker offers the resource ``GPU``."""
        ...

    def blocks(
        self,
        array: da.Array,
        *,
        needs_gpu: bool = False,
        rescue: Rescue[Any, NDArray[Any]] | None = None,
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Compute a one-dimensional array block by block, as blocks are done.

        Parameters
        ----------
        needs_gpu : bool
            Run its tasks only on workers that offer the resource ``GPU``.
        rescue : Rescue, optional
            What to do with a block that ends every worker; it stops the work if not given.

        Yields
        ------
        tuple of int and ndarray
            Number of the block, and its values.
        """
        ...

    def map(
        self,
        name: str,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        rescue: Rescue[Item, Result] | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Call a function on each item, as tasks of this name, and give results as they come.

        Parameters
        ----------
        items : iterable
            Taken as tasks are submitted: a few for each thread ahead of the results.
        rescue : Rescue, optional
            What to do with an item that ends every worker; it stops the work if not given.

        Yields
        ------
        tuple of int and result
            Number of the item, and its result.
        """
        ...


class SerialPool:
    """In this process, one task after the other: the reference that every cluster has to match.

    A task that ends its process ends this one; only workers can be spared.
    """

    dashboard = ""
    has_gpu = False

    def blocks(
        self,
        array: da.Array,
        *,
        needs_gpu: bool = False,
        rescue: Rescue[Any, NDArray[Any]] | None = None,  # noqa: ARG002 - see the class
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Compute blocks in order. See `Pool.blocks`."""
        if needs_gpu:
            raise UsageError("--serial has no GPU workers; drop --serial or use --device cpu")
        keys = flatten(array.__dask_keys__())
        numbers = count()
        while part := list(islice(keys, BLOCKS_AT_ONCE)):
            graph = dict(part_of(array, part))
            # Each block with its own tasks only: a whole graph for each would cost its square.
            for key in part:
                yield next(numbers), get_sync(cull(graph, key)[0], key)

    def map(
        self,
        name: str,  # noqa: ARG002 - tasks of this process have no names
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        rescue: Rescue[Item, Result] | None = None,  # noqa: ARG002 - see the class
    ) -> Iterator[tuple[int, Result]]:
        """Call in order. See `Pool.map`."""
        yield from enumerate(map(function, items))


def part_of(array: da.Array, keys: list[Any]) -> HighLevelGraph:
    """What some blocks of an array need; tasks of others are never made."""
    part: HighLevelGraph = array.dask.cull(keys)
    return part
