"""All speed benchmarks as one table: printed, kept as JSON, and made into the page in the docs.

    make bench

or, with what is simulated kept for the next time::

    python benchmarks/run.py --work bench/ --out docs/results/speed
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import against_peers
import bytes_moved
import end_to_end
import fused
import scaling
import sources
from machine import machine
from rows import Row


def page(found: dict[str, Any]) -> str:
    """Make the tables of the docs page from the figures."""
    facts = found["machine"]
    lines = [
        "<!-- made by benchmarks/run.py; do not edit -->",
        f"{facts['cpu']}, {facts['cores']} shared cores, Python {facts['python']}, "
        + ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
        + ". One thread, CPU milliseconds per event, medians.",
    ]
    for section, rows in groupby(found["rows"], key=lambda row: row["section"]):
        lines += ["", f"## {section[0].upper()}{section[1:]}", ""]
        lines += ["| what | CPU-ms | ratio | of | wanted |", "|---|---:|---:|---|---|"]
        lines += [_line(row) for row in rows]
    return "\n".join([*lines, "", *_plans(found["scaling"]), ""])


def _line(row: dict[str, Any]) -> str:
    """One row of a table; its note stands behind its name."""
    name = f"{row['name']} ({row['note']})" if row["note"] else row["name"]
    spent = "-" if row["cpu_ms"] is None else f"{row['cpu_ms']:.3g}"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.3g}"
    wanted = row["wanted"] and f"{row['wanted']}: {'holds' if row['holds'] else '**missed**'}"
    return f"| {name} | {spent} | {ratio} | {row['against']} | {wanted} |"


def _plans(found: dict[str, Any]) -> list[str]:
    """Tables of what grows with a run's length."""
    return scaling.tables(found)


def measure(folder: Path) -> dict[str, Any]:
    """Run every benchmark in a folder."""
    rows: list[Row] = [
        *end_to_end.measure(folder),
        *against_peers.measure(folder),
        *bytes_moved.measure(folder),
        *sources.measure(folder),
        *fused.measure(),
    ]
    return {
        "machine": machine(),
        "rows": [row.to_json() for row in rows],
        "scaling": scaling.measure(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="for runs and outputs; a temporary folder else")
    parser.add_argument("--out", type=Path, help="writes OUT.json and OUT.md")
    parser.add_argument("--page-only", action="store_true", help="make OUT.md from OUT.json")
    options = parser.parse_args(arguments)
    if options.page_only:
        found = json.loads(options.out.with_suffix(".json").read_text())
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.work or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            found = measure(folder)
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()
