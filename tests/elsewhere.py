"""A scheduler and a worker that somebody else started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil


@contextmanager
def scheduler_elsewhere(
    folder: Path, *options: str, protocol: str = "tcp"
) -> Iterator[tuple[psutil.Popen, str]]:
    """A scheduler and a worker as people start them, on 127.0.0.1."""
    file, tool = folder / "scheduler.json", str(Path(sys.executable).with_name("dask"))
    here = ["--scheduler-file", str(file), "--host", f"{protocol}://127.0.0.1", *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    scheduler = psutil.Popen(
        [tool, "scheduler", "--port", "0", "--dashboard-address", "127.0.0.1:0", *here],
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    worker = psutil.Popen(
        [tool, "worker", "--nthreads", "1", "--no-dashboard", *here],
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=folder,
    )
    try:
        deadline = time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.2)
        yield scheduler, json.loads(file.read_text())["address"]
    finally:
        for process in (worker, scheduler):
            for one in [*process.children(recursive=True), process]:
                with suppress(psutil.Error):
                    one.kill()
            process.wait()
