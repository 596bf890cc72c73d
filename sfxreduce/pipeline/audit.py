"""The steps of ``sfxreduce audit``: draw events of a filter run, label them, certify, check."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfxreduce.audit.bound import AuditMethod, rejects_needed
from sfxreduce.audit.certificate import Certificate, certificate_from_json
from sfxreduce.audit.certify import PEAK_COUNT, certify, check_certificate
from sfxreduce.audit.draw import Draw, draw_audit, draw_from_json, draw_to_json
from sfxreduce.audit.labels import EventLabel, label_by_count, labels_from_csv, labels_to_csv
from sfxreduce.cluster import IN_PROCESS, Pool
from sfxreduce.cluster.pool import Progress, silent
from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.decisions.ledger import read_ledger
from sfxreduce.decisions.threshold import Promise
from sfxreduce.errors import RunNotFound, SchemaError, UsageError, VerificationError
from sfxreduce.io.files.durable import write_file
from sfxreduce.io.files.safe_read import parse_json, read_small
from sfxreduce.io.readers.zarr.run import open_table, read_manifest
from sfxreduce.io.store.manifest import Manifest
from sfxreduce.io.store.names import LEDGER_GROUP
from sfxreduce.io.writers.publish import check_outputs, staged
from sfxreduce.pipeline.stages.score import safe_scores
from sfxreduce.run.run import Run, select_run
from sfxreduce.scorers.peaks.finder import PeakScorer

__all__ = [
    "audit_certify",
    "audit_check",
    "audit_draw",
    "audit_label",
    "read_certificate",
    "read_draw",
    "read_labels",
    "write_text",
]

MOST_TEXT_BYTES = 256 << 20
"""Longest draw, certificate or list of labels that is read."""


def audit_draw(
    store: Path,
    *,
    nonce: str,
    promise: Promise,
    rejects: int = 0,
    kept: int = 500,
    method: str = AuditMethod.SEQUENTIAL,
    out: Path | None = None,
    overwrite: bool = False,
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
    method : str
        One of `AuditMethod`.
    out : Path, optional
        JSON file to write.

    Raises
    ------
    RunNotFound
        If nothing lies at the path.
    VerificationError
        If the store is not a complete reduced store.
    OutputError
        If the file is there already, or cannot be written.
    """
    _, decisions = _read_filtered(store)
    n_rejects = rejects or rejects_needed(
        rejected=decisions.count(Decision.REJECT),
        hits_kept=decisions.count(Decision.HIT),
        promise=promise,
    )
    draw = draw_audit(
        decisions, nonce=nonce, rejects=n_rejects, kept=kept, method=AuditMethod(method)
    )
    if out is not None:
        write_text(out, _json(draw_to_json(draw)), overwrite=overwrite)
    return draw


def audit_label(
    draw: Draw | Path,
    run: Run,
    *,
    scorer: PeakScorer,
    given: Sequence[EventLabel] | Path = (),
    out: Path | None = None,
    overwrite: bool = False,
    pool: Pool = IN_PROCESS,
    progress: Progress = silent,
) -> tuple[EventLabel, ...]:
    """Label the events drawn by their peaks on the whole frame; only these are read.

    Parameters
    ----------
    draw : Draw or Path
        The draw, or the file that holds it.
    run : Run
        The source that was filtered.
    scorer : PeakScorer
        Its `min_peaks` make a hit.
    given : sequence of EventLabel or Path
        Labels of an indexer or a person, or their CSV file. They stand; the peak finder labels the
        other events.
    out : Path, optional
        CSV file to write.

    Returns
    -------
    tuple of EventLabel
        One for each event drawn, in the order drawn.

    Raises
    ------
    VerificationError
        If the run has another number of events than the one filtered.
    OutputError
        If the file is there already, or cannot be written.
    """
    drawing, known = _draw_of(draw), _labels_of(given)
    if drawing.rejected + drawing.kept != run.n_events:
        raise VerificationError(
            f"{run.path}: has {run.n_events} events, but the audit was drawn from "
            f"{drawing.rejected + drawing.kept}; is it the run that was filtered?"
        )
    drawn = (*drawing.from_rejected, *drawing.from_kept)
    by_event = {label.source_index: label for label in known}
    events = np.array(sorted(set(drawn) - set(by_event)), np.int64)
    if events.size:
        counts = safe_scores(
            select_run(run, events), scorer, pool=pool, progress=progress, stage="label"
        )
        by = f"{PEAK_COUNT} on the whole frame ({scorer.settings})"
        counted = label_by_count(events.tolist(), counts, min_peaks=scorer.min_peaks, by=by)
        by_event |= {label.source_index: label for label in counted}
    labels = tuple(by_event[event] for event in drawn)
    if out is not None:
        write_text(out, labels_to_csv(labels), overwrite=overwrite)
    return labels


def audit_certify(
    store: Path,
    draw: Draw | Path,
    labels: Sequence[EventLabel] | Path,
    *,
    promise: Promise,
    known: tuple[int, int] = (0, 0),
    out: Path | None = None,
    overwrite: bool = False,
) -> Certificate:
    """Certify a filter run by the labels of the events drawn from it; see `certify`.

    Parameters
    ----------
    draw, labels
        What `audit_draw` and `audit_label` returned, or the files they wrote.
    out : Path, optional
        JSON file to write.

    Raises
    ------
    RefusedError
        If they do not prove the promise.
    VerificationError
        If the store is not complete, or the draw is not one of its ledger.
    OutputError
        If the file is there already, or cannot be written.
    """
    drawing, labelled = _draw_of(draw), _labels_of(labels)
    manifest, decisions = _read_filtered(store)
    certificate = certify(manifest, decisions, drawing, labelled, promise=promise, known=known)
    if out is not None:
        write_text(out, _json(certificate.to_json()), overwrite=overwrite)
    return certificate


def audit_check(
    certificate: Path, *, store: Path | None = None, labels: Path | None = None
) -> Certificate:
    """Check a certificate by itself, against its filter run, and against its labels.

    Parameters
    ----------
    store : Path, optional
        The reduced store it is about.
    labels : Path, optional
        CSV file of the labels it was made from; needs the store. See `check_certificate`.

    Raises
    ------
    UsageError
        If labels are given without their store.
    VerificationError
        If the certificate was changed, or does not fit them.
    """
    if labels and not store:
        raise UsageError("audit check: --labels needs --in, the run whose events they label")
    claimed = read_certificate(certificate)
    if store:
        labelled = read_labels(labels) if labels else None
        manifest, decisions = _read_filtered(store)
        check_certificate(claimed, manifest=manifest, decisions=decisions, labels=labelled)
    return claimed


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


def _draw_of(draw: Draw | Path) -> Draw:
    return read_draw(draw) if isinstance(draw, Path) else draw


def _labels_of(labels: Sequence[EventLabel] | Path) -> Sequence[EventLabel]:
    return read_labels(labels) if isinstance(labels, Path) else labels


def _json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=2) + "\n"


def _read_json(path: Path) -> Any:
    try:
        return parse_json(_read_text(path).encode())
    except ValueError as error:
        raise SchemaError(f"{path}: expected JSON, found something else ({error})") from error


def _read_text(path: Path) -> str:
    try:
        return read_small(path, most_bytes=MOST_TEXT_BYTES).decode("utf-8")
    except OSError as error:
        raise RunNotFound(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise SchemaError(
            f"{path}: expected text in UTF-8, found other bytes; is it another file?"
        ) from error
