"""The stages of ``sfxreduce audit``: draw events of a filter run, label them, certify, check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfxreduce.audit.bound import AuditMethod, rejects_needed
from sfxreduce.audit.certificate import Certificate, certificate_from_json
from sfxreduce.audit.certify import PEAK_COUNT, certify, check_certificate
from sfxreduce.audit.draw import Draw, draw_audit, draw_from_json
from sfxreduce.audit.labels import EventLabel, label_by_count, labels_from_csv
from sfxreduce.cluster import Pool
from sfxreduce.cluster.progress import Progress, silent
from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.decisions.ledger import read_ledger
from sfxreduce.decisions.threshold import Promise
from sfxreduce.errors import RunNotFound, SchemaError, VerificationError
from sfxreduce.io.files.durable import write_file
from sfxreduce.io.files.safe_read import parse_json, read_small
from sfxreduce.io.readers.zarr.run import open_table, read_manifest
from sfxreduce.io.store.manifest import Manifest
from sfxreduce.io.store.schema import LEDGER_GROUP
from sfxreduce.io.writers.publish import check_outputs, staged
from sfxreduce.pipeline.stages.score import safe_scores
from sfxreduce.run.run import Run
from sfxreduce.run.select import select_run
from sfxreduce.scorers.peaks.scorer import PeakScorer

__all__ = [
    "certify_run",
    "check_run",
    "draw_run",
    "label_run",
    "read_certificate",
    "read_draw",
    "read_labels",
    "write_text",
]

MOST_TEXT_BYTES = 256 << 20
"""Longest draw, certificate or list of labels that is read."""


def draw_run(
    store: Path,
    *,
    nonce: str,
    promise: Promise,
    rejects: int = 0,
    kept: int = 500,
    method: AuditMethod = AuditMethod.SEQUENTIAL,
) -> Draw:
    """Draw events of a filter run to be labelled.

    Parameters
    ----------
    store : Path
        The reduced store.
    nonce : str
        A text that nobody who filtered could choose; see `draw_audit`.
    promise : Promise
        What is to be proved; settles the number of rejects where none is given.
    rejects : int
        Rejected events to draw; 0 for as many as let three missed hits turn up.
    kept : int
        Kept events to draw.

    Raises
    ------
    RunNotFound
        If nothing lies at the path.
    VerificationError
        If the store is not a complete reduced store.
    """
    _, decisions = _read_filtered(store)
    n_rejects = rejects or rejects_needed(
        rejected=decisions.count(Decision.REJECT),
        hits_kept=decisions.count(Decision.HIT),
        promise=promise,
    )
    return draw_audit(decisions, nonce=nonce, rejects=n_rejects, kept=kept, method=method)


def label_run(
    draw: Draw,
    run: Run,
    *,
    scorer: PeakScorer,
    given: Sequence[EventLabel] = (),
    pool: Pool,
    progress: Progress = silent,
) -> tuple[EventLabel, ...]:
    """Label the events drawn by their peaks on the whole frame.

    Only the events drawn are read. The work is done here, on the pool.

    Parameters
    ----------
    run : Run
        The source that was filtered.
    scorer : PeakScorer
        Its `min_peaks` make a hit.
    given : sequence of EventLabel
        Labels of an indexer or a person. They stand; the peak finder labels the other events.

    Returns
    -------
    tuple of EventLabel
        One for each event drawn, in the order drawn.

    Raises
    ------
    VerificationError
        If the run has another number of events than the one filtered.
    """
    if draw.rejected + draw.kept != run.n_events:
        raise VerificationError(
            f"{run.path}: has {run.n_events} events, but the audit was drawn from "
            f"{draw.rejected + draw.kept}; is it the run that was filtered?"
        )
    drawn = (*draw.from_rejected, *draw.from_kept)
    labels = {label.source_index: label for label in given}
    events = np.array(sorted(set(drawn) - set(labels)), np.int64)
    if events.size:
        counts = safe_scores(
            select_run(run, events), scorer, pool=pool, progress=progress, stage="label"
        )
        by = f"{PEAK_COUNT} on the whole frame ({scorer.settings})"
        found = label_by_count(events.tolist(), counts, min_peaks=scorer.min_peaks, by=by)
        labels |= {label.source_index: label for label in found}
    return tuple(labels[event] for event in drawn)


def certify_run(
    store: Path,
    draw: Draw,
    labels: Sequence[EventLabel],
    *,
    promise: Promise,
    known: tuple[int, int] = (0, 0),
) -> Certificate:
    """Certify a filter run by the labels of the events drawn from it; see `certify`.

    Raises
    ------
    RefusedError
        If they do not prove the promise.
    VerificationError
        If the store is not complete, or the draw is not one of its ledger.
    """
    manifest, decisions = _read_filtered(store)
    return certify(manifest, decisions, draw, labels, promise=promise, known=known)


def check_run(
    certificate: Certificate, store: Path, *, labels: Sequence[EventLabel] | None = None
) -> None:
    """Hold a certificate against a filter run and its labels; see `check_certificate`.

    Raises
    ------
    VerificationError
        If it does not fit.
    """
    manifest, decisions = _read_filtered(store)
    check_certificate(certificate, manifest=manifest, decisions=decisions, labels=labels)


def read_draw(path: Path) -> Draw:
    """Read what ``sfxreduce audit draw`` wrote.

    Raises
    ------
    RunNotFound
        If nothing lies at the path.
    SchemaError
        If it is something else.
    """
    return draw_from_json(_read_json(path), where=str(path))


def read_certificate(path: Path) -> Certificate:
    """Read a certificate; it proves what it says by its own numbers.

    Raises
    ------
    RunNotFound
        If nothing lies at the path.
    VerificationError
        If it was changed, or is something else.
    """
    try:
        facts = _read_json(path)
    except SchemaError as error:
        raise VerificationError(f"{error}; it proves nothing") from error
    return certificate_from_json(facts, where=str(path))


def read_labels(path: Path) -> tuple[EventLabel, ...]:
    """Read labels of events from a CSV; see `labels_from_csv`.

    Raises
    ------
    RunNotFound
        If nothing lies at the path.
    LabelError
        If it does not hold labels.
    """
    return labels_from_csv(_read_text(path), where=path.name)


def write_text(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write a small file whole, or not at all.

    Raises
    ------
    OutputExists
        If it exists and is not to be replaced.
    OutputError
        If it cannot be written.
    """
    check_outputs(files=[path], overwrite=overwrite)
    with staged(files=[path], overwrite=overwrite) as hidden:
        write_file(hidden[path], text.encode())


def _read_filtered(store: Path) -> tuple[Manifest, Decisions]:
    """Manifest and ledger of a reduced store."""
    if not store.exists():
        raise RunNotFound(f"{store}: no such folder; check the path given to --in")
    manifest = read_manifest(store)
    return manifest, read_ledger(open_table(store, LEDGER_GROUP), where=str(store))


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        facts = parse_json(_read_text(path).encode())
    except ValueError as error:
        raise SchemaError(f"{path}: expected JSON, found something else ({error})") from error
    if not isinstance(facts, dict):
        raise SchemaError(f"{path}: expected a JSON object, found {type(facts).__name__}")
    return facts


def _read_text(path: Path) -> str:
    try:
        return read_small(path, most_bytes=MOST_TEXT_BYTES).decode("utf-8")
    except OSError as error:
        raise RunNotFound(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise SchemaError(
            f"{path}: expected text in UTF-8, found other bytes; is it another file?"
        ) from error
