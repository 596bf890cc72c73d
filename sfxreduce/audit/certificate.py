"""The certificate of an audited run: what is promised, and everything the promise rests on.

Its bound follows from its counts and is computed anew whenever it is read. Its counts follow from
the ledger, the nonce and the labels; `sfxreduce.audit.certify.check_certificate` holds these
against it. Its own sha256 guards against damage and careless edits. That is no signature: who
changes numbers and sha256 together writes another certificate, which fails once ledger and labels
are at hand.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from sfxreduce.audit.bound import AuditMethod, Finding, Tally, conclude
from sfxreduce.decisions.decide import Decisions
from sfxreduce.decisions.ledger import ledger_root
from sfxreduce.decisions.threshold import Promise, at_most
from sfxreduce.errors import RefusedError, UsageError, VerificationError
from sfxreduce.io.files.safe_read import parse_as
from sfxreduce.io.store.manifest import Manifest

__all__ = [
    "Certificate",
    "FilterOutput",
    "certificate_from_json",
    "describe_subject",
]

CERTIFICATE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterOutput:
    """What a certificate is about: one filter run.

    Parameters
    ----------
    software : str
        Name and version of the program that filtered.
    source : str
        Path of the source run as it was given.
    scorer, settings : str
        How events were judged.
    model_sha256 : str or None
        Of the model's weights; None for a scorer without.
    threshold : float
        Smallest score of a hit.
    ledger_root : str
        Hash of all decisions, reasons and scores; see `sfxreduce.decisions.ledger.ledger_root`.
    hits, undecided, rejected : int
        Numbers of events by decision.
    """

    software: str
    source: str
    scorer: str
    settings: str
    model_sha256: str | None
    threshold: float
    ledger_root: str
    hits: int
    undecided: int
    rejected: int


def describe_subject(manifest: Manifest, decisions: Decisions) -> FilterOutput:
    """Subject of a filter run by its manifest and its ledger."""
    names = {field.name for field in fields(FilterOutput)} - {"ledger_root"}
    facts = {name: getattr(manifest, name) for name in names}
    return FilterOutput(ledger_root=ledger_root(decisions), **facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A promise about the hits of one filter run, with its proof.

    Parameters
    ----------
    nonce : str
        With the ledger's hash it settles which events were drawn.
    hit : str
        What counts as a hit.
    labels_sha256 : str
        Of the labels counted, in the order drawn, as `labels_to_csv` writes them.

    Raises
    ------
    VerificationError
        If the finding does not follow from the counts, or the counts are not those of the subject.
    RefusedError
        If the finding does not keep the promise.
    """

    subject: FilterOutput
    promise: Promise
    method: AuditMethod
    nonce: str
    hit: str
    labels_sha256: str
    counted: Tally
    finding: Finding

    def __post_init__(self) -> None:
        counted, subject = self.counted, self.subject
        kept = subject.hits + subject.undecided
        if (counted.rejected, counted.kept) != (subject.rejected, kept):
            raise VerificationError(
                f"certificate: {counted.rejected} rejected and {counted.kept} kept events were "
                f"audited, but the run has {subject.rejected} and {kept}"
            )
        expected = conclude(counted, method=self.method, confidence=self.promise.confidence)
        if not _agree(self.finding, expected):
            raise VerificationError(
                f"certificate: its counts prove {expected}, but it claims {self.finding}; it is "
                "not to be trusted"
            )
        if self.finding.loss_upper > self.promise.max_loss:
            raise RefusedError(
                f"audit: {counted.found} hits among {counted.audited} of {counted.rejected} "
                f"rejected events and {counted.kept_hits} among {counted.kept_audited} of "
                f"{counted.kept} kept ones prove a loss of at most "
                f"{at_most(self.finding.loss_upper)}, not {at_most(self.promise.max_loss)}; "
                "keep the events, or audit more of them"
            )

    @property
    def statement(self) -> str:
        """What is promised, in words. Nothing else may be called a guarantee."""
        counted, found = self.counted, self.finding
        labeller = (
            f"the labeller recognised {counted.recognised} of {counted.seeded} known hits"
            if counted.seeded
            else "a hit is what the labels call one"
        )
        return (
            f"With {100 * self.promise.confidence:.4g} % confidence at most "
            f"{at_most(found.loss_upper)} of the hits of {self.subject.source} are among its "
            f"{counted.rejected} rejected events: at most {found.missed_upper} there, at least "
            f"{found.hits_kept_lower} among the kept. {counted.audited} rejected and "
            f"{counted.kept_audited} kept events were audited; {labeller}. Hit: {self.hit}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object with the statement and a sha256 of its own over canonical JSON."""
        body = {
            "certificate_version": CERTIFICATE_VERSION,
            **asdict(self),
            "statement": self.statement,
        }
        body["counted"]["found_at"] = list(self.counted.found_at)
        return {**body, "sha256": _digest(body)}


def certificate_from_json(facts: Mapping[str, Any], *, where: str) -> Certificate:
    """Certificate from JSON: its own checksum compared, its bound and statement computed anew.

    Raises
    ------
    VerificationError
        If any part was changed, is missing, or does not follow from the others.
    """
    try:
        body = {key: value for key, value in facts.items() if key != "sha256"}
        if body["certificate_version"] != CERTIFICATE_VERSION:
            raise VerificationError(f"{where}: is of another version of sfxreduce")
        if _digest(body) != facts["sha256"]:
            raise VerificationError(
                f"{where}: does not match its own sha256: it was changed, and proves nothing"
            )
        del body["certificate_version"]
        statement = body.pop("statement")
        certificate = parse_as(Certificate, body)
    except (AttributeError, KeyError, TypeError, ValueError, UsageError, RefusedError) as error:
        raise VerificationError(
            f"{where}: expected what 'sfxreduce audit certify' writes, found something else "
            f"({error}); it proves nothing"
        ) from error
    if certificate.statement != statement:
        raise VerificationError(
            f"{where}: its statement is not what its numbers say ('{certificate.statement}')"
        )
    return certificate


def _agree(found: Finding, expected: Finding) -> bool:
    """Whether findings are the same, up to the last digits another machine may compute."""
    ours, theirs = asdict(found), asdict(expected)
    return all(math.isclose(ours[name], theirs[name], rel_tol=1e-9) for name in ours)


def _digest(body: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
