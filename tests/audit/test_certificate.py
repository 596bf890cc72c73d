"""A certificate is valid as it was made, for what it was made from, and in no other way."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited import filtered_run, manifest_of, true_labels
from typer.testing import CliRunner

from sfxreduce.audit.bound import AuditMethod
from sfxreduce.audit.certificate import Certificate, certificate_from_json
from sfxreduce.audit.certify import certify, check_certificate
from sfxreduce.audit.draw import Draw, draw_audit
from sfxreduce.audit.labels import EventLabel
from sfxreduce.decisions.decide import Decisions, decide
from sfxreduce.decisions.threshold import Promise
from sfxreduce.errors import RefusedError, RunNotFound, VerificationError
from sfxreduce.pipeline.audit import read_certificate
from sfxreduce.run.labels import Label
from sfxreduce_cli.audit import audit as audit_app

PROMISE = Promise(max_loss=0.05)


@pytest.fixture(scope="module")
def made() -> Decisions:
    return filtered_run(rejected=600, kept=200, missed=2, hits=190)[0]


@pytest.fixture(scope="module")
def hits() -> set[int]:
    return filtered_run(rejected=600, kept=200, missed=2, hits=190)[1]


@pytest.fixture(scope="module")
def draw(made: Decisions) -> Draw:
    return draw_audit(made, nonce="4 2 6 1", rejects=500, kept=150)


@pytest.fixture(scope="module")
def labels(draw: Draw, hits: set[int]) -> tuple[EventLabel, ...]:
    return true_labels(draw, hits, by="indexed by hand")


@pytest.fixture(scope="module")
def certificate(made: Decisions, draw: Draw, labels: tuple[EventLabel, ...]) -> Certificate:
    return certify(manifest_of(made), made, draw, labels, promise=PROMISE, known=(100, 99))


@pytest.fixture
def facts(certificate: Certificate) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(certificate.to_json()))
    return found


def test_a_certificate_comes_back_whole(certificate: Certificate, facts: dict[str, Any]) -> None:
    back = certificate_from_json(facts, where="certificate.json")
    assert back == certificate
    assert back.to_json() == certificate.to_json()


def test_it_fits_the_run_and_the_labels_it_was_made_from(
    certificate: Certificate, made: Decisions, labels: tuple[EventLabel, ...]
) -> None:
    check_certificate(certificate, manifest=manifest_of(made), decisions=made, labels=labels)
    check_certificate(certificate, manifest=manifest_of(made), decisions=made)


def test_its_statement_says_what_is_promised_and_what_it_rests_on(
    certificate: Certificate,
) -> None:
    found = certificate.finding
    assert certificate.statement.startswith("With 95 % confidence at most ")
    for part in (
        "of the hits of run.zarr are among its 600 rejected events",
        f"at most {found.missed_upper} there, at least {found.hits_kept_lower} among the kept",
        "500 rejected and 150 kept events were audited",
        "the labeller recognised 99 of 100 known hits",
        "Hit: indexed by hand.",
    ):
        assert part in certificate.statement
    assert found.loss_upper <= PROMISE.max_loss


def leaves(facts: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where every single value of a JSON object lies."""
    if isinstance(facts, dict | list):
        for key, value in facts.items() if isinstance(facts, dict) else enumerate(facts):
            yield from leaves(value, (*path, key))
    else:
        yield path


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, str):
        return ("1" if value[:1] == "0" else "0") + value[1:]
    return value + 1


def sealed(facts: dict[str, Any]) -> dict[str, Any]:
    """The same with a fitting sha256, as somebody who knows how would write it."""
    body = {key: value for key, value in facts.items() if key != "sha256"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return {**body, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def test_no_value_can_be_changed(facts: dict[str, Any]) -> None:
    paths = list(leaves(facts))
    assert len(paths) > 25
    for path in paths:
        forged = copy.deepcopy(facts)
        parent: Any = forged
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = changed(parent[path[-1]])
        with pytest.raises(VerificationError, match=r"certificate.json: "):
            certificate_from_json(forged, where="certificate.json")


def test_no_value_can_be_removed_or_added(facts: dict[str, Any]) -> None:
    for key in facts:
        with pytest.raises(VerificationError, match=r"c.json: "):
            certificate_from_json({k: v for k, v in facts.items() if k != key}, where="c.json")
    for forged in (facts | {"note": "trust me"}, sealed(facts | {"note": "trust me"})):
        with pytest.raises(VerificationError, match=r"c.json: "):
            certificate_from_json(forged, where="c.json")


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("finding", "loss_upper", 1e-4),
        ("finding", "missed_upper", 0),
        ("finding", "sensitivity_lower", 1.0),
        ("counted", "found_at", []),
        ("counted", "kept_hits", 150),
        ("counted", "rejected", 601),
        ("promise", "confidence", 0.999),
        ("promise", "max_loss", 1e-3),
        ("promise", "max_loss", "little"),
        ("subject", "rejected", 700),
        ("method", None, "hypergeom-fixed"),
        ("method", None, "trust"),
        ("statement", None, "No hit was lost."),
        ("certificate_version", None, 2),
        ("counted", None, None),
    ],
)
def test_a_new_checksum_does_not_make_up_for_numbers_that_do_not_follow(
    facts: dict[str, Any], part: str, name: str | None, value: Any
) -> None:
    if name is None:
        facts[part] = value
    else:
        facts[part][name] = value
    with pytest.raises(VerificationError, match=r"certificate"):
        certificate_from_json(sealed(facts), where="certificate.json")


def test_it_is_about_one_ledger_model_and_threshold(
    certificate: Certificate, made: Decisions
) -> None:
    manifest = manifest_of(made)
    for other, name in (
        (replace(manifest, model_sha256="cd" * 32), "model_sha256"),
        (replace(manifest, model_sha256=None), "model_sha256"),
        (replace(manifest, threshold=0.4), "threshold"),
        (replace(manifest, settings="window full"), "settings"),
        (replace(manifest, source="other.zarr"), "source"),
    ):
        with pytest.raises(VerificationError, match=f"it is about the {name}"):
            check_certificate(certificate, manifest=other, decisions=made)
    rescored = replace(made, score=made.score + np.float32(1e-4))
    with pytest.raises(VerificationError, match="it is about the ledger_root"):
        check_certificate(certificate, manifest=manifest, decisions=rescored)


def test_other_labels_do_not_bear_it_out(
    certificate: Certificate, made: Decisions, labels: tuple[EventLabel, ...]
) -> None:
    flipped = (replace(labels[0], label=Label.HIT), *labels[1:])
    if labels[0].label is Label.HIT:
        flipped = (replace(labels[0], label=Label.MISS), *labels[1:])
    by_another = (replace(labels[0], by="a friend"), *labels[1:])
    for forged in (flipped, by_another):
        with pytest.raises(VerificationError, match="are not those it counted"):
            check_certificate(
                certificate, manifest=manifest_of(made), decisions=made, labels=forged
            )


def test_a_draw_of_ones_own_choosing_is_refused(
    made: Decisions, draw: Draw, labels: tuple[EventLabel, ...]
) -> None:
    chosen = replace(draw, from_rejected=draw.from_rejected[1:])
    swapped = replace(draw, from_rejected=draw.from_rejected[::-1])
    other = replace(draw, nonce="1 1 1 1")
    for forged in (chosen, swapped, other):
        with pytest.raises(VerificationError, match="does not draw these events"):
            certify(manifest_of(made), made, forged, labels, promise=PROMISE)


def test_a_run_without_rejects_needs_no_certificate() -> None:
    kept = decide(np.ones(5, np.float32), np.zeros(5, np.uint32), threshold=0.5)
    draw = draw_audit(kept, nonce="dice", rejects=5, kept=5)
    with pytest.raises(RefusedError, match="no event was rejected"):
        certify(manifest_of(kept), kept, draw, (), promise=PROMISE)


def test_peak_counts_cannot_audit_themselves(
    made: Decisions, draw: Draw, labels: tuple[EventLabel, ...]
) -> None:
    counted = tuple(replace(e, by="peaks on the whole frame, at least 8 peaks") for e in labels)
    by_peaks = manifest_of(made, scorer="peaks")
    with pytest.raises(RefusedError, match="cannot audit themselves"):
        certify(by_peaks, made, draw, counted, promise=PROMISE)
    certify(by_peaks, made, draw, labels, promise=PROMISE)


def test_too_little_proof_is_refused_with_the_numbers(
    made: Decisions, draw: Draw, labels: tuple[EventLabel, ...]
) -> None:
    with pytest.raises(RefusedError, match=r"hits among 500 of 600 .* not 0\.1 %; keep"):
        certify(manifest_of(made), made, draw, labels, promise=Promise(max_loss=0.001))


def test_without_known_hits_a_hit_is_what_the_labels_call_one(
    made: Decisions, draw: Draw, labels: tuple[EventLabel, ...]
) -> None:
    fixed = replace(draw, method=AuditMethod.FIXED)
    found = certify(manifest_of(made), made, fixed, labels, promise=PROMISE)
    assert "a hit is what the labels call one" in found.statement
    assert found.finding.sensitivity_lower == 1.0


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "{", '{"certificate_version": 1}'])
def test_a_file_that_is_no_certificate_proves_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "certificate.json"
    path.write_text(text)
    with pytest.raises(VerificationError, match=r"certificate.json: .*proves nothing"):
        read_certificate(path)


def test_a_missing_certificate_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound, match=r"none.json: cannot be read"):
        read_certificate(tmp_path / "none.json")


def test_a_tampered_certificate_is_exit_status_4(tmp_path: Path, facts: dict[str, Any]) -> None:
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(facts))
    assert CliRunner().invoke(audit_app, ["check", str(path)]).exit_code == 0
    facts["subject"]["threshold"] = 0.75
    path.write_text(json.dumps(facts))
    result = CliRunner().invoke(audit_app, ["check", str(path)])
    assert isinstance(result.exception, VerificationError)
    assert result.exception.exit_status == 4
