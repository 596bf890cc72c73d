"""Files that came from elsewhere: read whole, never beyond a limit, and told apart.

A name may lead to a pipe that never ends, to a device, or to a file that fills the memory; and a
few kilobytes of JSON may nest so deep, or count so far, that parsing them does. What is parsed
becomes a value only if it is, entry for entry, what that value is made of.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from sfxreduce.errors import SourceError
from sfxreduce.io.files.durable import sha256_file

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = [
    "MOST_JSON_BYTES",
    "TO_BE_FETCHED",
    "content_pin",
    "fetch_with",
    "file_identity",
    "looked_at",
    "open_file",
    "open_regular",
    "parse_as",
    "parse_json",
    "read_small",
    "source_pin",
]

_T = TypeVar("_T")

MOST_JSON_BYTES = 128 << 20
"""Longest JSON document that is read: the manifest of a million files."""

MOST_JSON_ITEMS = 4 << 20
"""Most brackets and commas of a document; each costs some 60 bytes of memory once it is parsed."""


TO_BE_FETCHED = stat.S_ISVTX
"""Mark of a file that has its size, and whose bytes are still elsewhere."""

_fetchers: list[Callable[[Path | str, int], bool]] = []


def fetch_with(fetcher: Callable[[Path | str, int], bool]) -> None:
    """Have a function asked for the bytes of files with the mark, in this process.

    Parameters
    ----------
    fetcher : callable
        Takes the path, and a descriptor of the file with the mark; puts the whole file there, and
        returns True, or False if it knows nothing of it.
    """
    if fetcher not in _fetchers:
        _fetchers.append(fetcher)


def open_regular(path: Path | str, *, follow: bool = True) -> int:
    """Open a file for reading, if it is one, without waiting for whatever else it may be.

    Parameters
    ----------
    follow : bool
        Whether the last part of the path may be a symbolic link.

    Returns
    -------
    int
        Descriptor; the caller closes it.

    Raises
    ------
    OSError
        If it is no regular file, is a link that is not to be followed, or cannot be opened.
    """
    # A pipe opened without O_NONBLOCK waits for its other end, perhaps for ever.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "expected a regular file, found a pipe or a device", str(path))
    if kind & TO_BE_FETCHED and _fetchers and _is_fetched(path, descriptor):
        # What was fetched may have had to go again before it is opened.
        return open_regular(path, follow=follow)
    return descriptor


def _is_fetched(path: Path | str, descriptor: int) -> bool:
    """Have the bytes of a marked file fetched; its descriptor is closed if they are."""
    try:
        fetched = any(fetcher(path, descriptor) for fetcher in _fetchers)
    except BaseException:
        os.close(descriptor)
        raise
    if fetched:
        os.close(descriptor)
    return fetched


def open_file(path: Path | str, *, follow: bool = True) -> BinaryIO:
    """Open a regular file for reading; see `open_regular`.

    Raises
    ------
    OSError
        If it is none, or cannot be opened.
    """
    return os.fdopen(open_regular(path, follow=follow), "rb")


def read_small(path: Path | str, *, most_bytes: int, follow: bool = True) -> bytes:
    """Read a file whole.

    Parameters
    ----------
    most_bytes : int
        Longest file that is read.
    follow : bool
        See `open_regular`.

    Raises
    ------
    OSError
        If it is no regular file, is longer, or cannot be read.
    """
    with open_file(path, follow=follow) as file:
        # One byte more tells a file that grew. Asked for the most there may be, the system's
        # library would set aside memory for all of it.
        data = file.read(min(os.fstat(file.fileno()).st_size, most_bytes) + 1)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"expected at most {most_bytes} bytes, found more", str(path))
    return data


def parse_json(data: bytes) -> Any:
    """Parse JSON that nobody vouches for.

    Parameters
    ----------
    data : bytes
        UTF-8.

    Raises
    ------
    ValueError
        If it is no JSON in UTF-8, gives a name twice, of which another program may take the other
        one, is nested too deep, or has too many parts or digits.

    Examples
    --------
    >>> parse_json(b'{"shape": [3, 4]}')
    {'shape': [3, 4]}
    >>> parse_json(b'{"shape": 1, "shape": 2}')
    Traceback (most recent call last):
    ValueError: the name 'shape' is given twice
    """
    if data.count(b"[") + data.count(b"{") + data.count(b",") > MOST_JSON_ITEMS:
        raise ValueError(f"more than {MOST_JSON_ITEMS} parts")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name '{twice[:40]}' is given twice")
    return found


def parse_as(kind: type[_T], facts: Any) -> _T:
    """Make a dataclass of parsed JSON that gives every field, by its name and of its type.

    Nothing is converted but lists to tuples, names of an enum to its members, and whole numbers to
    floats. A default is for callers: a document has to name its fields all the same.

    Parameters
    ----------
    kind : type
        A dataclass, or a container of some.
    facts : object
        As `parse_json` gives it.

    Raises
    ------
    ValueError
        If an entry is missing, unknown, or of another type. It names the first.
    SfxReduceError
        Whatever `kind` raises when its fields contradict each other.
    """
    # Here, because it takes a tenth of a second that most commands need not pay.
    from pydantic import ValidationError
    from pydantic_core import to_json

    adapter: TypeAdapter[_T] = _adapter(kind)  # type: ignore[arg-type]
    try:
        text = to_json(facts, inf_nan_mode="constants")
        value = adapter.validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        entry = ascii(".".join(map(str, first["loc"])))[:80]
        message = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        raise ValueError(f"{entry}: {message}, found {first['input']!a:.60}") from error
    complete = adapter.dump_python(value, mode="json")
    # NaN differs from itself, therefore the names are what decides.
    if complete != facts and (missing := {*_names(complete)} - {*_names(facts)}):
        raise ValueError(f"{min(missing)!a}: field required, found none")
    return value


@cache
def _adapter(kind: type[_T]) -> TypeAdapter[_T]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _names(facts: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all entries of a document."""
    if isinstance(facts, list | tuple):
        facts = dict(enumerate(facts))
    if isinstance(facts, dict):
        for name, value in facts.items():
            yield f"{prefix}{name}"
            yield from _names(value, f"{prefix}{name}.")


def source_pin(paths: Iterable[Path]) -> str:
    """Hash names, sizes and times of change of files, and of all files below folders.

    It costs a look at each file, not its bytes: it notices what programs do to files, and is no
    proof of what they hold.

    Returns
    -------
    str
        In hexadecimal.

    Raises
    ------
    SourceError
        If one of them is gone or may not be looked at.
    """
    digest = hashlib.sha256()
    for name, facts in looked_at(paths):
        line = f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def file_identity(paths: Iterable[Path]) -> str:
    """Hash what tells files from all others, and from themselves after a change.

    Returns
    -------
    str
        In hexadecimal; device, inode, size, times of modification and of change. Programs can set
        the time of modification, not that of change.

    Raises
    ------
    SourceError
        If one of them is gone or may not be looked at.
    """
    digest = hashlib.sha256()
    for name, facts in looked_at(paths):
        numbers = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        digest.update(f"{name}\0{numbers}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def looked_at(paths: Iterable[Path]) -> Iterator[tuple[str, os.stat_result]]:
    """Look at files, and at all files below folders, in order of their names.

    Raises
    ------
    SourceError
        If one of them is gone or may not be looked at.
    """
    for path in sorted(paths):
        try:
            yield from _files(path)
        except OSError as error:
            raise SourceError(
                f"{error.filename or path}: cannot be looked at ({error.strerror or error}); was "
                "the source moved while it was read?"
            ) from error


def content_pin(path: Path, *, suffix: str = "") -> str:
    """Hash the bytes of a file, or of all files below a folder with their names.

    Parameters
    ----------
    suffix : str
        Take files with this ending only.

    Returns
    -------
    str
        In hexadecimal.

    Raises
    ------
    SourceError
        If one of them cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for name, _ in _files(path):
            if name.endswith(suffix):
                held = sha256_file(Path(name))
                digest.update(f"{os.path.relpath(name, path)}\0{held}\n".encode())
    except OSError as error:
        raise SourceError(
            f"{error.filename or path}: cannot be read ({error.strerror or error}); check the path "
            "and the right to read it"
        ) from error
    return digest.hexdigest()


def _files(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    if not path.is_dir():
        yield os.fspath(path), path.stat()
        return
    with os.scandir(path) as listed:
        entries = sorted(listed, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir():
            yield from _files(Path(entry.path))
        else:
            yield entry.path, entry.stat()
