"""How many files a reader has to open to follow one command from its line to its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MOST_FILES = 60

PROGRAM = """
import inspect, json, os, sys, threading

import sfxreduce
from sfxreduce_cli.main import main

package = os.path.dirname(sfxreduce.__file__) + os.sep
entered = set()

def note(frame, event, argument):
    code = frame.f_code
    # Bodies of modules and classes run when they are imported; functions are what a reader follows.
    if event == "call" and code.co_flags & inspect.CO_OPTIMIZED:
        if code.co_filename.startswith(package) and code.co_filename.endswith(".py"):
            entered.add(code.co_filename[len(package):])

sys.argv = ["sfxreduce", *sys.argv[1:]]
threading.setprofile(note)
sys.setprofile(note)
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
sys.setprofile(None)
print(json.dumps(sorted(entered)), file=sys.stderr)
"""


def files_entered(*words: str, folder: Path) -> list[str]:
    """Files of the package whose functions a command enters."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    entered: list[str] = json.loads(done.stderr.splitlines()[-1])
    return entered


def test_a_filter_run_with_its_report_stays_in_sixty_files(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "sfxreduce_cli", "simulate", "--out", "run.zarr", "--serial"]
    run += ["--experiment", "photosystem-i-8kev", "--events", "40", "--seed", "1"]
    subprocess.run(run, cwd=tmp_path, check=True, capture_output=True)
    words = ["filter", "--in", "run.zarr", "--serial", "--report"]
    # The first run compiles what nothing has compiled before.
    files_entered(*words, "page.html", "--out", "warm.zarr", folder=tmp_path)
    entered = files_entered(*words, "report.html", "--out", "hits.zarr", folder=tmp_path)
    assert {"pipeline/filter.py", "decisions/decide.py", "report/report.py"} <= set(entered)
    assert len(entered) <= MOST_FILES, entered
