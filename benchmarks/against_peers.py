"""Reading and scoring an event against the peak finders of other projects, on one core.

Every peak finder is timed on whole frames and on the centre alone, with the reading of the same
pixels by the fastest reader there is, ours, and without. It takes `make peers` once.

    python benchmarks/against_peers.py
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from material import poster_model, simulated_store
from peers_runner import PEERS_PYTHON, PeerTiming, time_peers
from rows import Row, cpu_ms_by_turns

import sfxreduce
from sfxreduce.cluster import SerialPool
from sfxreduce.decisions.method import threshold_rule
from sfxreduce.decisions.threshold import Promise
from sfxreduce.pipeline.stages.batch import score_events
from sfxreduce.pipeline.stages.conditions import with_conditions
from sfxreduce.run.window import Window

__all__ = ["measure"]

SECTION = "read and score, one core"
MAIN_PEER = "LUTE"
_CENTRE = slice(700, 1050)


def measure(folder: Path, *, n_events: int = 64, repeats: int = 5) -> list[Row]:
    """Measure scorers and peak finders on the same events.

    Parameters
    ----------
    folder : Path
        For runs and models.
    n_events : int
    repeats : int
    """
    run = simulated_store(folder / "run.zarr", n_events=64)
    default = sfxreduce.default_model()
    scorers = {
        "poster network, centre tile": sfxreduce.CnnScorer(poster_model(folder / "poster")),
        "default model, centre tile": sfxreduce.CnnScorer(default, looks_at="centre"),
        "default model, its window": sfxreduce.CnnScorer(default),
        "default model, full frame": sfxreduce.CnnScorer(default, looks_at="full"),
    }
    ours = scorers["default model, its window"]
    source, centre = with_conditions(run, ours, pool=SerialPool()).source, range(n_events)
    actions: dict[str, Callable[[], object]] = {}
    for name, scorer in scorers.items():
        closed = (
            threshold_rule(scorer, promise=Promise()).closed_from if "window" in name else np.inf
        )
        actions[name] = partial(score_events, source, scorer, centre, closed_from=closed)
    window = Window.centre(run.detector)
    actions["read the centre"] = partial(_read, source, n_events, window)
    actions["read the frame"] = partial(_read, source, n_events, None)
    taken = {n: ms / n_events for n, ms in cpu_ms_by_turns(actions, repeats=repeats).items()}
    rows = [_row(name, taken[name]) for name in (*scorers, "read the centre", "read the frame")]
    if not PEERS_PYTHON.exists():
        return [*rows, Row(section=SECTION, name="peers", cpu_ms=None, note="run 'make peers'")]
    frames = source.read(range(16)).pixels
    good = run.detector.good()
    whole = time_peers(frames, good, repeats=repeats)
    cropped = time_peers(
        np.ascontiguousarray(frames[:, _CENTRE, _CENTRE]),
        np.ascontiguousarray(good[_CENTRE, _CENTRE]),
        repeats=repeats,
    )
    for full, crop in zip(whole, cropped, strict=True):
        rows += _against(full, crop, taken)
    return rows


def _read(source: object, n_events: int, window: Window | None) -> None:
    """Read events a few at a time, as a finder would that goes frame by frame."""
    for start in range(0, n_events, 4):
        source.read(range(start, start + 4), window)  # type: ignore[attr-defined]


def _against(full: PeerTiming, crop: PeerTiming, taken: dict[str, float]) -> list[Row]:
    """Our scorers against one peak finder: whole frames, and the same pixels."""
    name = f"{full.name} {full.version}".strip()
    if full.missing:
        return [Row(section=SECTION, name=name, cpu_ms=None, note=full.missing)]
    with_reading = full.cpu_ms + taken["read the frame"]
    rows = [
        _row(f"{name}, whole frame", full.cpu_ms, note="without reading"),
        _row(f"{name}, whole frame, with reading", with_reading),
        _row(f"{name}, centre", crop.cpu_ms, note="without reading"),
    ]
    main = MAIN_PEER in full.name
    for ours, limit in (
        ("poster network, centre tile", 50),
        ("default model, centre tile", 50),
        ("default model, its window", 2),
        ("default model, full frame", 2),
    ):
        rows.append(
            _row(
                ours,
                taken[ours],
                against=f"{name}, whole frame, with reading",
                ratio=with_reading / taken[ours],
                wanted=f"at least {limit}" if main else "",
            )
        )
    rows.extend(
        _row(
            ours,
            taken[ours],
            against=f"{name}, the same pixels, with reading",
            ratio=(crop.cpu_ms + taken["read the centre"]) / taken[ours],
        )
        for ours in ("poster network, centre tile", "default model, centre tile")
    )
    ours = "default model, centre tile"
    alone = max(taken[ours] - taken["read the centre"], 1e-9)
    rows.append(
        _row(
            f"{ours}, without reading",
            alone,
            against=f"{name}, the same pixels, without reading",
            ratio=crop.cpu_ms / alone,
        )
    )
    return rows


def _row(
    name: str,
    cpu_ms: float,
    *,
    against: str = "",
    ratio: float | None = None,
    wanted: str = "",
    note: str = "",
) -> Row:
    return Row(
        section=SECTION,
        name=name,
        cpu_ms=cpu_ms,
        against=against,
        ratio=ratio,
        wanted=wanted,
        note=note,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="for runs and models; a temporary folder else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for row in measure(options.work or Path(temporary)):
            print(row.line)


if __name__ == "__main__":
    main()
