"""Commands need no folder of their own: not in the home folder, not beside the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import sfxreduce

PACKAGE = Path(sfxreduce.__file__ or "").parent

# Root is not bound by permission bits, but by an audit hook, and /dev/null is nobody's folder. A
# message of numba (0.61 to 0.68) at the end shows that no folder was left for machine code.
PROGRAM = """
import json, os, sys

package, commands = sys.argv[1], json.loads(sys.argv[2])
refused = set()

def refuse(event, arguments):
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        path = arguments[0]
    elif event in ("os.mkdir", "os.rename", "os.remove"):
        path = arguments[0]
    else:
        return
    if isinstance(path, str) and os.path.abspath(path).startswith(package):
        refused.add(os.path.abspath(path))
        raise PermissionError(13, "read-only", path)

sys.addaudithook(refuse)

from sfxreduce_cli.main import main

for command in commands:
    sys.argv = ["sfxreduce", *command, "--serial", "--json"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, command
assert any(path.endswith("__pycache__") for path in refused), refused

from numba import njit
from sfxreduce.run.labels import Labels

try:
    njit(cache=True)(Labels.__init__)
except RuntimeError as error:
    assert "cannot cache function" in str(error)
else:
    raise AssertionError("there is a folder that can be written to")
"""


def test_commands_run_where_neither_home_nor_package_can_be_written(tmp_path: Path) -> None:
    """Kernels of the simulator and of the poster's network asked for a folder to keep them in."""
    run, model = str(tmp_path / "run.zarr"), str(tmp_path / "model")
    commands = [
        ["simulate", "--out", run, "--experiment", "photosystem-i-8kev", "--events", "12",
         "--hit-rate", "0.5", "--frame-shape", "350x350"],
        ["filter", "--in", run, "--out", str(tmp_path / "hits.zarr")],
        ["train", "--in", run, "--out", model, "--window", "centre",
         "--recipe", "poster"],
        ["evaluate", "--in", run, "--model", model],
    ]  # fmt: skip
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(PACKAGE), json.dumps(commands)],
        # Every kernel is compiled anew here; how well is not asked.
        env={**environment, "HOME": "/dev/null", "NUMBA_OPT": "0"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= len(commands)
