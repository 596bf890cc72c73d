"""All speed benchmarks as one table: printed, kept as JSON, and made into the page in the docs.

    make bench

or, with what is simulated, and every part that is measured, kept for the next time::

    python benchmarks/run.py --work bench/ --out docs/results/speed
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import against_peers
import bytes_moved
import eiger
import end_to_end
import equal_loss
import fused
import scaling
import sources
from machine import machine
from material import KINDS
from parts_of_cost import PARTS
from rows import Row

import sfxreduce


def page(found: dict[str, Any]) -> str:
    """Make the tables of the docs page from the figures."""
    facts = found["machine"]
    lines = [
        "<!-- made by benchmarks/run.py; do not edit -->",
        f"{facts['cpu']}, {facts['cores']} shared cores, Python {facts['python']}, "
        + ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
        + ". One thread, CPU milliseconds per event, medians.",
    ]
    if found["small"]:
        lines += ["", "**Small sizes: this shows that the programs work, and no figure to quote.**"]
    lines += ["", *sentences(found["rows"])]
    lines += ["", "## What an event costs, part by part", "", *_parts(found["parts"])]
    lines += ["", "## At equal loss", "", *equal_loss.table(found["equal_loss"])]
    for section, rows in groupby(found["rows"], key=lambda row: row["section"]):
        lines += ["", f"## {section[0].upper()}{section[1:]}", ""]
        lines += ["| what | CPU-ms | turns, events | ratio | of | wanted |"]
        lines += ["|---|---:|---:|---:|---|---|", *map(_line, rows)]
        if section == eiger.SECTION:
            lines += ["", eiger.ANCHOR]
    return "\n".join([*lines, "", *scaling.tables(found["scaling"]), ""])


def sentences(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Whole frames first: what may be quoted."""
    return [
        f"Whole frames of {kind}, {against_peers.BLANK_SHARE:.0%} blanks, reading included: "
        + ", ".join(
            f"{_down(row['ratio']):.1f} times as fast as "
            f"{row['name'].removesuffix(', with reading')}"
            for row in rows
            if row["section"] == against_peers.mixed_section(kind) and row["ratio"] is not None
        )
        + "."
        for kind in KINDS
    ]


def _down(ratio: float) -> float:
    """Round down: a target that is missed by little is missed."""
    return math.floor(10 * ratio) / 10


def _parts(parts: Sequence[dict[str, Any]]) -> list[str]:
    """Cost of each part of reading and scoring, and the tiles that are read."""
    heads = ["frames", "events", "tiles read", *PARTS, "together"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * (len(PARTS) + 2)]
    for one in parts:
        costs = [f"{one['cpu_ms'][name]:.3g}" for name in PARTS]
        cells = [one["kind"], f"{one['n_events']} {one['class']}", f"{one['tiles']:.1f}", *costs]
        lines.append(f"| {' | '.join(cells)} | {one['together']:.3g} |")
    return lines


def _line(row: dict[str, Any]) -> str:
    """One row of a table; its note stands behind its name."""
    name = f"{row['name']} ({row['note']})" if row["note"] else row["name"]
    spent = "-" if row["cpu_ms"] is None else f"{row['cpu_ms']:.3g}"
    turns = f"{row['n_turns']}, {row['n_events']}" if row["n_turns"] else ""
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.3g}"
    wanted = row["wanted"] and f"{row['wanted']}: {'holds' if row['holds'] else '**missed**'}"
    return f"| {name} | {spent} | {turns} | {ratio} | {row['against']} | {wanted} |"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Parts of the table that are measured, each kept in a folder until a line of code changes."""

    folder: Path
    code: str

    def part(self, name: str, measured: Callable[[], Any]) -> Any:
        """Figures of a part, measured unless they are there."""
        path = self.folder / f"{name}.json"
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["code"] == self.code:
                return kept["figures"]
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        figures = json.loads(json.dumps(measured()))
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"code": self.code, "figures": figures}))
        return figures


def _digest_of_code() -> str:
    """Digest of all Python that figures come from."""
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, Path(sfxreduce.__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def measure(folder: Path, *, small: bool) -> dict[str, Any]:
    """Run every benchmark in a folder; small ones show that the programs work, and no figure."""
    kept = Kept(folder=folder / ("small parts" if small else "parts"), code=_digest_of_code())
    sizes = against_peers.Sizes(n_each=16, rounds=1) if small else against_peers.Sizes()
    against = kept.part("against peers", lambda: _against_peers(folder, sizes))
    equal = kept.part(
        "at equal loss", lambda: equal_loss.measure(folder, n_each=48 if small else 600)
    )
    rows = list(against["rows"])
    for name, measured in _tables(folder, small, _cost_of_peers(rows), sizes).items():
        rows += kept.part(name, lambda measured=measured: [row.to_json() for row in measured()])
    lengths = scaling.SHORT if small else scaling.Lengths()
    grown = {
        name: kept.part(f"scaling, {name}", measured)
        for name, measured in scaling.parts(folder, lengths).items()
    }
    return {
        "machine": machine(),
        "small": small,
        "rows": rows,
        "parts": against["parts"],
        "equal_loss": equal,
        "scaling": grown,
    }


def _against_peers(folder: Path, sizes: against_peers.Sizes) -> dict[str, Any]:
    rows, parts = against_peers.measure(folder, sizes)
    return {"rows": [row.to_json() for row in rows], "parts": parts}


def _cost_of_peers(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """CPU milliseconds an event of each peer, for each kind of frames."""
    return {
        kind: {
            row["name"].removesuffix(", with reading"): row["cpu_ms"]
            for row in rows
            if row["section"] == against_peers.mixed_section(kind)
            and row["ratio"] is not None
            and row["cpu_ms"] is not None
        }
        for kind in KINDS
    }


def _tables(
    folder: Path,
    small: bool,
    peers: dict[str, dict[str, float]],
    sizes: against_peers.Sizes,
) -> dict[str, Callable[[], Sequence[Row]]]:
    """What measures each further table, in their order on the page."""
    n_each, lengths = sizes.n_each, (1, 2) if small else (2, 8)
    tables: dict[str, Callable[[], Sequence[Row]]] = {
        "end to end, as shipped": lambda: end_to_end.measure_shipped(
            folder, peers, n_each=n_each, lengths=lengths
        ),
        "Eiger": lambda: eiger.measure(folder, **({"n_events": 2} if small else {})),
    }
    if not small:
        tables |= {
            "end to end": lambda: end_to_end.measure(folder),
            "bytes moved": lambda: bytes_moved.measure(folder),
            "sources": lambda: sources.measure(folder),
            "fused kernels": fused.measure,
        }
    return tables


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="for runs and outputs; a temporary folder else")
    parser.add_argument("--small", action="store_true", help="everything once, no figure to quote")
    parser.add_argument("--out", type=Path, help="writes OUT.json and OUT.md")
    parser.add_argument("--page-only", action="store_true", help="make OUT.md from OUT.json")
    options = parser.parse_args(arguments)
    if options.page_only:
        found = json.loads(options.out.with_suffix(".json").read_text())
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.work or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            found = measure(folder, small=options.small)
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()
