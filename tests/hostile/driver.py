"""Runs command lines, each in a process forked from this one, and measures what each needs.

Importing the package takes a second, and a fork of a process that has done so a few milliseconds;
it is as much a process of its own. The parent imports, and does nothing else that a fork could
inherit. Command lines come as JSON on standard input, what came of them goes to standard output.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

# What commands would import by and by.
import sfxreduce.io.label_table
import sfxreduce.pipeline.audit
import sfxreduce.pipeline.describe
import sfxreduce.pipeline.verify.output  # noqa: F401
from sfxreduce_cli.main import main

ADDRESS_SPACE = 6 << 30
SECONDS = 180.0


def run(arguments: list[str]) -> dict[str, Any]:
    """Run one command line, and say what came of it."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _be_the_command(arguments, out.fileno(), err.fileno())
        peak, status, timed_out = _wait(pid, started)
        out.seek(0)
        err.seek(0)
        return {
            "status": -status if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status),
            "timed_out": timed_out,
            "seconds": time.monotonic() - started,
            "peak_bytes": peak,
            "stdout": out.read().decode(errors="replace"),
            "stderr": err.read().decode(errors="replace"),
        }


def _be_the_command(arguments: list[str], out: int, err: int) -> None:
    """Become the command line, and never return."""
    status = 70
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        sys.argv = ["sfxreduce", *arguments]
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - what a command lets through is what is looked for
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # The peak is still to be read; the parent lets go of us then.
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(status)


def _wait(pid: int, started: float) -> tuple[int, int, bool]:
    """Wait for a command to end, and read its peak of resident memory before it is gone."""
    while time.monotonic() - started < SECONDS:
        found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if found and os.WIFSTOPPED(status):
            text = Path(f"/proc/{pid}/status").read_text()
            peak = int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) * 1024
            os.kill(pid, signal.SIGCONT)
            return peak, os.waitpid(pid, 0)[1], False
        if found:
            return 0, status, False
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return 0, os.waitpid(pid, 0)[1], True


if __name__ == "__main__":
    commands = json.load(sys.stdin)
    json.dump([run(arguments) for arguments in commands], sys.stdout)
