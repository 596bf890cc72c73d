"""Check the installed wheel: what ships is whole, and nothing of the working tree leaks in.

Run by ``make wheel-test`` in a folder of its own, with the wheel on the path.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import sfxreduce
import sfxreduce_cli

SITE = Path.cwd() / "site"


def main() -> None:
    """Run the main job of the wheel, from a simulated run to a verified output."""
    for package in (sfxreduce, sfxreduce_cli):
        assert package.__file__ is not None
        assert SITE in Path(package.__file__).parents, f"not the wheel: {package.__file__}"
    # The working tree is on the path of an editable installation; the wheel must do without.
    root = Path(__file__).resolve().parents[1]
    tree = (root, root / "cli", root / "tests")
    sys.path[:] = [p for p in sys.path if Path(p).resolve() not in tree]
    importlib.invalidate_caches()
    assert importlib.util.find_spec("cli") is None, "a package called 'cli' was installed"
    for name in ("py.typed", "__init__.pyi", "archive/__init__.pyi", "train/__init__.pyi"):
        assert (SITE / "sfxreduce" / name).exists(), f"not in the wheel: {name}"
    command = [sys.executable, "-m", "sfxreduce_cli"]
    for arguments in (
        "simulate --out run.zarr --experiment photosystem-i-8kev --events 12 --hit-rate 0.5 "
        "--frame-shape 350x350 --overwrite",
        "filter --in run.zarr --out hits.zarr --cxi hits.cxi --report report.html --overwrite",
        "filter --in run.zarr --out peaks.zarr --scorer peaks --min-peaks 3 --overwrite",
        "verify --in hits.zarr --against run.zarr",
        "info hits.zarr",
    ):
        name = arguments.split()[0]
        options = {"info": [], "filter": ["--serial", "--json"]}.get(name, ["--serial"])
        done = subprocess.run(
            [*command, *arguments.split(), *options], check=True, stdout=subprocess.PIPE, text=True
        )
        print(done.stdout, end="")
        assert name != "filter" or json.loads(done.stdout)["hits"] > 0, "no hit came out"
    print("the wheel does its main job")


if __name__ == "__main__":
    main()
