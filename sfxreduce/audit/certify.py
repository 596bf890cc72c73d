"""From an audit to a certificate, and back: does a certificate fit the run it is about."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict

from sfxreduce.audit.bound import conclude
from sfxreduce.audit.certificate import Certificate, describe_subject
from sfxreduce.audit.draw import Draw, draw_audit, tally
from sfxreduce.audit.labels import EventLabel, labels_to_csv
from sfxreduce.decisions.decide import Decisions
from sfxreduce.decisions.threshold import Promise
from sfxreduce.errors import RefusedError, VerificationError
from sfxreduce.io.store.manifest import Manifest

__all__ = ["PEAK_COUNT", "certify", "check_certificate"]

PEAK_COUNT = "peaks"
"""Name of the scorer that counts peaks, and first word of the labels that do."""


def certify(
    manifest: Manifest,
    decisions: Decisions,
    draw: Draw,
    labels: Sequence[EventLabel],
    *,
    promise: Promise,
    known: tuple[int, int] = (0, 0),
) -> Certificate:
    """Certify a filter run, or say why it cannot be done.

    Parameters
    ----------
    manifest : Manifest
        Of the reduced store.
    decisions : Decisions
        Its ledger.
    draw : Draw
        As `draw_audit` made it from this ledger.
    labels : sequence of EventLabel
        Of the events drawn.
    known : tuple of int
        Known hits shown to the labeller, and how many of them it called hits. They must be as weak
        as the hits a scorer misses, or they say nothing about those.

    Raises
    ------
    RefusedError
        If the audit does not prove the promise, labels are missing, nothing was rejected, or the
        scorer would audit itself.
    VerificationError
        If the draw is not one of this ledger.
    """
    subject = describe_subject(manifest, decisions)
    if not subject.rejected:
        raise RefusedError(f"{subject.source}: no event was rejected, so there is nothing to audit")
    _check_draw(draw, decisions, where=subject.source)
    counted = tally(draw, labels, known=known)
    used = _counted_labels(draw, labels, audited=counted.audited)
    if subject.scorer == PEAK_COUNT and any(e.by.startswith(PEAK_COUNT) for e in used):
        raise RefusedError(
            f"{subject.source}: was filtered by its peak counts, which cannot audit themselves; "
            "label the events by an indexer or by eye"
        )
    return Certificate(
        subject=subject,
        promise=promise,
        method=draw.method,
        nonce=draw.nonce,
        hit="; ".join(sorted({e.by for e in used})),
        labels_sha256=_sha256(used),
        counted=counted,
        finding=conclude(counted, method=draw.method, confidence=promise.confidence),
    )


def check_certificate(
    certificate: Certificate,
    *,
    manifest: Manifest,
    decisions: Decisions,
    labels: Sequence[EventLabel] | None = None,
) -> None:
    """Hold a certificate against the filter run it is about, and against the labels.

    Parameters
    ----------
    manifest : Manifest
        Of the reduced store.
    decisions : Decisions
        Its ledger.
    labels : sequence of EventLabel, optional
        The labels it was made from. Without them its counts are taken as they are.

    Raises
    ------
    VerificationError
        If it is about another run, model, threshold or ledger, or its counts are not those of the
        labels.
    """
    claimed = asdict(certificate.subject)
    for name, found in asdict(describe_subject(manifest, decisions)).items():
        if found != claimed[name]:
            raise VerificationError(
                f"certificate: it is about the {name} '{claimed[name]}', but the run has "
                f"'{found}'; it is not valid for this run"
            )
    if labels is None:
        return
    counted = certificate.counted
    draw = draw_audit(
        decisions,
        nonce=certificate.nonce,
        rejects=counted.audited,
        kept=counted.kept_audited,
        method=certificate.method,
    )
    known = (counted.seeded, counted.recognised)
    used = _counted_labels(draw, labels, audited=counted.audited)
    if tally(draw, labels, known=known) != counted or _sha256(used) != certificate.labels_sha256:
        raise VerificationError(
            "certificate: the labels of the events that its nonce draws are not those it counted; "
            "it is not valid with these labels"
        )


def _check_draw(draw: Draw, decisions: Decisions, *, where: str) -> None:
    """Refuse events that the nonce does not draw from this ledger."""
    again = draw_audit(
        decisions,
        nonce=draw.nonce,
        rejects=len(draw.from_rejected),
        kept=len(draw.from_kept),
        method=draw.method,
    )
    if again != draw:
        raise VerificationError(
            f"audit: the nonce '{draw.nonce}' does not draw these events from the ledger of "
            f"{where}: it is another ledger, or the draw was changed; draw again"
        )


def _counted_labels(
    draw: Draw, labels: Sequence[EventLabel], *, audited: int
) -> tuple[EventLabel, ...]:
    """Labels that count, in the order drawn."""
    label = {e.source_index: e for e in labels}
    drawn = (*draw.from_rejected[:audited], *draw.from_kept)
    return tuple(label[event] for event in drawn if event in label)


def _sha256(labels: Sequence[EventLabel]) -> str:
    return hashlib.sha256(labels_to_csv(labels).encode()).hexdigest()
