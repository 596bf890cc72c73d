"""The metadata of a Zarr store: schema, detector, and whether its tiles can be copied."""

from __future__ import annotations

import json
import lzma
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec

from sfxreduce.errors import RunNotFound, SchemaError, SourceError
from sfxreduce.io.chunks.blosc import Packing
from sfxreduce.io.chunks.layout import Layout
from sfxreduce.io.chunks.limits import check_extent, check_frames
from sfxreduce.io.chunks.shards import TileCodec
from sfxreduce.io.files.durable import disk_bytes
from sfxreduce.io.store.guard import GuardedStore, check_tree
from sfxreduce.io.store.names import FRAMES, PANEL_MISSING, SCHEMA, SCHEMA_VERSION
from sfxreduce.run.detector import Detector, Panel, Sensor

__all__ = [
    "ZARR_ERRORS",
    "Store",
    "detector_from_json",
    "detector_to_json",
    "illegal_value",
    "open_store",
    "pixels_missing",
]

ZARR_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    zlib.error,
)
"""What the zarr library raises on damaged metadata or chunks, depending on what is damaged."""


MOST_SHARD_BYTES = 16 << 30
"""Largest shard of our kind: its events are read together."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Store:
    """An opened store: its metadata, and nothing of its frames.

    Parameters
    ----------
    array : zarr.Array
        The frames.
    folder : Path
        Of that array.
    attributes : dict
        Of the group.
    layout : Layout or None
        Tile grid; None if the frames are not stored in tiles of our kind.
    own : bool
        Whether the store has our schema, by which a tile that is absent is a hole; by that of Zarr
        it is one of fill values only.
    missing : ndarray of bool
        Shape (event, panel): panels that are not whole although tiles of them may be there.
    fill : int or float
        What stands in the pixels that are missing of them.
    """

    array: zarr.Array[Any]
    folder: Path
    attributes: dict[str, Any]
    detector: Detector
    layout: Layout | None
    own: bool
    missing: NDArray[np.bool_]
    fill: float

    @property
    def n_events(self) -> int:
        """Number of events."""
        return int(self.array.shape[0])

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of a pixel."""
        return np.dtype(self.array.dtype)


def open_store(path: str, data_path: str = "") -> Store:
    """Open the metadata of a Zarr store with frames; kept until the store is replaced.

    Parameters
    ----------
    data_path : str
        Of the array of the frames in a group; by default ``frames``, or the store itself if that
        is an array.

    Raises
    ------
    RunNotFound
        If the path does not exist.
    SourceError
        If it may not be read.
    SchemaError
        If it is no Zarr group, has no frames, or was written by a newer version.
    """
    return _open(path, data_path.strip("/"), _fingerprint(path))


def _fingerprint(path: str) -> tuple[int, int, int]:
    """What changes when a store is replaced under its name or grows, so that no old one is served.

    Of an array that another program makes longer, only its own metadata change.
    """
    *names, frames = _metadata_of(path)
    for name in names:
        try:
            facts = name.stat()
        except PermissionError as error:
            raise SourceError(
                f"{path}: cannot be entered ({error.strerror}); ask for the right to read it"
            ) from error
        except OSError:
            continue
        try:
            frames_ns = frames.stat().st_mtime_ns
        except OSError:
            frames_ns = 0
        return facts.st_ino, facts.st_mtime_ns, frames_ns
    raise RunNotFound(f"{path}: no such file or folder; was it moved while it was read?")


@lru_cache(maxsize=64)
def _metadata_of(path: str) -> tuple[Path, ...]:
    """Files that speak for a store, those of its frames last: asked for with every few events."""
    names = ("zarr.json", ".zgroup", ".zarray", ".", f"{FRAMES}/zarr.json")
    return tuple(Path(path) / name for name in names)


@lru_cache(maxsize=8)
def _open(path: str, data_path: str, _fingerprint: tuple[int, int, int]) -> Store:
    root, array = _open_array(path, data_path)
    folder = Path(path) / (array.path if isinstance(root, zarr.Group) else "")
    if array.ndim not in (3, 4) or array.dtype.kind not in "iuf":
        raise SchemaError(
            f"{path}: expected frames (event, [panel,] y, x) of numbers, found shape "
            f"{array.shape} of {array.dtype}; name the array of the frames with --data-path"
        )
    where = f"{path}: {array.path or 'the array'}"
    check_frames(array.shape[1:], np.dtype(array.dtype), where=where)
    check_extent(array.shape, np.dtype(array.dtype), stored=lambda: disk_bytes(folder), where=where)
    # A bare array has no group beside it, and its attributes are of any kind.
    group = root if isinstance(root, zarr.Group) else None
    attributes = dict(group.attrs) if group is not None and array.path == FRAMES else {}
    version = attributes.get("schema_version", SCHEMA_VERSION)
    if attributes.get("schema", SCHEMA) != SCHEMA or version != SCHEMA_VERSION:
        raise SchemaError(
            f"{path}: expected schema '{SCHEMA}' version {SCHEMA_VERSION}, found "
            f"'{attributes.get('schema')}' version {version}; a newer sfxreduce may read it"
        )
    detector = _detector(path, group, array, attributes)
    own = attributes.get("schema") == SCHEMA
    layout = _own_layout(array) if own else None
    shape = (int(array.shape[0]), len(detector.panels))
    missing, fill = _missing(path, group if own else None, shape)
    return Store(
        array=array,
        folder=folder,
        attributes=attributes,
        detector=detector,
        layout=layout,
        own=own,
        missing=missing,
        fill=illegal_value(np.dtype(array.dtype)) if fill is None else fill,
    )


def _open_array(path: str, data_path: str) -> tuple[zarr.Group | zarr.Array[Any], zarr.Array[Any]]:
    """Open a store, and the array of its frames.

    Raises
    ------
    SourceError
        If it may not be read.
    SchemaError
        If it is no store, or there is no such array.
    """
    try:
        check_tree(Path(path))
        # Consolidated metadata would be a second copy, which nobody has judged.
        root = zarr.open(GuardedStore(path), mode="r", use_consolidated=False)
        found = sorted(child.name for child in Path(path).iterdir() if child.is_dir())
        plain = not {"", ".", ".."}.intersection((data_path or FRAMES).split("/"))
        is_group = isinstance(root, zarr.Group)
        array = root.get(data_path or FRAMES) if isinstance(root, zarr.Group) and plain else None
    except PermissionError as error:
        raise SourceError(
            f"{path}: cannot be read ({error.strerror}); ask for the right to read it"
        ) from error
    except ZARR_ERRORS as error:
        raise SchemaError(
            f"{path}: expected a Zarr group, found none ({type(error).__name__}); "
            "give a run store, a CXI or an HDF5 file"
        ) from error
    if isinstance(root, zarr.Array) and not data_path:
        return root, root
    if not isinstance(array, zarr.Array):
        held = found if is_group else "a bare array"
        how = "Name the array of the frames with" if is_group else "Read it without"
        raise SchemaError(
            f"{path}: no array '{data_path or FRAMES}'; found {held}. Was it made by 'sfxreduce "
            f"ingest'? {how} --data-path"
        )
    return root, array


def _missing(
    path: str, group: zarr.Group | None, shape: tuple[int, int]
) -> tuple[NDArray[np.bool_], float | None]:
    """Panels that are marked as missing, and what stands there, if the store says so."""
    try:
        column = None if group is None else group.get(PANEL_MISSING)
        if not isinstance(column, zarr.Array):
            return np.zeros(shape, np.bool_), None
        if column.shape != shape or column.dtype != np.dtype(np.bool_):
            raise SchemaError(
                f"{path}/{PANEL_MISSING}: expected {shape} of bool, found {column.shape} of "
                f"{column.dtype}"
            )
        fill = column.attrs.get("fill_value")
        return np.asarray(column[...]), fill if isinstance(fill, int) else None
    except ZARR_ERRORS as error:
        raise SourceError(
            f"{path}/{PANEL_MISSING}: cannot be read ({error}); restore it from a copy"
        ) from error


def _detector(
    path: str, group: zarr.Group | None, array: zarr.Array[Any], attributes: dict[str, Any]
) -> Detector:
    """Geometry as stored; without one, the beam is at the frame's centre."""
    shape = tuple(int(n) for n in array.shape[1:])
    mask = np.zeros(shape, np.uint32)
    beside = array.path.rpartition("/")[0]
    try:
        stored = None if group is None else group.get(f"{beside}/mask".lstrip("/"))
        if isinstance(stored, zarr.Array):
            if stored.shape != shape:
                raise SchemaError(
                    f"{path}/mask: expected the shape of a frame, {shape}, found {stored.shape}"
                )
            mask = np.asarray(stored[...])
    except ZARR_ERRORS as error:
        raise SourceError(
            f"{path}/mask: expected a readable mask, found damage ({error}); restore it from a copy"
        ) from error
    if "detector" in attributes:
        return detector_from_json(attributes["detector"], mask=mask, where=path)
    return Detector.unplaced(Path(path).stem, shape).with_mask((mask != 0).astype(np.uint32))


def _own_layout(array: zarr.Array[Any]) -> Layout | None:
    """Tile grid of a store of our kind, recognised by its codecs to the letter.

    Tiles may be packed by Blosc in any way: whatever it was, they say how to unpack them.
    """
    shards = array.shards
    if shards is None or any(n != 1 for n in array.chunks[:-2]):
        return None
    found = json.loads(json.dumps(array.metadata.to_dict()["codecs"], default=_plain))
    packing = _packing(found)
    if packing is None:
        return None
    layout = Layout(
        frame_shape=tuple(int(n) for n in array.shape[1:]),
        tile=(int(array.chunks[-2]), int(array.chunks[-1])),
        events_per_shard=int(shards[0]),
        packing=packing,
    )
    dtype = np.dtype(array.dtype)
    codec = TileCodec(dtype=dtype, tile=layout.tile, packing=packing)
    serializer, compressors = codec.zarr_codecs()
    expected = {
        "chunk_shape": list(layout.chunks),
        "codecs": [codec.to_dict() for codec in (serializer, *compressors)],
        "index_codecs": [codec.to_dict() for codec in (BytesCodec(), compressors[-1])],
        "index_location": "end",
    }
    shard_bytes = math.prod(layout.shards) * dtype.itemsize
    if shard_bytes > MOST_SHARD_BYTES:
        raise SchemaError(
            f"{array.path}: expected shards of at most {MOST_SHARD_BYTES} bytes of frames, found "
            f"{shard_bytes}; write the store with fewer events in a shard"
        )
    same = found == [
        {
            "name": "sharding_indexed",
            "configuration": json.loads(json.dumps(expected, default=_plain)),
        }
    ]
    return layout if same and layout.shards == shards else None


def _packing(codecs: Any) -> Packing | None:
    """Settings of Blosc in the chain of a sharded array; None if the chain has another form."""
    match codecs:
        case [{"configuration": {"codecs": [_, {"name": "blosc", "configuration": found}, _]}}]:
            settings = {name: found[name] for name in ("cname", "clevel", "shuffle", "blocksize")}
            return Packing(**settings)
    return None


def _plain(value: Any) -> Any:
    return getattr(value, "value", None) or list(value)


_NUMBERS = ("pixel_size_m", "distance_m", "adu_per_photon", "saturation_adu")


def detector_to_json(detector: Detector) -> dict[str, Any]:
    """Detector without its mask, as JSON; what is unknown is null."""
    numbers = {name: getattr(detector, name) for name in _NUMBERS}
    return {
        "name": detector.name,
        "stacked": detector.stacked,
        "panel_shape": list(detector.panel_shape),
        **{name: None if math.isnan(value) else value for name, value in numbers.items()},
        "panels": [asdict(panel) for panel in detector.panels],
        # Only a geometry file has them: other stores stay as earlier versions wrote them.
        **(
            {"sensors": [asdict(sensor) for sensor in detector.sensors]} if detector.sensors else {}
        ),
        **({"crystfel": detector.crystfel} if detector.crystfel else {}),
    }


def detector_from_json(
    facts: Mapping[str, Any], *, mask: NDArray[np.uint32], where: str
) -> Detector:
    """Detector as `detector_to_json` wrote it.

    Parameters
    ----------
    facts : mapping
    mask : ndarray of uint32
        In the shape of a frame.
    where : str
        Path of the store, for the message.

    Raises
    ------
    SchemaError
        If a fact is missing or of the wrong kind.
    """
    try:
        panels = tuple(
            Panel(
                name=str(panel["name"]),
                **{name: _pair(panel[name]) for name in ("corner", "fast", "slow")},
            )
            for panel in facts["panels"]
        )
        sensors = tuple(
            Sensor(
                name=str(sensor["name"]),
                corner=_pair(sensor["corner"]),
                fast=_pair(sensor["fast"]),
                slow=_pair(sensor["slow"]),
                rows=_integers(sensor["rows"]),
                columns=_integers(sensor["columns"]),
            )
            for sensor in facts.get("sensors", ())
        )
        n_y, n_x = _integers(facts["panel_shape"])
        crystfel = str(facts.get("crystfel", ""))
        numbers = {
            name: math.nan if facts[name] is None else float(facts[name]) for name in _NUMBERS
        }
        name, stacked = str(facts["name"]), bool(facts["stacked"])
    except (KeyError, TypeError, ValueError) as error:
        raise SchemaError(
            f"{where}: the attribute 'detector' lacks or garbles {error}; "
            "was the store made by 'sfxreduce ingest'?"
        ) from error
    return Detector(
        name=name,
        panel_shape=(n_y, n_x),
        panels=panels,
        stacked=stacked,
        mask=mask,
        sensors=sensors,
        crystfel=crystfel,
        **numbers,
    )


def illegal_value(dtype: np.dtype[np.generic]) -> int | float:
    """Value that no detector delivers: what a hole in ``frames`` reads as.

    Examples
    --------
    >>> illegal_value(np.dtype("int16")), illegal_value(np.dtype("uint16"))
    (-32768, 65535)
    """
    if dtype.kind not in "iu":
        return math.nan
    limits = np.iinfo(dtype.str)
    return int(limits.min if dtype.kind == "i" else limits.max)


def pixels_missing(
    frame: NDArray[np.generic], panels: NDArray[np.bool_], *, fill: float
) -> NDArray[np.bool_]:
    """Pixels of marked panels in which the fill value stands; all of a panel that has none.

    Parameters
    ----------
    frame : ndarray
        Shape (y, x) or (panel, y, x).
    panels : ndarray of bool
        Shape (panel,).

    Examples
    --------
    >>> pixels_missing(np.array([[[7, -1]], [[7, -1]]]), np.array([False, True]), fill=-1).tolist()
    [[[False, False]], [[False, True]]]
    """
    missing = np.zeros(frame.shape, np.bool_)
    rows, filled = (array.reshape(panels.size, -1) for array in (missing, frame))
    for panel in np.flatnonzero(panels):
        row = filled[panel]
        empty = np.isnan(row) if frame.dtype.kind == "f" else row == fill
        rows[panel] = empty if empty.any() else True
    return missing


def _pair(value: Any) -> tuple[float, float]:
    x, y = value
    return float(x), float(y)


def _integers(value: Any) -> tuple[int, int]:
    first, second = value
    return int(first), int(second)
