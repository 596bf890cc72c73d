"""Open an archive by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl

from sfxreduce.archive.tape.backends.lying import LyingBackend
from sfxreduce.archive.tape.backends.posix import PosixBackend
from sfxreduce.archive.tape.backends.protocol import Backend
from sfxreduce.archive.tape.backends.script import TIMEOUT_S, ScriptBackend
from sfxreduce.errors import UsageError

__all__ = ["open_backend"]

EXAMPLES = "posix:/mnt/tape, posix:/mnt/tape?separate-devices, exec:/etc/sfxreduce/hpss.sh"


def open_backend(spec: str) -> Backend:
    """Open an archive.

    Parameters
    ----------
    spec : str
        ``posix:FOLDER``, with the options ``separate-devices`` (pools have to lie on devices of
        their own) and ``mounted`` (the folder has to be a mount point); ``exec:SCRIPT``, with the
        option ``timeout`` in seconds; or, for tests, ``lying:LIE:FOLDER``. Options follow a ``?``
        and are divided by ``&``.

    Raises
    ------
    UsageError
        If there is no such kind, or an option is unknown.
    ArchiveError
        If the folder or the script is not there.

    Examples
    --------
    >>> open_backend("tape:/mnt/tape")
    Traceback (most recent call last):
    ...
    sfxreduce.errors.UsageError: 'tape:/mnt/tape': expected an archive such as posix:/mnt/tape, ...
    """
    kind, _, rest = spec.partition(":")
    if kind == "posix":
        folder, options = _split(spec, rest, {"separate-devices", "mounted"})
        return PosixBackend(
            root=_absolute(spec, folder),
            name=spec,
            separate_devices="separate-devices" in options,
            mounted="mounted" in options,
        )
    if kind == "exec":
        script, options = _split(spec, rest, {"timeout"})
        timeout = options.get("timeout", str(TIMEOUT_S))
        if not timeout.isdecimal() or int(timeout) < 1:
            raise UsageError(f"'{spec}': expected a timeout in whole seconds, found '{timeout}'")
        return ScriptBackend(script=_absolute(spec, script), name=spec, timeout_s=int(timeout))
    if kind == "lying":
        lie, _, folder = rest.partition(":")
        return LyingBackend(lie=lie, root=_absolute(spec, folder), name=spec)
    raise UsageError(f"'{spec}': expected an archive such as {EXAMPLES}")


def _absolute(spec: str, path: str) -> Path:
    if not path.startswith("/"):
        raise UsageError(f"'{spec}': expected an absolute path; archives such as {EXAMPLES}")
    return Path(path)


def _split(spec: str, rest: str, known: set[str]) -> tuple[str, Mapping[str, str]]:
    """Path and options."""
    path, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - known)
    if unknown:
        raise UsageError(f"'{spec}': expected options of {sorted(known)}, found {unknown}")
    return path, options
