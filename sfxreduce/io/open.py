"""Open whatever holds a run: one path or several files, of any format that is read.

Each reader is imported when its format is met: together, with the libraries they stand on, they
take 0.6 s, of which a command on one run needs a small part.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sfxreduce.errors import RunNotFound, SchemaError, SourceError, UsageError
from sfxreduce.io.readers.inputs import expand_input
from sfxreduce.run.run import Run

if TYPE_CHECKING:
    from sfxreduce.io.masks import GivenMask

__all__ = ["open_run"]

HDF5_SUFFIXES = (".cxi", ".h5", ".hdf5", ".nxs")
IMAGE_SUFFIXES = (".cbf", ".tif", ".tiff", ".edf")
PACKING_SUFFIXES = (".bz2", ".gz")


def open_run(
    paths: Path | str | Sequence[Path],
    *,
    data_path: str = "",
    roots: Sequence[Path] = (),
    untrusted: bool = False,
    geometry: Path | None = None,
    mask: GivenMask | None = None,
    source: str = "",
) -> Run:
    """Open a run where it lies; only metadata is read.

    Parameters
    ----------
    paths : Path, str or sequence of Path
        A Zarr store or its address ``s3://bucket/run.zarr``, CXI or HDF5 files of one frame shape
        and dtype, or image files of one event each; many as a folder, a glob or ``@list.txt``.
    data_path : str
        Where the frames lie inside an HDF5 file or a Zarr group; found by convention if empty.
        With images that are a dataset each, ``{tag}`` stands for what differs in their paths.
    roots : sequence of Path
        Folders that links and virtual datasets of HDF5 files may lead into, besides their own.
    untrusted : bool
        Let another process read it; that process may crash; see `sfxreduce.io.sandbox.source`.
    geometry : Path, optional
        Geometry file that says where its pixels lie; see `sfxreduce.io.placed.place_run`.
    mask : GivenMask, optional
        A mask besides its own, or which of its own pixels are good.
    source : str
        Detector to read, where the path is the folder of a run of the European XFEL.

    Raises
    ------
    RunNotFound
        If a path does not exist.
    SchemaError
        If what lies there is of no known kind, or has no frames.
    SourceError, ObjectStoreError
        If a file is damaged or may not be read, or an object store is out of reach.
    UsageError
        If several paths are given that are neither images nor HDF5 files, the geometry is of
        another detector, the mask that is spoken of is not there, or there is no such source.
    """
    address = _address(paths, plain=not (untrusted or source))
    files = [] if address else _files(paths, expand=not source)
    allowed = [str(Path(root).absolute()) for root in roots]
    # What is said of good pixels is of the mask that is given, or else of the run's own.
    good_is = None if mask is None or mask.file else mask.good_is
    is_store = bool(address) or (len(files) == 1 and files[0].is_dir())
    if source:
        run = _open_source(files, source, untrusted=untrusted)
    elif untrusted:
        from sfxreduce.io.sandbox.source import open_untrusted

        run = open_untrusted([str(file) for file in files], data_path=data_path, roots=allowed)
    else:
        of_files = None if is_store else good_is
        run = _open(address, files, data_path=data_path, roots=allowed, good_is=of_files)
    turned = is_store and good_is == 1
    return _placed(run, geometry, mask, roots=allowed, turned=turned)


def _placed(
    run: Run, geometry: Path | None, mask: GivenMask | None, *, roots: Sequence[str], turned: bool
) -> Run:
    """Run with the geometry and the mask that are given, if any are."""
    masks = mask is not None and (mask.file or mask.good_is is not None)
    if geometry is None and not masks:
        return run
    from sfxreduce.io.placed import place_run, with_mask

    run = run if geometry is None else place_run(run, geometry, roots=roots)
    return with_mask(run, mask, turned=turned) if mask is not None and masks else run


def _address(paths: Path | str | Sequence[Path], *, plain: bool) -> str:
    """Address of a run in an object store; empty if what is given are paths.

    Of a `Path`, one of its two slashes is left: files are called so by whole paths only.
    """
    named = [paths] if isinstance(paths, str | Path) else list(paths)
    addresses = [f"s3://{str(one)[4:].lstrip('/')}" for one in named if str(one)[:4] == "s3:/"]
    if not addresses:
        return ""
    if len(named) > 1 or not plain:
        raise UsageError(
            f"{addresses[0]}: expected one run of an object store, without --untrusted and "
            f"--source, found {len(named)}; give it alone"
        )
    return addresses[0]


def _open_source(files: Sequence[Path], source: str, *, untrusted: bool) -> Run:
    """Open a detector of a run of the European XFEL."""
    if untrusted or len(files) != 1 or not files[0].is_dir():
        raise UsageError(
            f"--source: expected one folder of a run of the European XFEL, which is read in this "
            f"process, found {'--untrusted' if untrusted else files[0]}; drop one of them"
        )
    from sfxreduce.io.readers.euxfel.run import open_euxfel

    return open_euxfel(files[0], source)


def _open(
    address: str,
    files: Sequence[Path],
    *,
    data_path: str,
    roots: Sequence[str],
    good_is: int | None,
) -> Run:
    """Open an address, or files by what their names say they are."""
    if address:
        from sfxreduce.io.readers.zarr.objects import open_objects

        return open_objects(address, data_path=data_path)
    if files and all(_suffix(file) in IMAGE_SUFFIXES for file in files):
        if good_is is not None:
            raise UsageError("--mask-good-is: images have no mask; give one with --mask FILE")
        if data_path:
            raise UsageError(f"--data-path {data_path}: image files have no paths inside; drop it")
        from sfxreduce.io.readers.images.run import open_images

        return open_images(files)
    if files and all(_suffix(file) in HDF5_SUFFIXES and not file.is_dir() for file in files):
        return _open_hdf5(files, data_path=data_path, roots=roots, good_is=good_is)
    if len(files) != 1:
        raise UsageError(
            f"expected one run, HDF5 files, or image files of one event each, found {len(files)} "
            "paths; give runs one by one"
        )
    if files[0].is_dir():
        from sfxreduce.io.readers.zarr.run import open_zarr

        return open_zarr(files[0], data_path=data_path)
    raise SchemaError(
        f"{files[0]}: expected a Zarr store, or a file ending in "
        f"{', '.join(HDF5_SUFFIXES + IMAGE_SUFFIXES)}, found one ending in "
        f"'{files[0].suffix}'; check the path given to --in"
    )


def _open_hdf5(
    files: Sequence[Path], *, data_path: str, roots: Sequence[str], good_is: int | None
) -> Run:
    """Open HDF5 files of many events, or of images that are a dataset each."""
    from sfxreduce.io.readers.concatenate import join_runs
    from sfxreduce.io.readers.hdf5.master import open_hdf5_run
    from sfxreduce.io.readers.hdf5.single import is_single, open_single

    if data_path and is_single(files[0], data_path, roots=roots):
        return open_single(files, data_path=data_path, roots=roots, mask_good_is=good_is)
    opened = partial(open_hdf5_run, data_path=data_path, roots=roots, mask_good_is=good_is)
    runs = [opened(file) for file in files]
    return runs[0] if len(runs) == 1 else join_runs(runs)


def _files(paths: Path | str | Sequence[Path], *, expand: bool) -> list[Path]:
    """What is to be read, all of it there; what a name stands for in its place if told."""
    named = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if expand:
        named = [file for path in named for file in _expanded(path)]
    # Workers of a pool elsewhere have a working directory of their own.
    files = [file.absolute() for file in named]
    for file in files:
        _look_for(file)
    return files


def _expanded(path: Path) -> list[Path]:
    """Files that a name stands for; most stand for themselves."""
    images = (*IMAGE_SUFFIXES, *(i + p for i in IMAGE_SUFFIXES for p in PACKING_SUFFIXES))
    # What is wrong with a path is said when it is looked for.
    with suppress(OSError, ValueError):
        if not path.is_file() and path.suffix != ".zarr":
            return expand_input(path, (images, HDF5_SUFFIXES))
    return [path]


def _look_for(path: Path) -> None:
    """Raise unless something lies at a path."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise RunNotFound(
            f"{path}: no such file or folder; check the path given to --in"
        ) from error
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be reached ({error.strerror}); check the path and the right to read it"
        ) from error


def _suffix(path: Path) -> str:
    """Last suffix of a file name, compression left out."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in PACKING_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""
