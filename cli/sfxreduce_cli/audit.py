"""``sfxreduce audit``: how many hits a filter run can have lost, proved on a sample.

The commands load the library when they run: their statistics take longer to import than most
commands take to start.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import sfxreduce
from sfxreduce_cli.options import (
    AsJson,
    DataPath,
    Out,
    Overwrite,
    Roots,
    SchedulerAddress,
    SecurityPath,
    Serial,
    Untrusted,
    Workers,
    working_pool,
)
from sfxreduce_cli.output import print_json, print_table

__all__ = ["audit"]

audit = typer.Typer(
    help="Prove on a random sample how many hits are among the rejected events.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Method(StrEnum):
    """How the rejected events are bounded."""

    SEQUENTIAL = "eprocess-wor"
    FIXED = "hypergeom-fixed"


Store = Annotated[Path, typer.Option("--in", metavar="STORE", help="What 'filter' wrote.")]
DrawFile = Annotated[Path, typer.Option("--draw", metavar="FILE", help="What 'draw' wrote.")]
MaxLoss = Annotated[float, typer.Option(help="Largest share of the hits that may be rejected.")]
Confidence = Annotated[float, typer.Option(help="Chance that the promise holds.")]


@audit.command("draw")
def draw(
    in_: Store,
    nonce: Annotated[
        str, typer.Option(help="A text nobody could choose: dice, a public beacon's value.")
    ],
    out: Out,
    rejects: Annotated[
        int, typer.Option(min=0, help="Rejected events to draw; 0 for as many as are needed.")
    ] = 0,
    kept: Annotated[int, typer.Option(min=1, help="Kept events to draw.")] = 500,
    method: Annotated[
        Method, typer.Option(help="Stop whenever you like, or label all that is drawn.")
    ] = Method.SEQUENTIAL,
    max_loss: MaxLoss = 0.01,
    confidence: Confidence = 0.95,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Draw the events to label, in an order that nobody can steer.

    Example: sfxreduce audit draw --in hits.zarr --nonce "4 2 6 1 1 5" --out draw.json
    """
    from sfxreduce.audit import draw as audit_draw
    from sfxreduce.audit.bound import AuditMethod
    from sfxreduce.decisions.threshold import Promise
    from sfxreduce.pipeline import audit as auditing

    drawn = auditing.draw_run(
        in_,
        nonce=nonce,
        promise=Promise(max_loss=max_loss, confidence=confidence),
        rejects=rejects,
        kept=kept,
        method=AuditMethod(method.value),
    )
    auditing.write_text(out, _json(audit_draw.draw_to_json(drawn)), overwrite=overwrite)
    facts = {
        "out": str(out),
        "ledger_root": drawn.ledger_root,
        "method": drawn.method.value,
        "rejected": drawn.rejected,
        "rejects_drawn": len(drawn.from_rejected),
        "kept": drawn.kept,
        "kept_drawn": len(drawn.from_kept),
    }
    _print(f"{out}: drawn", facts, as_json=as_json)


@audit.command("label")
def label(
    draw_: DrawFile,
    against: Annotated[Path, typer.Option(metavar="RUN", help="The run that was filtered.")],
    out: Out,
    given: Annotated[
        Path | None,
        typer.Option(help="CSV (source_index, label, by) of an indexer or a person; it stands."),
    ] = None,
    min_peaks: Annotated[int, typer.Option(min=1, help="Fewest peaks of a hit.")] = 8,
    min_snr: Annotated[float, typer.Option(help="Signal to noise of a peak.")] = 5.5,
    min_pixels: Annotated[int, typer.Option(min=1, help="Smallest peak in pixels.")] = 1,
    data_path: DataPath = "",
    overwrite: Overwrite = False,
    root: Roots = None,
    untrusted: Untrusted = False,
    serial: Serial = False,
    scheduler: SchedulerAddress = "",
    security: SecurityPath = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Label the events drawn by the peak finder on whole frames, except those labelled already.

    Example: sfxreduce audit label --draw draw.json --against run.zarr --out labels.csv
    """
    from sfxreduce.audit import labels as audit_labels
    from sfxreduce.pipeline import audit as auditing

    finder = sfxreduce.PeakFinder(min_snr=min_snr, min_pixels=min_pixels)
    run = sfxreduce.open_run(against, data_path=data_path, roots=root or (), untrusted=untrusted)
    drawn = auditing.read_draw(draw_)
    known = auditing.read_labels(given) if given else ()
    with working_pool(serial=serial, scheduler=scheduler, workers=workers, security=security) as (
        pool,
        progress,
    ):
        labels = auditing.label_run(
            drawn,
            run,
            scorer=sfxreduce.PeakScorer(finder, min_peaks=min_peaks),
            given=known,
            pool=pool,
            progress=progress,
        )
    auditing.write_text(out, audit_labels.labels_to_csv(labels), overwrite=overwrite)
    names = [entry.label.name.lower() for entry in labels]
    counts = {name: names.count(name) for name in ("hit", "maybe", "miss")}
    _print(f"{out}: labelled", {"out": str(out), **counts}, as_json=as_json)


@audit.command("certify")
def certify(
    in_: Store,
    draw_: DrawFile,
    labels: Annotated[Path, typer.Option(help="CSV that 'label' wrote, or your own.")],
    out: Out,
    max_loss: MaxLoss = 0.01,
    confidence: Confidence = 0.95,
    seeded: Annotated[int, typer.Option(min=0, help="Known hits shown to the labeller.")] = 0,
    recognised: Annotated[int, typer.Option(min=0, help="How many of them it called hits.")] = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a certificate if the labels prove the promise; exit 3 if they do not.

    Example: sfxreduce audit certify --in hits.zarr --draw draw.json --labels labels.csv
    --out certificate.json
    """
    from sfxreduce.audit.certificate import certificate_to_json
    from sfxreduce.decisions.threshold import Promise
    from sfxreduce.pipeline import audit as auditing

    proved = auditing.certify_run(
        in_,
        auditing.read_draw(draw_),
        auditing.read_labels(labels),
        promise=Promise(max_loss=max_loss, confidence=confidence),
        known=(seeded, recognised),
    )
    facts = certificate_to_json(proved)
    auditing.write_text(out, _json(facts), overwrite=overwrite)
    _print(f"{out}: certified", facts, as_json=as_json)


@audit.command("check")
def check(
    certificate: Annotated[Path, typer.Argument(help="Certificate to check.")],
    in_: Annotated[
        Path | None, typer.Option("--in", metavar="STORE", help="The filter run it is about.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="The labels it was made from; needs --in.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a certificate by itself, against its filter run, and against its labels; exit 4 if bad.

    Example: sfxreduce audit check certificate.json --in hits.zarr --labels labels.csv
    """
    from sfxreduce.audit.certificate import certificate_to_json
    from sfxreduce.errors import UsageError
    from sfxreduce.pipeline import audit as auditing

    if labels and not in_:
        raise UsageError("audit check: --labels needs --in, the run whose events they label")
    found = auditing.read_certificate(certificate)
    if in_:
        given = auditing.read_labels(labels) if labels else None
        auditing.check_run(found, in_, labels=given)
    checked = "itself" + (", the run" if in_ else "") + (" and the labels" if labels else "")
    facts = certificate_to_json(found) | {"checked_against": checked}
    _print(f"{certificate}: valid, checked against {checked}", facts, as_json=as_json)


def _print(title: str, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print all facts as JSON; for people the statement, if there is one, else the facts."""
    if as_json:
        print_json(facts)
    elif "statement" in facts:
        print_table(title, {"statement": facts["statement"]})
    else:
        print_table(title, facts)


def _json(facts: object) -> str:
    return json.dumps(facts, indent=2) + "\n"
