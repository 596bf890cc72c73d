"""What the metadata of somebody's Zarr may ask for: codecs that are known, sizes that can be held.

The JSON is judged before the zarr library sees it, which would import a codec by its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfxreduce.errors import SchemaError
from sfxreduce.io.chunks.limits import MOST_CHUNK_BYTES

__all__ = ["ArrayRules", "rules_of_array"]

PACKINGS = ("blosc", "zstd", "gzip", "zlib", "lz4")
"""Codecs that make bytes fewer; each has its `sfxreduce.io.chunks.limits` rule."""

TEXTS = ("vlen-utf8",)
CHECKSUMS = ("crc32c",)
SHAPERS = ("bytes", "endian", "transpose", "shuffle", "delta", "fletcher32")
SHARDS = "sharding_indexed"
NUMCODECS = "numcodecs."
"""Beginning of the names that Zarr v3 gives to codecs of Zarr v2."""

KNOWN = (*PACKINGS, *TEXTS, *CHECKSUMS, *SHAPERS)

MOST_AXES = 32
MOST_SIDE = 1 << 62
MOST_INNER_CHUNKS = 1 << 24
TEXT_ITEM_BYTES = 64
MOST_GROWTH = 8
"""Most times that a filter of Zarr v2 makes numbers wider."""
SLACK_BYTES = 1 << 16

V3_ITEM_BYTES = {"bool": 1, "string": TEXT_ITEM_BYTES, "complex64": 8, "complex128": 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayRules:
    """What the chunks of one array may be, by its metadata.

    Parameters
    ----------
    shape, chunk : tuple of int
        Of the array, and of what is unpacked at once, which may lie in a shard.
    item_bytes : int
        Of a value; of text, what a short one takes in memory.
    packing : str
        Codec that stored bytes were packed with; empty if with none.
    crc_bytes : int
        Bytes of checksum behind what was packed.
    is_text : bool
        Whether values are text of any length.
    grows : bool
        Whether a filter may have made values wider before they were packed.
    inner_chunks : int
        Chunks in a shard; 0 if there are no shards.
    index_first : bool
        Whether the index of a shard stands at its start.
    index_crc_bytes : int
        Bytes of checksum behind the index.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    item_bytes: int
    packing: str
    crc_bytes: int
    is_text: bool
    grows: bool
    inner_chunks: int = 0
    index_first: bool = False
    index_crc_bytes: int = 0

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole array, as it is declared."""
        return math.prod(self.shape) * self.item_bytes

    @property
    def most_unpacked(self) -> int:
        """Most bytes that a stored chunk may unpack to."""
        if self.is_text:
            return MOST_CHUNK_BYTES
        return math.prod(self.chunk) * self.item_bytes * (MOST_GROWTH if self.grows else 1) + (
            SLACK_BYTES
        )

    @property
    def index_bytes(self) -> int:
        """Bytes of a shard's index."""
        return 16 * self.inner_chunks + self.index_crc_bytes

    @property
    def n_chunks(self) -> int:
        """Number of chunks that the whole array is unpacked from."""
        return math.prod(-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True))


def rules_of_array(document: Mapping[str, Any], *, where: str) -> ArrayRules:
    """Judge the metadata of an array.

    Parameters
    ----------
    document : mapping
        Of ``zarr.json`` or ``.zarray``.
    where : str
        Path, for the message.

    Raises
    ------
    SchemaError
        If a codec is not one of those that are known to run no code of others, if shapes make no
        sense, or a chunk is larger than `MOST_CHUNK_BYTES`.
    """
    try:
        rules = (
            _v3(document, where)
            if "zarr_format" in document and document["zarr_format"] == 3
            else _v2(document, where)
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise SchemaError(
            f"{where}: expected the metadata of a Zarr array, found it garbled ({error!r}); fetch "
            "the store again"
        ) from error
    n_bytes = math.prod(rules.chunk) * rules.item_bytes
    if n_bytes > MOST_CHUNK_BYTES:
        raise SchemaError(
            f"{where}: expected chunks of at most {MOST_CHUNK_BYTES} bytes, found {rules.chunk} of "
            f"{rules.item_bytes} bytes; store it in smaller chunks"
        )
    return rules


def _v3(document: Mapping[str, Any], where: str) -> ArrayRules:
    """Rules by a ``zarr.json``."""
    if document.get("storage_transformers"):
        raise SchemaError(f"{where}: storage transformers are not known; store the array plainly")
    shape = _sides(document["shape"], least=0, where=where)
    grid = document["chunk_grid"]
    if grid["name"] != "regular":
        raise SchemaError(f"{where}: expected a regular chunk grid, found {grid['name']!r:.40}")
    chunk = _sides(grid["configuration"]["chunk_shape"], least=1, where=where)
    _same_axes(shape, chunk, where)
    chain = [_named(codec) for codec in document["codecs"]]
    item_bytes = _v3_item_bytes(document["data_type"])
    shards: dict[str, Any] = {}
    if [name for name, _ in chain] == [SHARDS]:
        chunk, chain, shards = _shards(chain[0][1], chunk, where)
    return ArrayRules(
        shape=shape, chunk=chunk, item_bytes=item_bytes, **_chain(chain, where), **shards
    )


def _shards(
    settings: Mapping[str, Any], shard: tuple[int, ...], where: str
) -> tuple[tuple[int, ...], list[tuple[str, Mapping[str, Any]]], dict[str, Any]]:
    """Chunk, codecs and index of an array whose chunks lie in shards."""
    inner = _sides(settings["chunk_shape"], least=1, where=where)
    _same_axes(shard, inner, where)
    inner_chunks = math.prod(-(-n // c) for n, c in zip(shard, inner, strict=True))
    if inner_chunks > MOST_INNER_CHUNKS:
        raise SchemaError(
            f"{where}: expected at most {MOST_INNER_CHUNKS} chunks in a shard, found {inner_chunks}"
        )
    index = [name for name, _ in map(_named, settings["index_codecs"])]
    if index not in (["bytes"], ["bytes", *CHECKSUMS]):
        raise SchemaError(f"{where}: expected a plain index of shards, found one packed by {index}")
    facts = {
        "inner_chunks": inner_chunks,
        "index_first": settings.get("index_location", "end") == "start",
        "index_crc_bytes": 4 * (len(index) - 1),
    }
    return inner, [_named(codec) for codec in settings["codecs"]], facts


def _v2(document: Mapping[str, Any], where: str) -> ArrayRules:
    """Rules by a ``.zarray``."""
    shape = _sides(document["shape"], least=0, where=where)
    chunk = _sides(document["chunks"], least=1, where=where)
    _same_axes(shape, chunk, where)
    stages = [*(document.get("filters") or ()), document.get("compressor")]
    chain = [(str(stage["id"]), stage) for stage in stages if stage is not None]
    facts = _chain(chain, where)
    kind = document["dtype"]
    if not isinstance(kind, str):
        raise SchemaError(f"{where}: expected values of a plain dtype, found records")
    if kind == "|O" and not facts["is_text"]:
        raise SchemaError(
            f"{where}: expected numbers or text, found Python objects, which could run code; "
            "store the array as numbers"
        )
    found = re.fullmatch(r"[<>|=]?([biufcSUOMm])(\d*)(\[\w+\])?", kind)
    if found is None:
        raise SchemaError(f"{where}: expected values of a plain dtype, found {kind[:40]!r}")
    width = int(found[2] or TEXT_ITEM_BYTES) * (4 if found[1] == "U" else 1)
    return ArrayRules(shape=shape, chunk=chunk, item_bytes=max(width, 1), **facts)


def _chain(chain: Sequence[tuple[str, Mapping[str, Any]]], where: str) -> dict[str, Any]:
    """What a chain of codecs means for stored bytes, outermost last."""
    names = [name.removeprefix(NUMCODECS) for name, _ in chain]
    unknown = [name for name in names if name not in KNOWN]
    if unknown:
        raise SchemaError(
            f"{where}: the codec {unknown[0][:40]!r} is not among those that are accepted, "
            f"{', '.join(KNOWN)}; store the array with one of them"
        )
    crc_bytes = 0
    while names and names[-1] in CHECKSUMS:
        names.pop()
        crc_bytes += 4
    packings = [name for name in names if name in PACKINGS]
    if len(packings) > 1 or (packings and packings[-1] != names[-1]):
        raise SchemaError(
            f"{where}: expected values to be packed once, after all else, found {names}; store the "
            "array with one compressor"
        )
    return {
        "packing": packings[0] if packings else "",
        "crc_bytes": crc_bytes,
        "is_text": any(name in TEXTS for name in names),
        "grows": "delta" in names,
    }


def _named(codec: Any) -> tuple[str, Mapping[str, Any]]:
    """Name and settings of a codec of Zarr v3."""
    if isinstance(codec, str):
        return codec, {}
    return str(codec["name"]), codec.get("configuration") or {}


def _v3_item_bytes(kind: Any) -> int:
    """Bytes of a value of Zarr v3."""
    if isinstance(kind, Mapping):
        settings = kind.get("configuration") or {}
        return max(int(settings.get("length_bytes", 8)), 1)
    if kind in V3_ITEM_BYTES:
        return V3_ITEM_BYTES[kind]
    found = re.fullmatch(r"(?:u?int|float|r)(\d{1,6})", kind)
    if found is None:
        raise ValueError(f"data type {kind!r:.40}")
    return max(int(found[1]) // 8, 1)


def _sides(values: Any, *, least: int, where: str) -> tuple[int, ...]:
    """Lengths of axes."""
    if not isinstance(values, list) or len(values) > MOST_AXES:
        raise SchemaError(f"{where}: expected a shape of at most {MOST_AXES} axes")
    for value in values:
        if type(value) is not int or not least <= value <= MOST_SIDE:
            raise SchemaError(
                f"{where}: expected axes of {least} to 2**62 values, found {value!r:.40}"
            )
    return tuple(values)


def _same_axes(shape: Sequence[int], chunk: Sequence[int], where: str) -> None:
    if len(shape) != len(chunk):
        raise SchemaError(f"{where}: expected chunks of {len(shape)} axes, found {len(chunk)}")
