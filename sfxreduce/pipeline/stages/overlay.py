"""Frames of a run, some of which lie in other stores already: those are taken from there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

from sfxreduce.errors import SchemaError
from sfxreduce.io.chunks.layout import Layout
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.io.store.metadata import ZARR_ERRORS
from sfxreduce.io.store.names import AUDIT_GROUP
from sfxreduce.io.writers.shards import MissingPanels, TiledSource, encode_events, marked_in
from sfxreduce.pipeline.stages.plan import FilterPlan, Reread
from sfxreduce.pipeline.stages.reduced import Reduced
from sfxreduce.pipeline.stages.score import Rescored
from sfxreduce.run.run import WrappedFrames

__all__ = ["ReusedFrames", "take_over"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReusedFrames(WrappedFrames):
    """A run whose frames are read from itself, and whose tiles from stores that have them already.

    Small when pickled: which events a store holds, each worker reads from its column
    ``source_index``.

    Parameters
    ----------
    source : FrameSource
        The run.
    stores : tuple of str
        Run stores that hold some of its events.
    stamp : str
        What changes when one of them is replaced under its name.
    layout : Layout
        Of the tiles that are asked for; stores of another are not used.
    copies_tiles : bool
        Whether the run itself has tiles of this layout; otherwise its frames are encoded.
    doubted : tuple of int
        Events that are taken from the run although a store holds them.
    """

    stores: tuple[str, ...]
    stamp: str
    layout: Layout
    copies_tiles: bool
    doubted: tuple[int, ...] = ()

    def encoded(self, events: Sequence[int]) -> Iterator[list[bytes | None]]:
        """Tiles of events in grid order, checksum included; None where the run has none either."""
        return self._encoded(events, None, {})

    def encoded_twice(
        self, events: Sequence[int], unstable: list[int], missing: MissingPanels
    ) -> Iterator[list[bytes | None]]:
        """Tiles of events; see `sfxreduce.io.writers.shards.ReadsTwice`."""
        return self._encoded(events, unstable, missing)

    def _encoded(
        self, events: Sequence[int], unstable: list[int] | None, missing: MissingPanels
    ) -> Iterator[list[bytes | None]]:
        stores = [self.store_of(event) for event in events]
        by_store: dict[str, list[int]] = {}
        for store, event in zip(stores, events, strict=True):
            by_store.setdefault(store, []).append(event)
        # One pass over each store, in turns: neighbours in it share an open file.
        passes = {
            store: self._reused(store, part, unstable, missing)
            if store
            else self._from_run(part, unstable, missing)
            for store, part in by_store.items()
        }
        for store in stores:
            yield next(passes[store])

    def store_of(self, event: int) -> str:
        """Which store holds an event; empty if it has to be read from the run."""
        if event in self.doubted:
            return ""
        for store in self.stores:
            index = _events_in(store, self.stamp)
            place = int(np.searchsorted(index, event))
            if place < index.size and index[place] == event and self._fits(store):
                return store
        return ""

    def _fits(self, store: str) -> bool:
        return ZarrFrames(path=store).layout == self.layout

    def _reused(
        self,
        store: str,
        events: list[int],
        unstable: list[int] | None,
        missing: MissingPanels,
    ) -> Iterator[list[bytes | None]]:
        """Tiles as a store holds them; of an event with a hole, those of the run."""
        places = np.searchsorted(_events_in(store, self.stamp), events).tolist()
        frames = ZarrFrames(path=store)
        marked = marked_in(frames, places)
        for event, place, tiles in zip(events, places, frames.encoded(places), strict=True):
            # What could not be read then, or is damaged since, may be whole in the run.
            doubted = None in tiles or place in marked
            yield next(self._from_run([event], unstable, missing)) if doubted else tiles

    def _from_run(
        self, events: list[int], unstable: list[int] | None, missing: MissingPanels
    ) -> Iterator[list[bytes | None]]:
        if not self.copies_tiles:
            yield from encode_events(
                self.source, self.layout, events, unstable=unstable, missing=missing
            )
        elif isinstance(self.source, TiledSource):
            missing.update(marked_in(self.source, events))
            yield from self.source.encoded(events)
        else:
            raise SchemaError(f"{self.path}: frames are not stored in tiles that can be copied")


@lru_cache(maxsize=8)
def _events_in(store: str, stamp: str) -> NDArray[np.int64]:  # noqa: ARG001 - part of the key
    """Source positions of the events that a store holds, ascending."""
    try:
        array = zarr.open_array(LocalStore(store), path="source_index", mode="r")
        index = np.asarray(array[...], np.int64)
    except ZARR_ERRORS as error:
        raise SchemaError(f"{store}: its column source_index cannot be read ({error})") from error
    return index


def take_over(known: Reduced, plan: FilterPlan, rescored: Rescored) -> FilterPlan:
    """Change a plan so that tiles come from an earlier output where that has them.

    Parameters
    ----------
    known : Reduced
        The earlier output of the same run.
    rescored : Rescored
        What was scored again for the plan.
    """
    stores = [known.path]
    if known.decisions.sample.size:
        stores.append(known.path / AUDIT_GROUP)
    source = ReusedFrames(
        source=plan.run.source,
        stores=tuple(map(str, stores)),
        stamp=known.stamp,
        layout=plan.layout,
        copies_tiles=plan.reduction.copies_tiles,
        doubted=tuple(_doubted(known, plan).tolist()),
    )
    planned = np.concatenate([plan.reduction.kept, plan.audit.kept])
    there = np.isin(planned, _events_there(known, plan))
    return replace(
        plan,
        run=replace(plan.run, source=source),
        reduction=replace(plan.reduction, copies_tiles=True),
        audit=replace(plan.audit, copies_tiles=True),
        reread=Reread(
            **asdict(rescored),
            frames_read=int(np.count_nonzero(~there)),
            frames_taken_over=int(np.count_nonzero(there)),
        ),
    )


def _events_there(known: Reduced, plan: FilterPlan) -> NDArray[np.int64]:
    """Events whose frames the known output holds, tiled as the new one will be."""
    if ZarrFrames(path=str(known.path)).layout != plan.layout:
        return np.zeros(0, np.int64)
    there = np.concatenate([known.decisions.kept, known.decisions.sample])
    return there[~np.isin(there, _doubted(known, plan))]


def _doubted(known: Reduced, plan: FilterPlan) -> NDArray[np.int64]:
    """Events that the run is asked for again, because it may say something else each time.

    Of sampled rejects nobody wrote down whether it did.
    """
    if plan.reduction.copies_tiles:
        return known.unstable
    return np.union1d(known.unstable, np.intersect1d(known.decisions.sample, plan.reduction.kept))
