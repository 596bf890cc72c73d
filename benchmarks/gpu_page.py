"""Make the tables of the docs page from the figures of `gpu.py`.

python benchmarks/gpu_page.py docs/results/gpu.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MODES = (("float32", "eager"), ("float32", "compiled"), ("half", "eager"), ("half", "compiled"))
LEAST_SHARE = 0.7


def page(found: dict[str, Any]) -> str:
    """All tables of a run's figures."""
    facts, figures = found["machine"], found["figures"]
    threads = sorted({f["of"]["threads"] for f in figures if f["what"] == "decode limit"})
    return "\n".join(
        [
            "<!-- made by benchmarks/gpu_page.py; do not edit -->",
            f"One {facts['gpu']}, {facts['cores']} cores ({facts['cpu']}), PCIe {facts['pcie']}, "
            f"driver {facts['driver']}, Python {facts['python']}, torch {facts['torch']}, "
            f"numpy {facts['numpy']}, numba {facts['numba']}. Events per second by the wall clock, "
            "of one core by its own; best of three.",
            "",
            *_by_mode(figures, threads),
            "",
            *_by_threads(figures, threads),
            "",
            *_alone(figures),
            "",
            *_ratios(figures),
            "",
        ]
    )


def _by_mode(figures: Sequence[dict[str, Any]], threads: Iterable[int]) -> list[str]:
    """The poster's network: precision and compiling across, what is included down."""
    most = max(threads)
    rows: list[tuple[str, str, dict[str, int]]] = [
        ("the network alone, pixels on the card", "device, nothing but the network", {}),
        ("with the copy to the card, decoding excluded", "device, decoding excluded", {}),
        *(
            (f"decoding included, threads: {t}", "device, decoding included", {"threads": t})
            for t in threads
        ),
        (
            f"the same, task by task, threads: {most}",
            "device, decoding included, task by task",
            {"threads": most},
        ),
        (
            f"reading a run store included, threads: {most}",
            "device, reading a run store included",
            {"threads": most},
        ),
        ("farthest from the processor's probability", "largest difference of a probability", {}),
    ]
    lines = [
        "### The poster's network, centre tile",
        "",
        "| events/s | " + " | ".join(f"{p}, {m}" for p, m in MODES) + " |",
        "|---|" + "---:|" * len(MODES),
    ]
    for name, what, of in rows:
        cells = [_value(figures, what, precision=p, mode=m, **of) for p, m in MODES]
        lines.append(f"| {name} | " + " | ".join(map(_number, cells)) + " |")
    return lines


def _by_threads(figures: Sequence[dict[str, Any]], threads: Sequence[int]) -> list[str]:
    """Limits and the patch network: threads across."""
    rows = (
        ("tiles that threads decode, nothing else", "decode limit"),
        ("share of the smaller limit, poster's network", "share of the smaller limit"),
        ("patch network, whole frames, decoding excluded", "patches, decoding excluded"),
        ("patch network, whole frames, decoding included", "patches, decoding included"),
    )
    lines = [
        "### By the number of threads",
        "",
        "| a second | " + " | ".join(map(str, threads)) + " |",
        "|---|" + "---:|" * len(threads),
    ]
    for name, what in rows:
        cells = [_value(figures, what, threads=t) for t in threads]
        lines.append(f"| {name} | " + " | ".join(map(_number, cells)) + " |")
    return lines


def _alone(figures: Sequence[dict[str, Any]]) -> list[str]:
    """What has no threads and no modes: one core, the bus."""
    lines = ["### One core, and the bus", "", "| what | value | unit |", "|---|---:|---|"]
    for figure in figures:
        alone = not figure["of"].keys() - {"memory", "processes"}
        if alone and figure["unit"] != "times" and figure["what"] != "share of the smaller limit":
            name = ", ".join([figure["what"], *(f"{k}: {v}" for k, v in figure["of"].items())])
            lines.append(f"| {name} | {_number(figure['value'])} | {figure['unit']} |")
    return lines


def _ratios(figures: Sequence[dict[str, Any]]) -> list[str]:
    """How far the card leaves one core behind, and how near it comes to its limits."""
    lines = ["### Ratios", "", "| what | ratio | wanted |", "|---|---:|---|"]
    lines += [
        f"| {figure['what']} | {_number(figure['value'])} | |"
        for figure in figures
        if figure["unit"] == "times"
    ]
    shares = [f for f in figures if f["what"] == "share of the smaller limit" and f["value"]]
    if shares:
        last = max(shares, key=lambda f: f["of"]["threads"])
        holds = "holds" if last["value"] >= LEAST_SHARE else "**missed**"
        lines.append(
            f"| share of the smaller limit, threads: {last['of']['threads']} | "
            f"{_number(last['value'])} | at least {LEAST_SHARE}: {holds} |"
        )
    return lines


def _value(figures: Iterable[dict[str, Any]], what: str, **of: Any) -> float | None:
    """Value of the figure of that name; None if it was not measured."""
    for figure in figures:
        if figure["what"] == what and of.items() <= figure["of"].items():
            value: float | None = figure["value"]
            return value
    return None


def _number(value: float | None) -> str:
    """Three digits that mean something."""
    return "-" if value is None else f"{float(f'{value:.3g}'):,.6g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path)
    path = parser.parse_args().json
    path.with_suffix(".md").write_text(page(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
