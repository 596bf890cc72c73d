"""Which runs there are, and which reduced stores were made from them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfxreduce.archive.evidence.find import DEPTH, find_evidence
from sfxreduce.archive.evidence.folder import evidence_path
from sfxreduce.archive.evidence.outputs import made_from, sources_of, stores_below
from sfxreduce.errors import RunNotFound, UsageError

__all__ = ["Target", "named_targets", "targets_below"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A run whose bytes are to be weighed.

    Parameters
    ----------
    run, evidence : Path
        Absolute.
    outputs : tuple of Path
        Reduced stores that name it as their source, the youngest last.
    hits : Path, optional
        The one that was named as its output.
    """

    run: Path
    evidence: Path
    outputs: tuple[Path, ...] = ()
    hits: Path | None = None


def named_targets(
    runs: Sequence[Path], *, hits: Sequence[Path] = (), evidence: Path | None = None
) -> list[Target]:
    """Runs that were named, each once, with the reduced stores that lie beside them.

    Parameters
    ----------
    hits : sequence of Path
        Their reduced stores, one for each in the same order, or none.
    evidence : Path, optional
        Of the only run.

    Raises
    ------
    UsageError
        If there are not as many stores as runs, or one evidence folder for several runs.
    RunNotFound
        If there is neither a run nor anything that is known of it.
    """
    if hits and len(hits) != len(runs):
        raise UsageError(
            f"report savings: expected one --hits for each of {len(runs)} runs, found {len(hits)}"
        )
    if evidence is not None and len(runs) != 1:
        raise UsageError(f"report savings: --evidence is that of one run, found {len(runs)} runs")
    found: dict[Path, Target] = {}
    whole = [path.absolute() for path in runs]
    beside = {folder: sources_of(stores_below(folder, 1)) for folder in {p.parent for p in whole}}
    for number, run in enumerate(whole):
        target = Target(
            run=run,
            evidence=evidence_path(run, evidence).absolute(),
            outputs=made_from(run, beside[run.parent]),
            hits=hits[number].absolute() if hits else None,
        )
        known = target.hits or target.outputs or target.evidence.is_dir()
        if not os.path.lexists(run) and not known:
            raise RunNotFound(f"{run}: no such run, and nothing is known of it; check the path")
        found.setdefault(run, target)
    return list(found.values())


def targets_below(root: Path) -> list[Target]:
    """All runs below a folder: those with evidence, sources of reduced stores, and run stores.

    Parameters
    ----------
    root : Path
        Absolute.

    Raises
    ------
    RunNotFound
        If there is no such folder.
    """
    # What cannot be listed is told by the walk that sums up what lies there.
    evidence = dict(find_evidence(root, unseen=[]))
    stores = list(stores_below(root, DEPTH))
    outputs = sources_of(stores)
    # A store whose manifest is damaged is listed by itself, with what is wrong with it.
    bare = {store for store in stores if store not in outputs and (store / "frames").is_dir()}
    return [
        Target(
            run=run,
            evidence=evidence.get(run, evidence_path(run)),
            outputs=made_from(run, outputs),
        )
        for run in sorted({*evidence, *map(Path, outputs.values()), *bare})
    ]
