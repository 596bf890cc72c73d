"""Watch what Python programs ask of the file system: an audit hook in each of them.

It needs no other program, so it is always there. What a library writes in C it does not see; strace
does, where it is at hand.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LOG = "WATCHED_BY"
"""Variable of the environment that names the file of events."""

WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

NONE = 99
"""In place of an argument that an event does not have."""

CHANGED = {
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, NONE),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    "os.setxattr": ((0, NONE),),
    "os.removexattr": ((0, NONE),),
    "shutil.rmtree": ((0, 1),),
    "shutil.move": ((0, NONE), (1, NONE)),
    "shutil.copyfile": ((1, NONE),),
    "shutil.copymode": ((1, NONE),),
    "shutil.copystat": ((1, NONE),),
    "shutil.copytree": ((1, NONE),),
    "shutil.chown": ((0, NONE),),
    "shutil.unpack_archive": ((1, NONE),),
}
"""Events that change something: which arguments name it, and which hold the open folder that each
name is relative to.
"""


def watch() -> None:
    """Write down every event of this process that changes a file; for good, as hooks are."""
    if LOG not in os.environ:
        return
    log = os.open(os.environ[LOG], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        for path in _changed(event, args):
            found = [event, os.path.abspath(path), os.path.realpath(path), _name_at(path)]  # noqa: PTH100
            os.write(log, json.dumps(found).encode() + b"\n")

    sys.addaudithook(hook)


def _changed(event: str, args: tuple[Any, ...]) -> Iterator[str]:
    """Paths that an event is about to change."""
    if event == "open":
        path, _, flags = args
        if isinstance(flags, int) and flags & WRITE_FLAGS:
            yield from _path(path, -1)
        return
    for name, folder in CHANGED.get(event, ()):
        yield from _path(args[name], args[folder] if folder < len(args) else -1)


def _path(named: Any, folder: Any) -> Iterator[str]:
    if isinstance(named, int):
        yield _of_descriptor(named)
    elif isinstance(named, str | bytes | os.PathLike):
        path = os.fsdecode(named)
        yield os.path.join(_of_descriptor(folder), path) if _is_open(folder) else path  # noqa: PTH118


def _is_open(folder: Any) -> bool:
    return isinstance(folder, int) and folder >= 0


def _of_descriptor(number: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
    except OSError:
        return f"descriptor {number}"


def _name_at(path: str) -> str:
    """The name itself, where its folder is: a link that is removed is not what it leads to."""
    whole = os.path.abspath(path)  # noqa: PTH100
    return f"{os.path.realpath(os.path.dirname(whole))}/{os.path.basename(whole)}"  # noqa: PTH119, PTH120


def watched(command: Sequence[str], *, folder: Path) -> list[list[str]]:
    """Run a command, and return the events of it and of all Python programs that it starts.

    Parameters
    ----------
    command : sequence of str
        To be run by this interpreter.
    folder : Path
        For the hook and the events.
    """
    hook = folder / "hook"
    hook.mkdir(exist_ok=True)
    # Every interpreter imports this module as it starts, those of Dask's workers too.
    (hook / "sitecustomize.py").write_text("from faults.watch import watch\n\nwatch()\n")
    log = folder / "events"
    log.write_text("")
    tests = str(Path(__file__).parents[1])
    paths = [str(hook), tests, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, LOG: str(log), "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in log.read_text().splitlines()]


def events_below(events: Sequence[Sequence[str]], root: Path) -> list[str]:
    """Events that change a folder or something below it, by whatever name."""
    roots = (str(root.absolute()), str(root.resolve()))
    return [
        " ".join(event)
        for event in events
        if any(path == r or path.startswith(r + "/") for path in event[1:] for r in roots)
    ]


def lines_below(trace: str, root: Path) -> list[str]:
    """Lines of strace in which something below a folder is opened for writing or changed."""
    names = "|".join(re.escape(str(path)) for path in {root.absolute(), root.resolve()})
    below = re.compile(rf"(?:{names})(?=[/\">])")
    found = []
    for line in trace.splitlines():
        call = re.match(r"(?:\[pid +\d+\] |\d+ +)?(\w+)\(", line)
        if not call or not below.search(line):
            continue
        opens = call[1] in ("openat", "open")
        if not opens or re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC|APPEND)", line):
            found.append(line)
    return found
