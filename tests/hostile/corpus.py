"""Hostile and broken inputs, each made by a function: nothing of them is kept in the repository.

A function makes its input in the folder that it is given, and returns the command line that is to
meet it. Beside that folder lies a secret that must not be read, and a canary that must not sing.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import shutil
import struct
import warnings
import zlib
from bz2 import compress as bz2_compress
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numcodecs
import numpy as np
import zarr
from planted import planted_run
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from sfxreduce.cluster import SerialPool
from sfxreduce.io.open import open_run
from sfxreduce.io.store.manifest import _digest
from sfxreduce.pipeline.filter import Outputs, filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.scorers.cnn.folder import default_model
from sfxreduce.scorers.peaks.finder import PeakScorer

__all__ = ["CANARY", "CASES", "SECRET", "SECRET_WORDS", "Case", "make_good_run"]

CANARY = "canary"
SECRET = "secret.bin"
SECRET_WORDS = b"the secret that nobody may read "
DATA = "/entry_1/data_1/data"
SHAPE = (4, 40, 40)
BOMB_BYTES = 1 << 30
PART_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Case:
    """What to do with a hostile input, and what has to come of it.

    Parameters
    ----------
    arguments : list of str
        Of the command line.
    status : int
        Its exit status.
    says : str
        Part of the one line on standard error; empty if the command goes on.
    undecided : int
        Events that are undecided, where the command goes on.
    """

    arguments: list[str]
    status: int = 1
    says: str = ""
    undecided: int = 0


Maker = Callable[[Path], Case]
CASES: dict[str, Maker] = {}


def hostile(maker: Maker) -> Maker:
    CASES[maker.__name__] = maker
    return maker


class _Opens:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def evil_pickle(folder: Path) -> bytes:
    return pickle.dumps(_Opens(folder.parent / CANARY))


def refused(path: Path, says: str, *, status: int = 1, **options: str) -> Case:
    """`filter` has to refuse it with a line."""
    return Case(arguments=_filter(path, **options), status=status, says=says)


def kept(path: Path, n_events: int = SHAPE[0], **options: str) -> Case:
    """`filter` has to go on, and to keep these events as undecided."""
    return Case(arguments=_filter(path, **options), status=0, undecided=n_events)


def _filter(path: Path, **options: str) -> list[str]:
    more = [part for name, value in options.items() for part in (f"--{name}", value) if part]
    scorer = [] if "model" in options else ["--scorer", "peaks"]
    # The output's folder is the input's: what is left behind there is seen.
    out = path.parent / "hits.zarr"
    return ["filter", "--in", str(path), "--out", str(out), "--serial", "--json", *scorer, *more]


# --------------------------------------------------------------------------------------- Zarr


def frames_of(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(4).integers(80, 120, shape).astype("<i2")


def theirs(folder: Path, version: int = 3, **options: Any) -> Path:
    """Somebody's store; by default four events of plain pixels."""
    path = folder / "run.zarr"
    shape = options.pop("shape", SHAPE)
    options.setdefault("chunks", (1, *shape[1:]))
    options.setdefault("compressors", None)
    fill = options.pop("fill", True)
    with warnings.catch_warnings(action="ignore"):
        group = zarr.create_group(str(path), zarr_format=version)  # type: ignore[arg-type]
        array = group.create_array("frames", shape=shape, dtype="<i2", **options)
        if fill:
            array[...] = frames_of(shape)
    return path


def edit(path: Path, change: Callable[[dict[str, Any]], object], name: str = "zarr.json") -> Path:
    """Change the metadata of the frames."""
    file = path / "frames" / name
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    return path


@hostile
def zarr_v2_pickled_frames(folder: Path) -> Case:
    path = theirs(folder, 2)
    edit(path, lambda d: d.update(dtype="|O", filters=[{"id": "pickle"}]), ".zarray")
    (path / "frames" / "0.0.0").write_bytes(evil_pickle(folder))
    return refused(path, "codec 'pickle'")


@hostile
def zarr_v2_objects_without_a_codec(folder: Path) -> Case:
    path = theirs(folder, 2)
    edit(path, lambda d: d.update(dtype="|O", filters=None), ".zarray")
    return refused(path, "Python objects")


@hostile
def zarr_v2_msgpack(folder: Path) -> Case:
    path = theirs(folder, 2)
    edit(path, lambda d: d.update(dtype="|O", filters=[{"id": "msgpack2"}]), ".zarray")
    return refused(path, "codec 'msgpack2'")


@hostile
def zarr_v3_pickle_codec(folder: Path) -> Case:
    path = theirs(folder)
    edit(path, lambda d: d.update(codecs=[{"name": "numcodecs.pickle", "configuration": {}}]))
    (path / "frames" / "c" / "0" / "0" / "0").write_bytes(evil_pickle(folder))
    return refused(path, "codec 'pickle'")


@hostile
def zarr_v3_codec_named_like_a_module(folder: Path) -> Case:
    path = theirs(folder)
    edit(path, lambda d: d["codecs"].append({"name": "os.system", "configuration": {}}))
    return refused(path, "codec 'os.system'")


@hostile
def zarr_codec_that_speaks_to_the_terminal(folder: Path) -> Case:
    path = theirs(folder)
    edit(path, lambda d: d["codecs"].append({"name": "\x1b]0;owned\x07\x1b[2J\n\nsfxreduce: done"}))
    return refused(path, "\\x1b]0;owned")


@hostile
def zarr_pickle_in_consolidated_metadata(folder: Path) -> Case:
    """A second copy of the metadata, which the library would believe."""
    path = theirs(folder)
    file = path / "zarr.json"
    frames = json.loads((path / "frames" / "zarr.json").read_text())
    frames["codecs"] = [{"name": "numcodecs.pickle", "configuration": {}}]
    root = json.loads(file.read_text())
    root["consolidated_metadata"] = {
        "kind": "inline",
        "must_understand": False,
        "metadata": {"frames": frames},
    }
    file.write_text(json.dumps(root))
    return kept(path, 0)


@hostile
def zarr_packed_twice(folder: Path) -> Case:
    path = theirs(folder)
    zstd = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
    edit(path, lambda d: d["codecs"].extend([zstd, zstd]))
    return refused(path, "packed once")


@hostile
def zarr_storage_transformer(folder: Path) -> Case:
    path = theirs(folder)
    edit(path, lambda d: d.update(storage_transformers=[{"name": "http"}]))
    return refused(path, "storage transformers")


@hostile
def zarr_linked_chunk(folder: Path) -> Case:
    path = theirs(folder)
    chunk = path / "frames" / "c" / "1" / "0" / "0"
    chunk.unlink()
    chunk.symlink_to(folder.parent / SECRET)
    return refused(path, "symbolic link")


@hostile
def zarr_linked_folder(folder: Path) -> Case:
    path = theirs(folder)
    shutil.rmtree(path / "frames" / "c" / "1")
    (path / "frames" / "c" / "1").symlink_to(folder.parent)
    return refused(path, "symbolic link")


@hostile
def zarr_linked_metadata(folder: Path) -> Case:
    path = theirs(folder)
    (path / "frames" / "zarr.json").rename(folder / "elsewhere.json")
    (path / "frames" / "zarr.json").symlink_to(folder / "elsewhere.json")
    return refused(path, "symbolic link")


@hostile
def zarr_pipe_in_place_of_a_chunk(folder: Path) -> Case:
    path = theirs(folder)
    chunk = path / "frames" / "c" / "2" / "0" / "0"
    chunk.unlink()
    os.mkfifo(chunk)
    return refused(path, "pipe or device")


@hostile
def zarr_pipe_in_place_of_metadata(folder: Path) -> Case:
    path = theirs(folder)
    (path / "frames" / "zarr.json").unlink()
    os.mkfifo(path / "frames" / "zarr.json")
    return refused(path, "pipe or device")


@hostile
def zarr_folder_in_place_of_metadata(folder: Path) -> Case:
    path = theirs(folder)
    (path / "zarr.json").unlink()
    (path / "zarr.json").mkdir()
    return refused(path, "Zarr group")


@hostile
def zarr_terabytes(folder: Path) -> Case:
    path = theirs(folder)
    edit(path, lambda d: d.update(shape=[900_000, 2000, 2000]))
    return refused(path, "are declared")


@hostile
def zarr_more_events_than_bytes(folder: Path) -> Case:
    path = theirs(folder)
    edit(path, lambda d: d.update(shape=[10**12, 40, 40]))
    return refused(path, "are declared")


@hostile
def zarr_negative_shape(folder: Path) -> Case:
    path = theirs(folder)
    edit(path, lambda d: d.update(shape=[-4, 40, 40]))
    return refused(path, "expected axes")


@hostile
def zarr_no_chunk_at_all(folder: Path) -> Case:
    path = theirs(folder)
    edit(path, lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[0, 40, 40]))
    return refused(path, "expected axes")


@hostile
def zarr_negative_chunk(folder: Path) -> Case:
    path = theirs(folder, 2)
    edit(path, lambda d: d.update(chunks=[-1, 40, 40]), ".zarray")
    return refused(path, "expected axes")


@hostile
def zarr_absurd_chunk(folder: Path) -> Case:
    path = theirs(folder)
    grid = [1 << 40, 1 << 40, 40]
    edit(path, lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=grid))
    return refused(path, "expected chunks of at most")


@hostile
def zarr_too_many_axes(folder: Path) -> Case:
    path = theirs(folder)
    edit(path, lambda d: d.update(shape=[1] * 100))
    return refused(path, "axes")


@hostile
def zarr_fractional_shape(folder: Path) -> Case:
    path = theirs(folder)
    edit(path, lambda d: d.update(shape=[4.0, 1e300, 40]))
    return refused(path, "expected axes")


@hostile
def zarr_number_of_five_thousand_digits(folder: Path) -> Case:
    path = theirs(folder)
    file = path / "frames" / "zarr.json"
    text = json.dumps(json.loads(file.read_text())).replace("[4,", "[" + "9" * 5000 + ",")
    file.write_text(text)
    return refused(path, "expected JSON")


@hostile
def zarr_nested_json(folder: Path) -> Case:
    path = theirs(folder)
    (path / "frames" / "zarr.json").write_text("[" * 200_000 + "]" * 200_000)
    return refused(path, "nested too deep")


@hostile
def zarr_json_of_too_many_parts(folder: Path) -> Case:
    path = theirs(folder)
    (path / "zarr.json").write_text('{"attributes":[' + "[]," * 5_000_000 + "0]}")
    return refused(path, "parts")


@hostile
def zarr_key_given_twice(folder: Path) -> Case:
    path = theirs(folder)
    file = path / "frames" / "zarr.json"
    file.write_text('{"shape": [4, 40, 40], ' + file.read_text().strip()[1:])
    return refused(path, "given twice")


@hostile
def zarr_json_that_is_no_utf_8(folder: Path) -> Case:
    path = theirs(folder)
    (path / "zarr.json").write_bytes(b'{"zarr_format": 3, "node_type": "gr\xff\xfeoup"}')
    return refused(path, "expected JSON")


@hostile
def zarr_truncated_metadata(folder: Path) -> Case:
    path = theirs(folder)
    file = path / "frames" / "zarr.json"
    file.write_bytes(file.read_bytes()[:200])
    return refused(path, "expected JSON")


@hostile
def zarr_empty_metadata(folder: Path) -> Case:
    path = theirs(folder)
    (path / "zarr.json").write_bytes(b"")
    return refused(path, "expected JSON")


@hostile
def zarr_shard_of_too_many_chunks(folder: Path) -> Case:
    path = theirs(folder, chunks=(1, 20, 20), shards=(2, 40, 40))

    def change(document: dict[str, Any]) -> None:
        document["chunk_grid"]["configuration"]["chunk_shape"] = [1 << 40, 40, 40]

    return refused(edit(path, change), "chunks in a shard")


@hostile
def zarr_packed_index(folder: Path) -> Case:
    path = theirs(folder, chunks=(1, 20, 20), shards=(2, 40, 40))
    packed = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip"}]
    edit(path, lambda d: d["codecs"][0]["configuration"].update(index_codecs=packed))
    return refused(path, "plain index")


def _zarr_bomb(folder: Path, codec: Any, packed: bytes, version: int = 3) -> Case:
    """Chunks of a few thousand pixels that unpack to a gigabyte."""
    path = theirs(folder, version, compressors=codec)
    chunks = (p for p in (path / "frames").rglob("*") if p.is_file() and ".z" not in p.name)
    for chunk in [p for p in chunks if p.name != "zarr.json"]:
        chunk.write_bytes(packed)
    return kept(path)


def zstd_bomb(n_bytes: int = BOMB_BYTES) -> bytes:
    # Frames one after the other unpack to all of them; making it costs no gigabyte that way.
    return bytes(numcodecs.zstd.compress(bytes(n_bytes >> 6), 1)) * 64


def zstd_frame_of_unknown_size(n_blocks: int = 8192) -> bytes:
    """A frame that says nothing of its size, of blocks of one byte repeated 128 KiB times."""
    block = 1 << 1 | (128 << 10) << 3
    body = (block.to_bytes(3, "little") + b"\0") * n_blocks
    last = (1 | 1 << 1 | 1 << 3).to_bytes(3, "little") + b"\0"
    return struct.pack("<IBB", 0xFD2FB528, 0, 0x38) + body + last


def zstd_claim(n_bytes: int) -> bytes:
    """The beginning of a frame that claims any size, and one byte."""
    return (
        struct.pack("<IBQ", 0xFD2FB528, 0xE0, n_bytes) + (1 | 1 << 3).to_bytes(3, "little") + b"x"
    )


def zlib_bomb(n_bytes: int = BOMB_BYTES) -> bytes:
    """Zeros, packed once and repeated: packing all of them would take seconds."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    part = packer.compress(bytes(PART_BYTES)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS).flush()
    checksum = struct.pack(">HH", n_bytes % 65521, 1)
    return b"\x78\x9c" + part * (n_bytes // PART_BYTES) + end + checksum


def gzip_bomb(n_bytes: int = BOMB_BYTES) -> bytes:
    return gzip.compress(bytes(PART_BYTES), 9) * (n_bytes // PART_BYTES)


def blosc_bomb() -> bytes:
    return bytes(numcodecs.blosc.compress(bytes(256 << 20), b"zstd", 9, 1)) + b""


@hostile
def zarr_zstd_bomb(folder: Path) -> Case:
    return _zarr_bomb(folder, ZstdCodec(), zstd_bomb())


@hostile
def zarr_zstd_bomb_of_unknown_size(folder: Path) -> Case:
    return _zarr_bomb(folder, ZstdCodec(), zstd_frame_of_unknown_size())


@hostile
def zarr_zstd_claim(folder: Path) -> Case:
    return _zarr_bomb(folder, ZstdCodec(), zstd_claim(1 << 40))


@hostile
def zarr_blosc_bomb(folder: Path) -> Case:
    return _zarr_bomb(folder, BloscCodec(), blosc_bomb())


@hostile
def zarr_gzip_bomb(folder: Path) -> Case:
    return _zarr_bomb(folder, GzipCodec(), gzip_bomb())


@hostile
def zarr_v2_zlib_bomb(folder: Path) -> Case:
    return _zarr_bomb(folder, numcodecs.Zlib(), zlib_bomb(), 2)


@hostile
def zarr_v2_lz4_claim(folder: Path) -> Case:
    return _zarr_bomb(folder, numcodecs.LZ4(), struct.pack("<I", (2 << 30) - 1) + bytes(64), 2)


@hostile
def zarr_bomb_within_a_shard(folder: Path) -> Case:
    """The chunk of a gigabyte hides in a whole shard, which is fetched at once."""
    path = theirs(folder, chunks=(1, 40, 40), shards=(4, 40, 40), compressors=ZstdCodec())
    bomb = zstd_bomb()
    index = b"".join(struct.pack("<QQ", 0, len(bomb)) for _ in range(4))
    crc = struct.pack("<I", int(np.asarray(numcodecs.CRC32C().encode(index)[-4:]).view("<u4")[0]))
    (path / "frames" / "c" / "0" / "0" / "0").write_bytes(bomb + index + crc)
    return kept(path)


@hostile
def zarr_honest_bomb(folder: Path) -> Case:
    """Every chunk is what its shape says, which is a gigabyte of zeros in 32 kB."""
    shape = (48, 2600, 2600)
    path = theirs(folder, shape=shape, chunks=shape, compressors=ZstdCodec(), fill=False)
    (path / "frames" / "c" / "0" / "0").mkdir(parents=True)
    n_bytes = 2 * int(np.prod(shape))
    packed = bytes(numcodecs.zstd.compress(bytes(n_bytes // 32), 1))
    (path / "frames" / "c" / "0" / "0" / "0").write_bytes(packed * 32)
    return kept(path, 48)


def ours(folder: Path) -> Path:
    path = folder / "run.zarr"
    shutil.copytree(folder.parent / "good.zarr", path)
    return path


def column(path: Path, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    file = path / name / "zarr.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    return path


@hostile
def column_of_terabytes(folder: Path) -> Case:
    path = column(ours(folder), "pulse_energy_mj", lambda d: d.update(shape=[1 << 40]))
    return refused(path, "pulse_energy_mj")


@hostile
def column_of_fill_values(folder: Path) -> Case:
    """A column of gigabytes of which nothing is stored."""

    def change(document: dict[str, Any]) -> None:
        document["shape"] = [1 << 31]
        document["chunk_grid"]["configuration"]["chunk_shape"] = [1 << 26]

    return refused(column(ours(folder), "pulse_energy_mj", change), "declares")


@hostile
def text_of_billions_of_entries(folder: Path) -> Case:
    path = ours(folder)
    claims = struct.pack("<I", 2**31 - 1) + bytes(100)
    packed = bytes(numcodecs.zstd.compress(claims, 1))
    chunk = path / "event_id" / "c" / "0"
    chunk.write_bytes(bytes(numcodecs.CRC32C(location="end").encode(packed)))
    return refused(path, "entries")


@hostile
def mask_of_another_shape(folder: Path) -> Case:
    path = column(ours(folder), "mask", lambda d: d.update(shape=[1 << 20, 1 << 20]))
    return refused(path, "mask")


@hostile
def detector_of_another_shape(folder: Path) -> Case:
    path = ours(folder)
    file = path / "zarr.json"
    document = json.loads(file.read_text())
    document["attributes"]["detector"]["panel_shape"] = [1 << 20, 1 << 20]
    file.write_text(json.dumps(document))
    return refused(path, "pixels")


@hostile
def shard_that_is_a_pipe(folder: Path) -> Case:
    path = ours(folder)
    shard = next(p for p in (path / "frames" / "c").rglob("*") if p.is_file())
    shard.unlink()
    os.mkfifo(shard)
    return refused(path, "pipe or device")


# --------------------------------------------------------------------------------------- HDF5


def cxi(folder: Path, frames: np.ndarray | None = None, **options: Any) -> Path:
    path = folder / "run.cxi"
    with h5py.File(path, "w") as file:
        if frames is not None or options:
            file.create_dataset(DATA, data=frames, **options)
    return path


@hostile
def hdf5_external_storage(folder: Path) -> Case:
    path = cxi(folder)
    with h5py.File(path, "a") as file:
        outside = [(str(folder.parent / SECRET), 0, 4 * 40 * 40 * 2)]
        file.create_dataset(DATA, SHAPE, "i2", external=outside)
    return refused(path, "raw external file")


@hostile
def hdf5_external_storage_of_a_column(folder: Path) -> Case:
    path = cxi(folder, frames_of())
    with h5py.File(path, "a") as file:
        outside = [(str(folder.parent / SECRET), 0, 32)]
        file.create_dataset("/LCLS/photon_energy_eV", (4,), "f8", external=outside)
    return refused(path, "raw external file")


@hostile
def hdf5_external_link_out(folder: Path) -> Case:
    path = cxi(folder)
    with h5py.File(folder.parent / "outside.h5", "a") as file:
        file.require_dataset("raw", SHAPE, "i2")
    with h5py.File(path, "a") as file:
        file[DATA] = h5py.ExternalLink("../outside.h5", "/raw")
    return refused(path, "outside the folder")


@hostile
def hdf5_external_link_by_its_middle(folder: Path) -> Case:
    """The link is not the last part of the path: a check of that part alone misses it."""
    path = cxi(folder)
    with h5py.File(folder.parent / "outside2.h5", "a") as file:
        file.require_dataset("data_1/data", SHAPE, "i2")
    with h5py.File(path, "a") as file:
        file["/entry_1"] = h5py.ExternalLink(str(folder.parent / "outside2.h5"), "/")
    return refused(path, "outside the folder")


@hostile
def hdf5_external_link_through_a_symbolic_one(folder: Path) -> Case:
    path = cxi(folder)
    with h5py.File(folder.parent / "outside3.h5", "a") as file:
        file.require_dataset("raw", SHAPE, "i2")
    (folder / "near.h5").symlink_to(folder.parent / "outside3.h5")
    with h5py.File(path, "a") as file:
        file[DATA] = h5py.ExternalLink("near.h5", "/raw")
    return refused(path, "outside the folder")


@hostile
def hdf5_external_link_to_a_pipe(folder: Path) -> Case:
    path = cxi(folder)
    os.mkfifo(folder / "near.h5")
    with h5py.File(path, "a") as file:
        file[DATA] = h5py.ExternalLink("near.h5", "/raw")
    return refused(path, "found something else")


@hostile
def hdf5_soft_link_circle(folder: Path) -> Case:
    path = cxi(folder)
    with h5py.File(path, "a") as file:
        file[DATA] = h5py.SoftLink("/other")
        file["/other"] = h5py.SoftLink(DATA)
    return refused(path, "circle")


@hostile
def hdf5_external_link_to_itself(folder: Path) -> Case:
    path = cxi(folder)
    with h5py.File(path, "a") as file:
        file[DATA] = h5py.ExternalLink("run.cxi", DATA)
    return refused(path, "circle")


def _virtual(folder: Path, name: str, n_sources: int = 1) -> Path:
    path = cxi(folder)
    layout = h5py.VirtualLayout(SHAPE, "i2")
    for i in range(n_sources):
        layout[i] = h5py.VirtualSource(name, "/raw", shape=SHAPE)[i]
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset(DATA, layout)
    return path


@hostile
def hdf5_virtual_source_outside(folder: Path) -> Case:
    with h5py.File(folder.parent / "outside4.h5", "a") as file:
        file.require_dataset("raw", SHAPE, "i2")
    return refused(_virtual(folder, "../outside4.h5"), "outside the folder")


@hostile
def hdf5_virtual_source_that_is_missing(folder: Path) -> Case:
    return kept(_virtual(folder, "gone.h5", n_sources=4))


@hostile
def hdf5_virtual_pattern(folder: Path) -> Case:
    path = cxi(folder)
    whole = h5py.h5s.create_simple(SHAPE, (h5py.h5s.UNLIMITED, *SHAPE[1:]))
    whole.select_hyperslab((0, 0, 0), (h5py.h5s.UNLIMITED, 1, 1), SHAPE, (1, *SHAPE[1:]))
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_virtual(whole, b"part%b.h5", b"/raw", h5py.h5s.create_simple((1, *SHAPE[1:])))
    with h5py.File(path, "a") as file:
        group = file.create_group("/entry_1/data_1")
        space = h5py.h5s.create_simple(SHAPE, (h5py.h5s.UNLIMITED, *SHAPE[1:]))
        h5py.h5d.create(group.id, b"data", h5py.h5t.STD_I16LE, space, created)
    return refused(path, "pattern")


@hostile
def hdf5_virtual_chain_into_itself(folder: Path) -> Case:
    path = cxi(folder)
    layout = h5py.VirtualLayout(SHAPE, "i2")
    layout[...] = h5py.VirtualSource("run.cxi", DATA, shape=SHAPE)
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset(DATA, layout)
    return refused(path, "chain")


def _hdf5_bomb(folder: Path, packed: bytes, *, untrusted: bool = False, **filters: Any) -> Case:
    path = cxi(folder, frames_of(), chunks=(1, *SHAPE[1:]), **filters)
    with h5py.File(path, "a") as file:
        for event in range(SHAPE[0]):
            file[DATA].id.write_direct_chunk((event, 0, 0), packed)
    return kept(path, **({"untrusted": ""} if untrusted else {}))


@hostile
def hdf5_zstd_bomb(folder: Path) -> Case:
    packed = bytes(numcodecs.zstd.compress(bytes(BOMB_BYTES >> 1), 1))
    return _hdf5_bomb(folder, packed, **hdf5plugin.Zstd())


@hostile
def hdf5_zstd_claim(folder: Path) -> Case:
    return _hdf5_bomb(folder, zstd_claim(1 << 40), **hdf5plugin.Zstd())


@hostile
def hdf5_blosc_bomb(folder: Path) -> Case:
    return _hdf5_bomb(folder, blosc_bomb(), **hdf5plugin.Blosc())


@hostile
def hdf5_bitshuffle_claim(folder: Path) -> Case:
    claim = struct.pack(">QI", 1 << 40, 8192) + bytes(64)
    return _hdf5_bomb(folder, claim, **hdf5plugin.Bitshuffle())


@hostile
def hdf5_lz4_claim(folder: Path) -> Case:
    return _hdf5_bomb(folder, struct.pack(">QI", 1 << 40, 1 << 30) + bytes(64), **hdf5plugin.LZ4())


@hostile
def hdf5_gzip_bomb(folder: Path) -> Case:
    return _hdf5_bomb(folder, zlib_bomb(n_bytes=2 << 30), compression="gzip")


@hostile
def hdf5_small_gzip_bombs_in_a_process_of_their_own(folder: Path) -> Case:
    packed = zlib_bomb(n_bytes=256 << 20)
    return _hdf5_bomb(folder, packed, untrusted=True, compression="gzip")


@hostile
def hdf5_unknown_filter(folder: Path) -> Case:
    path = cxi(folder, frames_of(), chunks=(1, 40, 40), **hdf5plugin.BZip2())
    return refused(path, "filter 307")


@hostile
def hdf5_terabytes(folder: Path) -> Case:
    path = cxi(folder, None, shape=(900_000, 2000, 2000), dtype="i2", chunks=(1, 2000, 2000))
    return refused(path, "are declared")


@hostile
def hdf5_more_events_than_bytes(folder: Path) -> Case:
    path = cxi(folder, None, shape=(1 << 40, 4, 4), dtype="i2", chunks=(1024, 4, 4))
    return refused(path, "are declared")


@hostile
def hdf5_frame_of_a_trillion_pixels(folder: Path) -> Case:
    shape = (4, 1 << 20, 1 << 20)
    path = cxi(folder, None, shape=shape, dtype="i2", chunks=(1, 1024, 1024))
    return refused(path, "pixels")


@hostile
def hdf5_chunk_of_gigabytes(folder: Path) -> Case:
    shape = (1000, 2000, 2000)
    path = cxi(folder, None, shape=shape, dtype="u1", chunks=(1000, 2000, 2000))
    return refused(path, "chunks of at most")


@hostile
def hdf5_truth_of_terabytes(folder: Path) -> Case:
    path = cxi(folder, frames_of())
    with h5py.File(path, "a") as file:
        kind = file.create_dataset("/truth/kind", (4, 1 << 38), "u1", chunks=(1, 1 << 20))
        kind[:, :1] = 1
    return refused(path, "")


@hostile
def hdf5_truncated(folder: Path) -> Case:
    path = cxi(folder, frames_of())
    path.write_bytes(path.read_bytes()[:5000])
    return refused(path, "expected a whole HDF5 file")


@hostile
def hdf5_that_is_none(folder: Path) -> Case:
    path = folder / "run.h5"
    path.write_bytes(evil_pickle(folder))
    return refused(path, "expected a whole HDF5 file")


@hostile
def hdf5_that_is_a_pipe(folder: Path) -> Case:
    os.mkfifo(folder / "run.cxi")
    return refused(folder / "run.cxi", "expected a file")


@hostile
def hdf5_that_is_a_device(folder: Path) -> Case:
    (folder / "run.cxi").symlink_to("/dev/zero")
    return refused(folder / "run.cxi", "expected a file")


@hostile
def links_in_a_circle(folder: Path) -> Case:
    (folder / "run.zarr").symlink_to(folder / "other.zarr")
    (folder / "other.zarr").symlink_to(folder / "run.zarr")
    return refused(folder / "run.zarr", "")


# ------------------------------------------------------------------------------------- images


@hostile
def image_packed_bomb(folder: Path) -> Case:
    path = folder / "run.tif.bz2"
    path.write_bytes(
        bz2_compress(b"II*\0") + bz2_compress(bytes(PART_BYTES)) * (BOMB_BYTES // PART_BYTES)
    )
    return refused(path, "cannot be read")


@hostile
def image_gzip_bomb(folder: Path) -> Case:
    path = folder / "run.edf.gz"
    path.write_bytes(gzip_bomb())
    return refused(path, "cannot be read")


@hostile
def cbf_of_a_trillion_pixels(folder: Path) -> Case:
    path = folder / "run.cbf"
    header = (
        '###CBF: VERSION 1.5\r\n_array_data.data\r\n;\r\nconversions="x-CBF_BYTE_OFFSET"\r\n'
        'X-Binary-Size: 100\r\nX-Binary-Element-Type: "signed 32-bit integer"\r\n'
        "X-Binary-Size-Fastest-Dimension: 8192\r\nX-Binary-Size-Second-Dimension: 8192\r\n\r\n"
    )
    path.write_bytes(header.encode() + b"\x0c\x1a\x04\xd5" + bytes(100))
    return refused(path, "")


@hostile
def edf_of_a_trillion_pixels(folder: Path) -> Case:
    path = folder / "run.edf"
    header = "{\nByteOrder = LowByteFirst ;\nDataType = SignedInteger ;\nDim_1 = 1000000 ;\n"
    path.write_bytes((header + "Dim_2 = 1000000 ;\n").ljust(1022).encode() + b"}\n" + bytes(64))
    return refused(path, "cannot be read")


@hostile
def hdf5_named_like_an_image(folder: Path) -> Case:
    """fabio would open it, and follow its links."""
    path = cxi(folder, frames_of())
    path.rename(folder / "run.edf")
    return refused(folder / "run.edf", "cannot be read")


@hostile
def numpy_pickle_named_like_an_image(folder: Path) -> Case:
    path = folder / "run.tif"
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1, 1), }".ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with path.open("ab") as file:
        file.write(evil_pickle(folder))
    return refused(path, "cannot be read")


@hostile
def image_that_is_a_pipe(folder: Path) -> Case:
    os.mkfifo(folder / "run.cbf")
    return refused(folder / "run.cbf", "cannot be read")


# ------------------------------------------------------------------------------------- models


def model(folder: Path) -> Path:
    shutil.copytree(default_model(), folder / "model")
    return folder / "model"


def with_model(folder: Path, says: str, path: Path | None = None) -> Case:
    run = ours(folder)
    return refused(run, says, model=str(path or folder / "model"), device="cpu")


@hostile
def model_pickled(folder: Path) -> Case:
    (folder / "model").mkdir()
    (folder / "model" / "model.pt").write_bytes(evil_pickle(folder))
    return with_model(folder, "no readable model.safetensors")


@hostile
def model_that_is_one_pickle(folder: Path) -> Case:
    (folder / "model.pt").write_bytes(evil_pickle(folder))
    return with_model(folder, "no readable model.safetensors", folder / "model.pt")


@hostile
def model_pickle_by_another_name(folder: Path) -> Case:
    (model(folder) / "model.safetensors").write_bytes(evil_pickle(folder))
    return with_model(folder, "sha256")


def _weights(folder: Path, data: bytes) -> None:
    """Weights that the configuration stands by."""
    path = model(folder)
    (path / "model.safetensors").write_bytes(data)
    config = json.loads((path / "config.json").read_text())
    config["weights_sha256"] = hashlib.sha256(data).hexdigest()
    (path / "config.json").write_text(json.dumps(config))


@hostile
def model_of_a_pickle_with_its_checksum(folder: Path) -> Case:
    _weights(folder, evil_pickle(folder))
    return with_model(folder, "not a safetensors file")


@hostile
def model_with_a_header_of_exabytes(folder: Path) -> Case:
    _weights(folder, struct.pack("<Q", 1 << 60) + b"{}")
    return with_model(folder, "not a safetensors file")


@hostile
def model_with_a_header_of_megabytes(folder: Path) -> Case:
    header = b"[" * (2 << 20)
    _weights(folder, struct.pack("<Q", len(header)) + header)
    return with_model(folder, "not a safetensors file")


@hostile
def model_with_a_nested_header(folder: Path) -> Case:
    header = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    _weights(folder, struct.pack("<Q", len(header)) + header)
    return with_model(folder, "not a safetensors file")


@hostile
def model_with_weights_that_overlap(folder: Path) -> Case:
    entry = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 8]}
    header = json.dumps({"a": entry}).encode()
    _weights(folder, struct.pack("<Q", len(header)) + header + bytes(8))
    return with_model(folder, "not a safetensors file")


def _config(folder: Path, data: bytes, says: str) -> Case:
    (model(folder) / "config.json").write_bytes(data)
    return with_model(folder, says)


@hostile
def model_nested_configuration(folder: Path) -> Case:
    return _config(folder, b"[" * 100_000, "nested too deep")


@hostile
def model_endless_configuration(folder: Path) -> Case:
    return _config(folder, b"[" + b"1," * (3 << 20) + b"1]", "no readable config.json")


@hostile
def model_configuration_with_a_key_twice(folder: Path) -> Case:
    return _config(folder, b'{"schema": 3, "schema": 2}', "given twice")


@hostile
def model_configuration_with_a_long_number(folder: Path) -> Case:
    return _config(folder, b'{"schema": ' + b"9" * 6000 + b"}", "expected JSON")


@hostile
def model_configuration_that_is_a_pipe(folder: Path) -> Case:
    path = model(folder) / "config.json"
    path.unlink()
    os.mkfifo(path)
    return with_model(folder, "no readable config.json")


# -------------------------------------------------------------------------- labels and outputs


def label(folder: Path, source: str, path: Path, says: str) -> Case:
    run = ours(folder)
    more = ["--from", source, f"--{source}", str(path)]
    out = str(folder / "labels.csv")
    return Case(arguments=["label", "--in", str(run), "--out", out, "--serial", *more], says=says)


@hostile
def labels_of_one_endless_field(folder: Path) -> Case:
    path = folder / "given.csv"
    path.write_text("event,label\n0," + "h" * 1_000_000 + "\n")
    return label(folder, "csv", path, "cannot be read as CSV")


@hostile
def labels_of_a_long_number(folder: Path) -> Case:
    path = folder / "given.csv"
    path.write_text("event,label\n" + "9" * 6000 + ",hit\n")
    return label(folder, "csv", path, "expected an event")


@hostile
def labels_that_are_a_pipe(folder: Path) -> Case:
    os.mkfifo(folder / "given.csv")
    return label(folder, "csv", folder / "given.csv", "cannot be read")


@hostile
def stream_that_is_a_pipe(folder: Path) -> Case:
    os.mkfifo(folder / "given.stream")
    return label(folder, "stream", folder / "given.stream", "cannot be read")


@hostile
def stream_of_a_long_number(folder: Path) -> Case:
    path = folder / "given.stream"
    event = "9" * 6000
    path.write_text(
        f"----- Begin chunk -----\nImage filename: a.cxi\nEvent: //{event}\n----- End chunk -----\n"
    )
    return label(folder, "stream", path, "no chunk")


def certificate(folder: Path, data: bytes, says: str, status: int = 4) -> Case:
    path = folder / "certificate.json"
    path.write_bytes(data)
    arguments = ["audit", "check", str(path)]
    return Case(arguments=arguments, status=status, says=says)


@hostile
def certificate_nested(folder: Path) -> Case:
    return certificate(folder, b"[" * 100_000, "nested too deep")


@hostile
def certificate_of_endless_numbers(folder: Path) -> Case:
    return certificate(folder, b'{"certificate_version": 1e999}', "")


def _reduced(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A reduced store whose manifest stands by what was done to it."""
    path = folder / "hits.zarr"
    shutil.copytree(folder.parent / "hits.zarr", path)
    file = path / "manifest" / "zarr.json"
    document = json.loads(file.read_text())
    body = {k: v for k, v in document["attributes"].items() if k != "sha256"}
    change(body)
    document["attributes"] = {**body, "sha256": _digest(body)}
    file.write_text(json.dumps(document, indent=2))
    return path


def verify(path: Path, says: str) -> Case:
    run = path.parent.parent / "good.zarr"
    arguments = ["verify", "--in", str(path), "--against", str(run), "--serial"]
    return Case(arguments=arguments, status=4, says=says)


@hostile
def manifest_that_leads_out(folder: Path) -> Case:
    entry = {"path": f"../{SECRET}", "size": 1, "sha256": "0" * 64}
    return verify(_reduced(folder, lambda body: body["files"].append(entry)), "leaves the output")


@hostile
def manifest_with_an_absolute_path(folder: Path) -> Case:
    entry = {"path": "/etc/passwd", "size": 1, "sha256": "0" * 64}
    return verify(_reduced(folder, lambda body: body["files"].append(entry)), "leaves the output")


@hostile
def output_with_a_pipe(folder: Path) -> Case:
    path = _reduced(folder, lambda body: None)
    os.mkfifo(path / "ledger" / "more")
    return verify(path, "no plain file")


@hostile
def output_with_a_link(folder: Path) -> Case:
    path = _reduced(folder, lambda body: None)
    (path / "ledger" / "more").symlink_to(folder.parent / SECRET)
    return verify(path, "symbolic link")


@hostile
def output_whose_manifest_is_a_pipe(folder: Path) -> Case:
    path = _reduced(folder, lambda body: None)
    (path / "manifest" / "zarr.json").unlink()
    os.mkfifo(path / "manifest" / "zarr.json")
    return verify(path, "")


@hostile
def output_whose_manifest_is_nested(folder: Path) -> Case:
    path = _reduced(folder, lambda body: None)
    (path / "manifest" / "zarr.json").write_text("[" * 100_000)
    return verify(path, "nested too deep")


def make_good_run(folder: Path) -> None:
    """A run store and what was kept of it, the secret, and no canary."""
    run = planted_run(n_events=6)
    ingest_run(run, out=folder / "good.zarr", pool=SerialPool())
    filter_run(
        open_run(folder / "good.zarr"),
        settings=FilterSettings(scorer=PeakScorer()),
        outputs=Outputs(store=folder / "hits.zarr"),
        pool=SerialPool(),
    )
    (folder / SECRET).write_bytes(SECRET_WORDS * 1000)
