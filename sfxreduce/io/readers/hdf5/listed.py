"""What a master file lists: which files are there, and how many events each has.

The links are named ``data_000001``, ``data_000002`` and so on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from sfxreduce.errors import SchemaError, SourceError
from sfxreduce.io.readers.hdf5.file import FileStamp, Hdf5File, open_hdf5

__all__ = ["ListedFile", "counted", "listed_files", "listed_names"]

LISTS = ("/entry/data", "/entry")
"""Groups of the links: firmware before version 1.4 has them one group higher."""

WHOLE = "/entry/data/data"
LINK = re.compile(r"data_\d{6,}")

MOST_LISTED = 1 << 16
"""Files that a master may list: 6.5 million frames, a hundred in each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedFile:
    """A file of frames that a master lists.

    Parameters
    ----------
    link : str
        Path of its frames in the master.
    name : str
        Of the file, for messages.
    n_events : int or None
        None if its frames cannot be read.
    numbers : tuple of int or None
        Of its first and last event in the run, from one on; None if it does not say.
    form : str
        Shape and dtype of a frame.
    damage : str
        Why it cannot be read; empty if it is not there.
    files : tuple of str
        Real paths of the files that are read for it.
    named : mapping of str to str
        See `Hdf5File`.
    """

    link: str
    name: str
    n_events: int | None = None
    numbers: tuple[int, int] | None = None
    form: str = ""
    damage: str = ""
    files: tuple[str, ...] = ()
    named: Mapping[str, str] = field(default_factory=dict)


def counted(files: Sequence[ListedFile]) -> list[int] | None:
    """Events of each file, those included that cannot be read; None if that is not to be told.

    By the numbers of the events that others say they have, or else by the size that all files but
    the last share. Files at the end that cannot be read have none.

    Examples
    --------
    >>> sizes = [4, None, 4, 2, None]
    >>> files = [ListedFile(link=f"{i}", name="", n_events=n) for i, n in enumerate(sizes)]
    >>> counted(files), counted(files[1:4]), counted(files[1:3])
    ([4, 4, 4, 2, 0], [4, 4, 2], None)
    """
    there = [place for place, file in enumerate(files) if file.n_events is not None]
    counts = [file.n_events or 0 for file in files]
    sizes = {counts[place] for place in there[:-1]}
    numbered = _numbers_fit(files)
    for before, after in pairwise([-1, *there]):
        if after - before == 1:
            continue
        first, last = files[after].numbers, files[before].numbers if before >= 0 else (0, 0)
        if numbered and first and last:
            # Which of them has how many makes no difference to their place in the run.
            counts[before + 1] = first[0] - last[1] - 1
        elif len(sizes) == 1:
            counts[before + 1 : after] = [*sizes] * (after - before - 1)
        else:
            return None
    return counts


def _numbers_fit(files: Sequence[ListedFile]) -> bool:
    """Whether the numbers of events ascend from file to file, and count the events of each."""
    end, unknown = 0, False
    for file in files:
        if file.n_events is None:
            unknown = True
            continue
        if file.numbers is None:
            return False
        first, last = file.numbers
        if last - first + 1 != file.n_events or (first <= end + 1 if unknown else first != end + 1):
            return False
        end, unknown = last, False
    return True


def listed_files(stamp: FileStamp, roots: tuple[str, ...]) -> tuple[ListedFile, ...]:
    """Files that a master lists, in order; none if the file has all frames itself.

    Each is looked at on its own: of a thousand files no more than one is open.
    """
    with open_hdf5(stamp.path, roots) as file:
        links = _links(file)
        frames = file.dataset(WHOLE) if links else None
        n_whole = -1 if frames is None or not frames.ndim else int(frames.shape[0])
    files = tuple(_look_at(stamp, link, roots) for link in links)
    n_events = sum(file.n_events or 0 for file in files)
    if n_whole < 0:
        return files
    if n_whole < n_events:
        raise SchemaError(
            f"{stamp.path}: expected one run, found {WHOLE} of {n_whole} events and {len(links)} "
            f"links, {links[0]} and on, to {n_events}; name the frames with --data-path"
        )
    return ()


def listed_names(file: Hdf5File) -> set[str]:
    """Names of the files that an open master lists."""
    return {_name_behind(file, link) for link in _links(file)}


def _links(file: Hdf5File) -> list[str]:
    """Paths of the links to files of frames, in order."""
    for path in LISTS:
        group = file.find(path)
        if not isinstance(group, h5py.Group):
            continue
        names = file.attempt(group.keys, path)
        numbers = sorted((int(name[5:]), name) for name in names if LINK.fullmatch(name))
        if len(numbers) > MOST_LISTED:
            raise SchemaError(
                f"{file.path}: expected at most {MOST_LISTED} files of frames, found {len(numbers)}"
            )
        if numbers:
            return [f"{path}/{name}" for _, name in numbers]
    return []


def _look_at(stamp: FileStamp, link: str, roots: tuple[str, ...]) -> ListedFile:
    """Look at one file of a master."""
    with open_hdf5(stamp.path, roots) as file:
        name = _name_behind(file, link)
        try:
            frames = file.dataset(link)
        except SourceError as error:
            return ListedFile(link=link, name=name, damage=str(error), named=dict(file.named))
        if frames is None or not frames.ndim:
            return ListedFile(link=link, name=name, named=dict(file.named))
        attributes = file.attempt(lambda: dict(frames.attrs), link)
        low, high = (attributes.get(f"image_nr_{end}", -1) for end in ("low", "high"))
        known = isinstance(low, np.integer) and isinstance(high, np.integer)
        return ListedFile(
            link=link,
            name=name,
            n_events=int(frames.shape[0]),
            numbers=(int(low), int(high)) if known else None,
            form=f"{frames.shape[1:]} {frames.dtype}",
            files=tuple(file.opened),
            named=dict(file.named),
        )


def _name_behind(file: Hdf5File, link: str) -> str:
    """Name of the file that a link leads to, or else the link."""
    target = file.attempt(lambda: file.handle.get(link, getlink=True), link)
    return Path(target.filename).name if isinstance(target, h5py.ExternalLink) else link
