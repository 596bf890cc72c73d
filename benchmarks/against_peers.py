"""Reading and scoring an event against the peak finders of other projects, on one core.

Blanks and hits apart, as whole photons and as the ADU of an integrating detector. All methods take
turns on the same events, a few at a time; the median of the turns counts. A peak finder's frames
are read by the fastest reader there is, ours, and what it costs is added. The centre tile alone,
4 % of the pixels, is a table of its own: through it the default model rejects nothing. It takes
`make peers` once.

    python benchmarks/against_peers.py
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from material import KINDS, FilterScoring, poster_model, sorted_store
from parts_of_cost import parts_of_cost
from peers_runner import FASTEST_PEER, MAIN_PEER, Peers
from rows import Row, Turns

import sfxreduce
from sfxreduce.run.run import FrameSource, Run
from sfxreduce.run.window import Window

__all__ = ["AT_ONCE", "BLANK_SHARE", "Sizes", "measure", "mixed_section", "warm_up"]

OURS = "default model, its window"
READ = "read the frame"
AT_ONCE = 32
"""Events of a turn, which is what a task of a run is given."""

BLANK_SHARE = 0.95
WANTED = {MAIN_PEER: "at least 10", FASTEST_PEER: "at least 5"}

_CENTRE = slice(700, 1050)
_CENTRE_TITLE = (
    "the centre tile alone, of photons: 4 % of the pixels, through which the default model "
    "rejects nothing"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured.

    Parameters
    ----------
    n_each : int
        Blanks, and hits.
    rounds : int
        Times that all events are gone through.
    """

    n_each: int = 64
    rounds: int = 3


def measure(folder: Path, sizes: Sizes = Sizes()) -> tuple[list[Row], list[dict[str, Any]]]:
    """Measure scorers and peak finders on the same events.

    Parameters
    ----------
    folder : Path
        For runs and models.

    Returns
    -------
    tuple of (list of Row, list of dict)
        The tables, and what an event of each kind and class costs part by part.
    """
    rows, parts = [], []
    with Peers() as peers:
        of_kind = {}
        for kind in KINDS:
            run = sorted_store(folder, kind, n_each=sizes.n_each)
            scoring = FilterScoring.of(run, sfxreduce.CnnScorer(sfxreduce.default_model()))
            taken, tiles = _whole_frames(run, scoring, peers, sizes)
            of_kind[kind] = taken
            rows += _whole_rows(kind, taken, tiles, peers)
            for name, events in _classes(sizes).items():
                parts.append({"kind": kind, "class": name} | parts_of_cost(scoring, events))
        centre = _centre_rows(folder, peers, sizes, of_kind[KINDS[0]]["blanks"])
        rows = [*_mixed_rows(of_kind, peers), *rows, *centre]
    return rows, parts


def _classes(sizes: Sizes) -> dict[str, range]:
    return {"blanks": range(sizes.n_each), "hits": range(sizes.n_each, 2 * sizes.n_each)}


def _whole_frames(
    run: Run, scoring: FilterScoring, peers: Peers, sizes: Sizes
) -> tuple[dict[str, Turns], dict[str, float]]:
    """Turns of all methods on whole frames, and tiles read of an event, by class."""
    taken, tiles = {name: Turns() for name in _classes(sizes)}, {}
    good = run.detector.good()
    scoring(range(1))  # compiles, reads the model
    for name, events in _classes(sizes).items():
        turns, numbers = taken[name], []
        for part in _parts(events, sizes.rounds):
            warm_up(scoring, events, part)
            rows = turns.time(OURS, lambda part=part: scoring(part), n_events=len(part))
            numbers += rows["tiles"].tolist()
            turns.time(READ, lambda part=part: _read(scoring.source, part), n_events=len(part))
            peers.load(scoring.source.read(part).pixels, good)
            for peer in peers.versions:
                turns.add(peer, peers.search(peer).cpu_ms, n_events=len(part))
        tiles[name] = float(np.mean(numbers))
    return taken, tiles


def _parts(events: range, rounds: int) -> Iterator[range]:
    """A few events after the other, over and over."""
    for _ in range(rounds):
        for start in range(0, len(events), AT_ONCE):
            yield events[start : start + AT_ONCE]


def warm_up(scoring: FilterScoring, events: range, part: range) -> None:
    """Score other events than come next, and read those that do; neither counts.

    While the peers have their turns, 20 seconds each time, the machine takes back the memory of a
    process that waits, and of files that nobody reads. Peers get their frames in memory, and go
    through them for seconds.

    Parameters
    ----------
    events : range
        All that have turns; the same are scored where there are no others.
    """
    n = len(part)
    others = [other for other in (events[:n], events[-n:]) if other != part]
    scoring([*others, part][0])
    _read(scoring.source, part)


def _read(source: FrameSource, events: Sequence[int], window: Window | None = None) -> None:
    """Read events one by one, as a finder would that goes frame by frame."""
    for event in events:
        source.read([event], window)


def _whole_rows(
    kind: str, taken: dict[str, Turns], tiles: dict[str, float], peers: Peers
) -> Iterator[Row]:
    """What each method takes of an event of a kind, blanks and hits apart."""
    for name, turns in taken.items():
        section = f"read and score whole frames, {kind}, {name}"
        ours, read = turns.median(OURS), turns.median(READ)
        note = f"{tiles[name]:.1f} tiles of 25 read"
        yield Row(section=section, name=OURS, cpu_ms=ours, note=note, **turns.size(OURS))
        yield Row(section=section, name=READ, cpu_ms=read, **turns.size(READ))
        for peer, version in peers.versions.items():
            yield Row(
                section=section,
                name=f"{peer} {version}",
                cpu_ms=turns.median(peer),
                note="without reading",
                **turns.size(peer),
            )
            yield Row(
                section=section,
                name=f"{peer} {version}, with reading",
                cpu_ms=turns.median(peer) + read,
                against=OURS,
                ratio=(turns.median(peer) + read) / ours,
            )
        for peer, reason in peers.missing.items():
            yield Row(section=section, name=peer, cpu_ms=None, note=reason)


def _mixed_rows(of_kind: dict[str, dict[str, Turns]], peers: Peers) -> Iterator[Row]:
    """What each method takes of an event of a run of mostly blanks."""
    for kind, taken in of_kind.items():
        section = mixed_section(kind)
        ours, read = _mixed(taken, OURS), _mixed(taken, READ)
        yield Row(section=section, name=OURS, cpu_ms=ours)
        with_reading = {peer: _mixed(taken, peer) + read for peer in peers.versions}
        fastest = min(with_reading, key=lambda peer: with_reading[peer])
        for peer, cpu_ms in with_reading.items():
            yield Row(
                section=section,
                name=f"{peer} {peers.versions[peer]}, with reading",
                cpu_ms=cpu_ms,
                against=OURS,
                ratio=cpu_ms / ours,
                wanted=WANTED[FASTEST_PEER] if peer == fastest else WANTED.get(peer, ""),
                note="the fastest" if peer == fastest else "",
            )


def mixed_section(kind: str) -> str:
    """Section of a run of mostly blanks."""
    return f"read and score whole frames, {kind}, {BLANK_SHARE:.0%} blanks"


def _mixed(taken: dict[str, Turns], name: str) -> float:
    blank, hit = (taken[kind].median(name) for kind in ("blanks", "hits"))
    return BLANK_SHARE * blank + (1 - BLANK_SHARE) * hit


def _centre_rows(folder: Path, peers: Peers, sizes: Sizes, whole: Turns) -> list[Row]:
    """The centre tile by our scorers, and by the peak finders on the same pixels.

    Parameters
    ----------
    whole : Turns
        Of the peak finders on whole frames of the same events.
    """
    run = sorted_store(folder, KINDS[0], n_each=sizes.n_each)
    scorings = {
        "poster network, centre tile": FilterScoring.of(
            run, sfxreduce.CnnScorer(poster_model(folder / "poster"))
        ),
        "default model, centre tile": FilterScoring.of(
            run, sfxreduce.CnnScorer(sfxreduce.default_model(), looks_at="centre")
        ),
    }
    source, good = scorings["default model, centre tile"].source, run.detector.good()
    window, turns, read = Window.centre(run.detector), Turns(), "read the centre"
    for scoring in scorings.values():
        scoring(range(1))
    blanks = _classes(sizes)["blanks"]
    for part in _parts(blanks, sizes.rounds):
        for name, scoring in scorings.items():
            warm_up(scoring, blanks, part)
            turns.time(name, lambda s=scoring, p=part: s(p), n_events=len(part))
        turns.time(read, lambda p=part: _read(source, p, window), n_events=len(part))
        frames = source.read(part).pixels[:, _CENTRE, _CENTRE]
        peers.load(np.ascontiguousarray(frames), np.ascontiguousarray(good[_CENTRE, _CENTRE]))
        for peer in peers.versions:
            turns.add(peer, peers.search(peer).cpu_ms, n_events=len(part))
    names = (*scorings, read)
    rows = [
        Row(section=_CENTRE_TITLE, name=n, cpu_ms=turns.median(n), **turns.size(n)) for n in names
    ]
    ours = "default model, centre tile"
    for peer, version in peers.versions.items():
        of_pixels = {
            "the same pixels": (turns, turns.median(peer) + turns.median(read)),
            "25 times the pixels": (whole, whole.median(peer) + whole.median(READ)),
        }
        rows += [
            Row(
                section=_CENTRE_TITLE,
                name=f"{peer} {version}, {pixels}, with reading",
                cpu_ms=cpu_ms,
                against=ours,
                ratio=cpu_ms / turns.median(ours),
                **by.size(peer),
            )
            for pixels, (by, cpu_ms) in of_pixels.items()
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="for runs and models; a temporary folder else")
    parser.add_argument("--events", type=int, default=Sizes.n_each, help="blanks, and hits")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sizes = Sizes(n_each=options.events, rounds=options.rounds)
    with tempfile.TemporaryDirectory() as temporary:
        rows, parts = measure(options.work or Path(temporary), sizes)
    section = ""
    for row in rows:
        if row.section != section:
            section = row.section
            print(f"\n{section}")
        print(row.line)
    for one in parts:
        print(one)


if __name__ == "__main__":
    main()
