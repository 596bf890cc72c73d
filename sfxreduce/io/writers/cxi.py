"""Hits as a CXI file that CrystFEL reads, with their peak lists.

The layout is that of CXI 1.6 [1]_, with the LCLS names that CrystFEL looks for. Frames are packed
with gzip and shuffle, which every HDF5 library can unpack, and carry a checksum each; or with Blosc
as in a run store, whose tiles are then copied as they are. The same input gives the same bytes:
nothing in the file depends on time, host or user.

References
----------
.. [1] F. R. N. C. Maia, Nat. Methods 9 (2012) 854. doi:10.1038/nmeth.2110
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.errors import SourceError
from sfxreduce.io.chunks.blosc import SHUFFLES, BloscHeader, MemoryRange
from sfxreduce.io.chunks.shards import CRC_BYTES, TileCodec
from sfxreduce.io.store.metadata import illegal_value
from sfxreduce.io.writers.cxi_content import BloscChunks, CxiContent, PeakTable, plan_blosc_chunks
from sfxreduce.io.writers.cxi_record import write_record
from sfxreduce.io.writers.hdf5 import (
    frames_of,
    gzipped,
    put,
    text,
    write_carried,
    write_hdf5,
    write_times,
)
from sfxreduce.io.writers.shards import TiledSource, marked_in
from sfxreduce.run.detector import Detector, PixelFlag
from sfxreduce.run.reasons import Reason

__all__ = ["write_cxi"]

CXI_VERSION = 160
DETECTOR = "/entry_1/instrument_1/detector_1"
MASK = f"{DETECTOR}/mask"
SLAB_VIEWS = {"data": "slab", "mask": "slab_mask"}
"""Views of frames and mask in ``/entry_1/data_1`` with the panels one below the other."""

JOULE_PER_EV = 1.602176634e-19  # exact, SI 2019


def write_cxi(path: Path, content: CxiContent) -> int:
    """Write a CXI file in this process; see `write_cxi_in_subprocess` for the safe way.

    Frames stay bit for bit. Those of detectors with panels are (event, module, y, x) as the
    specification has it, with a view in which one panel lies below the other, because CrystFEL
    looks for peaks in one; or are written in that way. A frame that cannot be read is left out: its
    chunk is never written, which the reader of this package tells from zeros. Where pixels are
    missing of a frame, the mask has an axis of events, and covers them in that event.

    Parameters
    ----------
    path : Path
        Must not exist; nothing is left there after an error.

    Returns
    -------
    int
        Number of frames left out.

    Raises
    ------
    OutputExists
        If something lies at the path.
    OutputError
        If the file cannot be written.
    """
    return write_hdf5(path, partial(_write, content=content), n_bytes=content.n_bytes)


def _write(file: h5py.File, content: CxiContent) -> int:
    """Write everything; returns the number of frames left out."""
    put(file, "cxi_version", np.int64(CXI_VERSION))
    put(file, "number_of_entries", np.int64(1))
    _write_detector(file, content)
    _write_events(file, content.columns)
    left_out = _write_frames(file, content)
    if content.peaks:
        _write_peaks(file, content.peaks, panel_rows=content.source.detector.panel_shape[0])
    data = file.create_group("/entry_1/data_1")
    for name in ("data", "mask", "experiment_identifier"):
        data[name] = h5py.SoftLink(f"{DETECTOR}/{name}")
    if content.modules:
        data["module_identifier"] = h5py.SoftLink(f"{DETECTOR}/module_identifier")
        _write_slab_view(file, content)
    if "source_index" in content.columns:
        put(file, "/entry_1/data_1/source_index", content.columns["source_index"].values)
    carried = write_carried(file, content.columns)
    if content.run is not None:
        write_record(file, content.run, carried=carried)
    return left_out


def _write_slab_view(file: h5py.File, content: CxiContent) -> None:
    """Write frames and mask once more, as virtual datasets with the panels one below the other."""
    n, (n_y, n_x) = content.source.n_events, content.source.detector.panel_shape
    for name in SLAB_VIEWS:
        stored = file[f"{DETECTOR}/{name}"]
        events = (n,) if stored.ndim > len(content.stored_shape) else ()
        view = (*events, *content.slab_shape)
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        # The high-level way stamps the time on it.
        created.set_obj_track_times(False)
        first = (0,) * len(events)
        for panel in range(len(content.source.detector.panels) if all(events) else 0):
            slab, here = h5py.h5s.create_simple(view), h5py.h5s.create_simple(stored.shape)
            slab.select_hyperslab((*first, panel * n_y, 0), (*events, n_y, n_x))
            here.select_hyperslab((*first, panel, 0, 0), (*events, 1, n_y, n_x))
            created.set_virtual(slab, b".", stored.name.encode(), here)
        place = f"/entry_1/data_1/{SLAB_VIEWS[name]}".encode()
        space = h5py.h5s.create_simple(view)
        h5py.h5d.create(file.id, place, stored.id.get_type(), space, created)


def _write_detector(file: h5py.File, content: CxiContent) -> None:
    """Write place, scale and mask; what is not known stays away."""
    detector = content.source.detector
    put(file, f"{DETECTOR}/description", detector.name)
    facts = {
        "distance": detector.distance_m,
        "x_pixel_size": detector.pixel_size_m,
        "y_pixel_size": detector.pixel_size_m,
        "adu_per_photon": detector.adu_per_photon,
        "saturation_value": detector.saturation_adu,
    }
    for name, value in facts.items():
        if math.isfinite(value):
            put(file, f"{DETECTOR}/{name}", np.float64(value))
    _write_places(file, detector)
    mask = detector.mask.reshape(content.stored_shape)
    chunk = (1, *detector.panel_shape) if content.modules else content.stored_shape
    file.create_dataset(MASK, data=mask, **gzipped(chunk))


def _write_places(file: h5py.File, detector: Detector) -> None:
    """Write where the panels lie, as far as the format can tell it."""
    shape, n = detector.panel_shape, len(detector.panels)
    placed = detector.placed()
    whole = [(p * shape[0], (p + 1) * shape[0], 0, shape[1]) for p in range(n)]
    # A module with several sensors lies in no single place.
    told = [(*sensor.rows, *sensor.columns) for sensor in placed] == whole
    corners = np.full((n, 3), math.nan)
    corners[:, 2] = detector.distance_m
    if told:
        corners[:, :2] = np.array([panel.corner for panel in placed]) * detector.pixel_size_m
    # The specification wants a corner in every file, known or not.
    one = n == 1
    place = put(file, f"{DETECTOR}/corner_position", corners[0] if one else corners)
    if not one:
        place.attrs["axes"] = "module_identifier:coordinate"
    if told and math.isfinite(detector.pixel_size_m):
        # In the order of the axes of a panel's data.
        steps = [[[*panel.slow, 0.0], [*panel.fast, 0.0]] for panel in placed]
        vectors = np.array(steps) * detector.pixel_size_m
        steps_of = put(file, f"{DETECTOR}/basis_vectors", vectors[0] if one else vectors)
        if not one:
            steps_of.attrs["axes"] = "module_identifier:dimension:coordinate"
    if not one:
        # Without the names, the corners of a slab could be taken for those of so many events.
        names = text([panel.name for panel in detector.panels])
        put(file, f"{DETECTOR}/module_identifier", names)


def _mask_pixels(
    file: h5py.File, event: int, missing: NDArray[np.bool_], content: CxiContent
) -> None:
    """Mask pixels in one event; the first one gives every event a mask of its own."""
    shape = content.stored_shape
    if file[MASK].ndim == len(shape):
        common, packing = file[MASK][()], gzipped((1, *file[MASK].chunks))
        del file[MASK]
        n = content.source.n_events
        masks = file.create_dataset(MASK, (n, *shape), np.uint32, **packing)
        for number in range(n):
            masks[number] = common
    file[MASK][event] |= np.where(
        missing.reshape(shape), np.uint32(PixelFlag.INVALID), np.uint32(0)
    )


def _write_frames(file: h5py.File, content: CxiContent) -> int:
    """Write the frames; returns the number left out."""
    source, stored = content.source, content.stored_shape
    in_tiles = content.cxi_filter == "blosc"
    chunks = plan_blosc_chunks(source, modules=content.modules) if in_tiles else None
    # CrystFEL reads panel by panel.
    chunk = (1, 1, *source.detector.panel_shape) if content.modules else (1, *stored)
    packing: dict[str, Any] = gzipped(chunk) if chunks is None else _blosc(chunks)
    if not source.n_events:
        # A chunk may not be larger than the dataset, so an empty one goes without.
        packing = {"track_times": False}
    dtype = np.dtype(source.dtype)
    # A frame that is left out reads as what no detector delivers, never as zeros.
    data = file.create_dataset(
        f"{DETECTOR}/data",
        shape=(source.n_events, *stored),
        # Stored tiles are little-endian on every machine.
        dtype=dtype if chunks is None else dtype.newbyteorder("<"),
        fillvalue=illegal_value(dtype),
        **packing,
    )
    modules = "module_identifier:" if content.modules else ""
    data.attrs["axes"] = f"experiment_identifier:{modules}y:x"
    if chunks is not None:
        return _write_tiles(file, data, content, chunks)
    left_out = 0
    for event, (frame, missing) in enumerate(frames_of(content.source)):
        if frame is None:
            left_out += 1
            continue
        data[event] = frame.reshape(stored)
        if missing is not None:
            _mask_pixels(file, event, missing, content)
    return left_out


def _blosc(chunks: BloscChunks) -> dict[str, Any]:
    """How frames are stored in chunks that are packed before HDF5 sees them."""
    packing = chunks.layout.packing
    # A chunk says itself how to unpack it; these say it of all chunks, to whoever asks HDF5.
    settings: dict[str, Any] = {
        "cname": packing.cname,
        "clevel": packing.clevel,
        "shuffle": SHUFFLES.index(packing.shuffle),
    }
    tile = (1, *chunks.layout.tile) if chunks.modules else chunks.layout.tile
    return {"chunks": (1, *tile), "track_times": False, **hdf5plugin.Blosc(**settings)}


def _write_tiles(
    file: h5py.File, data: h5py.Dataset, content: CxiContent, chunks: BloscChunks
) -> int:
    """Write the tiles of every event that can be read; returns how many are left out."""
    n_bytes = math.prod(chunks.layout.tile) * data.dtype.itemsize
    left_out = 0
    for event, (tiles, missing) in enumerate(_tiles(content, chunks)):
        if missing is not None:
            _mask_pixels(file, event, missing, content)
        packed = [_unsealed(tile, n_bytes) for tile in tiles if tile is not None]
        whole = [buffer for buffer in packed if buffer is not None]
        if len(whole) != len(tiles):
            left_out += 1
            continue
        for number, buffer in enumerate(whole):
            data.id.write_direct_chunk((event, *chunks.offset(number)), buffer)
    return left_out


def _tiles(
    content: CxiContent, chunks: BloscChunks
) -> Iterator[tuple[list[bytes | None], NDArray[np.bool_] | None]]:
    """Tiles of each event, stored ones with their checksums verified or made of the frames; and
    which pixels are missing of it, if any are.
    """
    source, layout = content.source, chunks.layout
    codec = TileCodec(dtype=np.dtype(source.dtype), tile=layout.tile, packing=layout.packing)
    parts = [layout.tile_slices(tile) for tile in range(layout.tiles_per_event)]

    def encoded(frame: NDArray[np.generic] | None) -> list[bytes | None]:
        return [None if frame is None else codec.encode(frame[part]) for part in parts]

    if not (chunks.copies_tiles and isinstance(source, TiledSource)):
        for frame, missing in frames_of(content.source):
            yield encoded(frame), missing
        return
    n_bytes = math.prod(layout.tile) * np.dtype(source.dtype).itemsize
    for event, tiles in enumerate(source.encoded(range(source.n_events))):
        whole = all(tile is not None and _unsealed(tile, n_bytes) is not None for tile in tiles)
        if whole and not marked_in(source, [event]):
            yield tiles, None
            continue
        reading = source.read([event])
        yield encoded(None if reading.lost[0] else reading.pixels[0]), reading.missing.get(0)


def _unsealed(tile: bytes, n_bytes: int) -> bytes | None:
    """Tile without its checksum; None if it speaks of other than `n_bytes` bytes of pixels."""
    packed = tile[:-CRC_BYTES]
    # HDF5 takes it on trust that a filter gives back a whole chunk.
    with suppress(SourceError):
        BloscHeader.of(MemoryRange(data=memoryview(packed)), n_bytes=n_bytes)
        return packed
    return None


def _write_events(file: h5py.File, columns: xr.Dataset) -> None:
    """Write what is known of each event, in SI units and under the LCLS names."""
    names = text([str(name) for name in columns["event_id"].values])
    put(file, f"{DETECTOR}/experiment_identifier", names)
    write_times(file, columns)
    energy_ev = columns["photon_energy_ev"].values
    if np.isfinite(energy_ev).any():
        put(file, "/LCLS/photon_energy_eV", energy_ev)
        put(file, "/entry_1/instrument_1/source_1/energy", energy_ev * JOULE_PER_EV)
    pulse_mj = columns["pulse_energy_mj"].values
    if np.isfinite(pulse_mj).any():
        put(file, "/LCLS/pulse_energy_mJ", pulse_mj)
        put(file, "/entry_1/instrument_1/source_1/pulse_energy", pulse_mj * 1e-3)
    if "score" in columns:
        # By the specification a row for each heading: events are the fastest axis.
        score = np.asarray(columns["score"].values, np.float32)[np.newaxis]
        put(file, f"{DETECTOR}/score", score).attrs["headings"] = text(["score"])
    if "reason" in columns:
        _write_tags(file, columns["reason"].values.astype(np.uint32))


def _write_tags(file: h5py.File, reasons: NDArray[np.uint32]) -> None:
    """Write which events have which reasons, a row for each that any event has."""
    told = [reason for reason in Reason if np.any(reasons & np.uint32(reason))]
    if not told:
        return
    tags = np.array([(reasons & np.uint32(reason)) != 0 for reason in told], np.uint8)
    headings = text([str(reason.name).lower() for reason in told])
    put(file, f"{DETECTOR}/tags", tags).attrs["headings"] = headings


def _write_peaks(file: h5py.File, peaks: PeakTable, *, panel_rows: int) -> None:
    """Write the peak lists as CrystFEL reads them, padded with zeros."""
    n, most = len(peaks.count), max([1, *peaks.count])
    event = np.repeat(np.arange(n), peaks.count)
    place = np.arange(len(event)) - np.repeat(np.cumsum(peaks.count) - peaks.count, peaks.count)
    # CrystFEL takes a two-dimensional nPeaks for no peaks at all, without a word.
    put(file, "/entry_1/result_1/nPeaks", peaks.count.astype(np.int32))
    lists = {
        "peakXPosRaw": peaks.x,
        "peakYPosRaw": peaks.y + peaks.panel * panel_rows,
        "peakTotalIntensity": peaks.intensity,
        "peakMaximumValue": peaks.max_intensity,
        "peakSNR": peaks.snr,
        "peakNPixels": peaks.n_pixels,
    }
    for name, values in lists.items():
        table = np.zeros((n, most), np.float32)
        table[event, place] = values
        put(file, f"/entry_1/result_1/{name}", table)
