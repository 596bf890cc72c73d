"""Tiles of a run store, found in its shards and decoded to where they belong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SourceError
from sfxreduce.io.chunks.layout import Layout
from sfxreduce.io.chunks.pieces import TilePiece
from sfxreduce.io.chunks.shards import ShardFile, TileCodec, check_crc
from sfxreduce.run.reasons import Reason

__all__ = ["StoredEvent", "events_in_shards", "read_pieces", "read_whole_tiles"]

# Their packed bytes are held until they are unpacked together.
_TILES_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredEvent:
    """One event in its open shard; without a shard there is a reason."""

    place: int
    first: int
    n_tiles: int
    shard: ShardFile | None
    reason: Reason

    def whole(self) -> bool:
        """Whether the shard's index lists every tile of the event."""
        tiles = np.arange(self.first, self.first + self.n_tiles)
        return self.shard is not None and bool(self.shard.holds(tiles).all())

    def tile(self, tile: int) -> bytes | None:
        """Stored bytes of a tile; None if it is absent."""
        return self.shard.read(self.first + tile) if self.shard else None

    def checked_tile(self, tile: int) -> bytes | None:
        """Stored bytes of a tile; None if it is absent or damaged."""
        try:
            encoded = self.tile(tile)
            if encoded is not None:
                check_crc(encoded)
        except SourceError:
            return None
        return encoded


def read_pieces(
    stored: Iterable[StoredEvent],
    codec: TileCodec,
    pieces: Sequence[TilePiece],
    pixels: NDArray[np.generic],
    reasons: NDArray[np.uint32],
) -> None:
    """Read what a picture shows of every tile, tile by tile."""
    for event in stored:
        if not event.whole():
            reasons[event.place] = event.reason or Reason.DATA_HOLE
            continue
        try:
            for piece in pieces:
                tile = codec.decode(event.tile(piece.tile) or b"", piece.spans)
                piece.put(tile, pixels[event.place])
        except SourceError:
            reasons[event.place] = Reason.READ_ERROR


def read_whole_tiles(
    stored: Iterable[StoredEvent],
    codec: TileCodec,
    wanted: tuple[Sequence[TilePiece], NDArray[np.int64]],
    pixels: NDArray[np.generic],
    reasons: NDArray[np.uint32],
) -> None:
    """Read tiles right to where they go, many at once."""
    pieces, places = wanted
    rows = pixels.reshape(-1, *codec.tile)
    there = places.tolist()
    encoded: list[bytes] = []
    targets: list[int] = []

    def decode() -> None:
        if not encoded:
            return
        at = np.array(targets, np.int64)
        lost = at[~codec.decode_many(encoded, rows, at)] // pixels.shape[1]
        reasons[lost], pixels[lost] = Reason.READ_ERROR, 0
        encoded.clear()
        targets.clear()

    for event in stored:
        if not event.whole():
            reasons[event.place] = event.reason or Reason.DATA_HOLE
            continue
        try:
            encoded += [event.tile(piece.tile) or b"" for piece in pieces]
        except SourceError:
            reasons[event.place] = Reason.READ_ERROR
            continue
        targets += [event.place * pixels.shape[1] + place for place in there]
        if len(encoded) >= _TILES_AT_ONCE:
            decode()
    decode()


def events_in_shards(path: str, layout: Layout, events: Sequence[int]) -> Iterator[StoredEvent]:
    """Events in the order asked for; consecutive ones of one shard share its open file."""
    n_tiles = layout.tiles_per_event
    for number, group in groupby(enumerate(events), key=lambda item: layout.locate(item[1])[0]):
        file = Path(path) / "frames" / layout.shard_key(number)
        shard, reason = None, Reason(0)
        try:
            shard = ShardFile(file, n_tiles=n_tiles * layout.events_per_shard)
        except SourceError:
            reason = Reason.READ_ERROR if file.exists() else Reason.DATA_HOLE
        with shard or nullcontext():
            for place, event in group:
                yield StoredEvent(
                    place=place,
                    first=layout.locate(event)[1] * n_tiles,
                    n_tiles=n_tiles,
                    shard=shard,
                    reason=reason,
                )
