"""What a reduced store and a certificate say about the run they came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfxreduce.archive.rules.facts import CertificateFacts, StoreFacts
from sfxreduce.audit.certificate import Certificate, certificate_from_json
from sfxreduce.audit.certify import check_certificate
from sfxreduce.audit.draw import draw_audit
from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.decisions.ledger import read_ledger
from sfxreduce.errors import SfxReduceError
from sfxreduce.io.files.safe_read import parse_json
from sfxreduce.io.readers.zarr.run import count_incomplete, open_table, read_manifest
from sfxreduce.io.store.manifest import Manifest
from sfxreduce.io.store.names import AUDIT_GROUP, LEDGER_GROUP
from sfxreduce.run.reasons import Reason

__all__ = ["audited_events", "certificate_facts", "read_reduced", "store_facts"]


def read_reduced(hits: Path) -> tuple[Manifest, Decisions]:
    """Manifest and ledger of a reduced store.

    Raises
    ------
    SfxReduceError
        If it is no complete reduced store, or its ledger does not hold every event once.
    """
    return read_manifest(hits), read_ledger(open_table(hits, LEDGER_GROUP), where=str(hits))


def store_facts(hits: Path, *, n_events: int, certificate: Certificate | None = None) -> StoreFacts:
    """What the ledger of a reduced store says; a ledger that cannot be read is incomplete.

    Parameters
    ----------
    n_events : int
        Of the source run.
    certificate : Certificate, optional
        Whose audited events have to be there.
    """
    try:
        manifest, made = read_reduced(hits)
        kept = np.asarray(open_table(hits)["source_index"].values)
        sampled = _sampled(hits)
        incomplete = sum(count_incomplete(hits))
    except (SfxReduceError, KeyError):
        return StoreFacts(
            ledger_complete=False,
            undecided_kept=False,
            undecided_share=1.0,
            sampled_share=0.0,
            audited_kept=False,
            drift_alarm=False,
        )
    undecided = np.flatnonzero(made.decision == Decision.UNDECIDED)
    n_rejected = made.count(Decision.REJECT)
    return StoreFacts(
        ledger_complete=made.score.size == n_events == manifest.source_events,
        undecided_kept=bool(np.isin(undecided, kept).all()),
        undecided_share=undecided.size / max(n_events, 1),
        sampled_share=sampled.size / n_rejected if n_rejected else 1.0,
        audited_kept=bool(np.isin(audited_events(made, certificate), sampled).all()),
        drift_alarm=bool(np.any(made.reason & np.uint32(Reason.UNLIKE_CALIBRATION))),
        kept_incomplete=incomplete,
    )


def _sampled(hits: Path) -> NDArray[np.int64]:
    """Rejected events that are in the store."""
    if not (hits / AUDIT_GROUP).is_dir():
        return np.zeros(0, np.int64)
    return np.asarray(open_table(hits / AUDIT_GROUP)["source_index"].values, np.int64)


def audited_events(made: Decisions, certificate: Certificate | None) -> NDArray[np.int64]:
    """Rejected events that a certificate counted."""
    if certificate is None:
        return np.zeros(0, np.int64)
    counted = certificate.counted
    drawn = draw_audit(
        made,
        nonce=certificate.nonce,
        rejects=counted.audited,
        kept=counted.kept_audited,
        method=certificate.method,
    )
    return np.array(drawn.from_rejected, np.int64)


def certificate_facts(
    data: bytes, *, hits: Path, at_ns: int
) -> tuple[CertificateFacts, Certificate | None]:
    """What a certificate proves about a reduced store.

    Parameters
    ----------
    data : bytes
        Of its file.
    at_ns : int
        When it was first seen.
    """
    try:
        found = certificate_from_json(parse_json(data), where="certificate")
    except (ValueError, SfxReduceError):
        nothing = CertificateFacts(
            intact=False, fits=False, loss_upper=1.0, confidence=0.0, at_ns=at_ns
        )
        return nothing, None
    return (
        CertificateFacts(
            intact=True,
            fits=_fits(found, hits),
            loss_upper=found.finding.loss_upper,
            confidence=found.promise.confidence,
            at_ns=at_ns,
        ),
        found,
    )


def _fits(certificate: Certificate, hits: Path) -> bool:
    try:
        manifest, made = read_reduced(hits)
        check_certificate(certificate, manifest=manifest, decisions=made)
    except SfxReduceError:
        return False
    return True
