"""Run a command, and print as JSON what it used.

    python benchmarks/watched.py COMMAND ...

In a process of its own: the system counts the memory of whoever starts a command as that of the
command.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

__all__ = ["watched"]

ADOPT_ORPHANS = 36
"""``PR_SET_CHILD_SUBREAPER`` of Linux."""


def watched(command: list[str]) -> dict[str, Any]:
    """Run a command from a process that holds hardly any memory.

    Returns
    -------
    dict
        ``cpu_s``, ``system_s`` and ``peak_mb`` of the largest of its processes that ended.

    Raises
    ------
    SystemExit
        If the command fails.
    """
    asked = [sys.executable, "-I", __file__, *command]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}: {done.stderr}")
    used: dict[str, Any] = json.loads(done.stdout)
    return used


def main() -> None:
    # Workers are children of a process that the command leaves behind: nobody else would count it.
    ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1)
    command = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL).pid
    ended = dict(_until_all_ended())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        json.dumps(
            {
                "cpu_s": used.ru_utime + used.ru_stime,
                "system_s": used.ru_stime,
                "peak_mb": used.ru_maxrss * 1024 / 1e6,
            }
        )
    )
    sys.exit(os.waitstatus_to_exitcode(ended[command]))


def _until_all_ended() -> Iterator[tuple[int, int]]:
    """Wait for every process there is; give number and status of each."""
    with suppress(ChildProcessError):
        while True:
            yield os.wait()


if __name__ == "__main__":
    main()
