"""Filter runs with planted misses, as numbers only: a ledger, a manifest, and who is a hit."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sfxreduce.audit.draw import Draw
from sfxreduce.audit.labels import EventLabel
from sfxreduce.decisions.decide import Decision, Decisions, decide
from sfxreduce.io.store.manifest import Manifest
from sfxreduce.run.labels import Label


def filtered_run(
    *, rejected: int, kept: int, missed: int, hits: int, seed: int = 0
) -> tuple[Decisions, set[int]]:
    """Ledger of a run, and its true hits: so many among the rejected and among the kept events."""
    rng = np.random.default_rng(seed)
    is_kept = rng.permutation(np.arange(rejected + kept) < kept)
    score = np.where(is_kept, 0.5, 0.0) + 0.5 * rng.random(rejected + kept)
    score = np.where(is_kept, np.maximum(score, 0.5), np.minimum(score, 0.499))
    made = decide(score.astype(np.float32), np.zeros(rejected + kept, np.uint32), threshold=0.5)
    lost = rng.choice(np.flatnonzero(made.decision == Decision.REJECT), missed, replace=False)
    found = rng.choice(made.kept, hits, replace=False)
    return made, {*lost.tolist(), *found.tolist()}


def manifest_of(decisions: Decisions, *, scorer: str = "cnn") -> Manifest:
    """Manifest as a filter run of these decisions would have it."""
    counts = {d: decisions.count(d) for d in Decision}
    return Manifest(
        software="sfxreduce 0.1.0",
        source="run.zarr",
        source_events=decisions.score.size,
        source_bytes=1000,
        scorer=scorer,
        settings="window centre",
        threshold=0.5,
        model_sha256="ab" * 32,
        hits=counts[Decision.HIT],
        undecided=counts[Decision.UNDECIDED],
        rejected=counts[Decision.REJECT],
        files=(),
    )


def true_labels(draw: Draw, hits: Iterable[int], *, by: str = "truth") -> tuple[EventLabel, ...]:
    """Labels of all events drawn, by who is a hit."""
    is_hit = set(hits)
    return tuple(
        EventLabel(source_index=event, label=Label.HIT if event in is_hit else Label.MISS, by=by)
        for event in (*draw.from_rejected, *draw.from_kept)
    )
