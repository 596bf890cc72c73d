"""Disturb filter runs in every way this machine allows, and count what goes wrong.

    python tests/faults/soak.py --json docs/results/faults.json --table docs/results/faults.md

Prints, for every kind of fault, trials, violations and the upper 95 % bound of the share of
violations that so many trials leave possible; the exit status is 1 if there was any. Faults that
this machine does not let us make are listed with the reason, not counted as passed.
"""

from __future__ import annotations

import argparse
import errno
import json
import platform
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a call as a script

from faults.disks import NoDiskError, full_disks, power_cuts
from faults.every_command import kills_of_every_command
from faults.trials import Bench, Outcome, errors_at_calls, kills_at_calls, kills_at_random


def main() -> int:
    """Run all faults and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", type=int, default=300, help="kills at random times")
    parser.add_argument("--calls", type=int, default=0, help="kills before a call; 0 for each")
    parser.add_argument("--errors", type=int, default=100, help="failing calls of each kind")
    parser.add_argument("--cuts", type=int, default=100, help="power cuts")
    parser.add_argument("--full", type=int, default=100, help="full disks")
    parser.add_argument("--commands", type=int, default=300, help="kills of every command")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, help="the same as a Markdown table")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sfxreduce-faults-") as name:
        rows = all_faults(Path(name), asked)
    if asked.json:
        facts = {"system": f"{platform.system()} {platform.release()}", "faults": rows}
        asked.json.write_text(json.dumps(facts, indent=2) + "\n")
    if asked.table:
        asked.table.write_text(as_markdown(rows))
    return int(any(row.get("violations") for row in rows))


def all_faults(folder: Path, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Every kind of fault, the requested number of times."""
    rng = random.Random(asked.seed)
    bench = Bench.make(folder)
    every = range(1, bench.calls + 1)
    n_calls = min(asked.calls or bench.calls, bench.calls)
    work: dict[str, Callable[[], Outcome]] = {
        "kill": lambda: kills_at_random(bench, folder, asked.random, rng),
        "call": lambda: kills_at_calls(bench, folder, sorted(rng.sample(every, n_calls))),
    }
    for number in (errno.EIO, errno.ENOSPC):
        work[errno.errorcode[number]] = lambda number=number: errors_at_calls(
            bench, folder, sorted(rng.sample(every, min(asked.errors, bench.calls))), number
        )
    work["command"] = lambda: kills_of_every_command(folder, asked.commands, rng)
    work["disk full"] = lambda: full_disks(bench, folder, asked.full, rng)
    work["power cut"] = lambda: power_cuts(bench, folder, asked.cuts, rng)
    rows = []
    for name, trials in work.items():
        try:
            rows.append({"kind": name, **trials().to_json()})
        except NoDiskError as error:
            rows.append({"kind": name, "fault": name, "skipped": str(error)})
        # One line for each kind as soon as it is known: all of them may take an hour.
        sys.stdout.write(told(rows[-1]) + "\n")
        sys.stdout.flush()
    return rows


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the documentation."""
    lines = [
        "| fault | trials | violations | at most (95 %) |",
        "|---|---:|---:|---:|",
    ]
    for row in rows:
        if "skipped" in row:
            lines.append(f"| {row['fault']} | skipped: {row['skipped']} | | |")
        else:
            lines.append(
                f"| {row['fault']} | {row['trials']:,} | {row['violations']} "
                f"| {100 * row['upper95']:.2f} % |"
            )
    return "\n".join([*lines, ""])


def told(row: dict[str, Any]) -> str:
    """One line of the table."""
    if "skipped" in row:
        return f"{row['fault']:<48}  skipped: {row['skipped']}"
    line = (
        f"{row['fault']:<48}  {row['trials']:>5} trials  {row['violations']:>3} violations  "
        f"at most {row['upper95']:.2%}"
    )
    return "\n    ".join([line, *row["first"]])


if __name__ == "__main__":
    sys.exit(main())
