"""``sfxreduce audit``: how many hits a filter run can have lost, proved on a sample."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import sfxreduce
from sfxreduce_cli.options import (
    AsJson,
    Out,
    Overwrite,
    PeakOptions,
    PlacedOptions,
    PoolOptions,
    command_group,
    spread_options,
)
from sfxreduce_cli.output import print_facts, say_next

if TYPE_CHECKING:
    from sfxreduce.audit.draw import Draw

__all__ = ["audit"]

audit = command_group(
    "Prove on a random sample how many hits are among the rejected events.",
    example='audit draw --in hits.zarr --nonce "4 2 6 1 1 5" --out draw.json',
)


class Method(StrEnum):
    """How the rejected events are bounded."""

    SEQUENTIAL = "eprocess-wor"
    FIXED = "hypergeom-fixed"


Store = Annotated[Path, typer.Option("--in", metavar="STORE", help="Output of 'filter'.")]
DrawFile = Annotated[Path, typer.Option("--draw", metavar="FILE", help="Output of 'audit draw'.")]
MaxLoss = Annotated[float, typer.Option(help="Largest share of the hits that may be rejected.")]
Confidence = Annotated[float, typer.Option(help="Chance that the promise holds.")]


@audit.command("draw")
def draw(
    in_: Store,
    nonce: Annotated[
        str, typer.Option(help="A text nobody could choose: dice, the value of a public beacon.")
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
    promise = sfxreduce.Promise(max_loss=max_loss, confidence=confidence)
    size = {"rejects": rejects, "kept": kept}
    drawn = sfxreduce.audit_draw(
        in_, nonce=nonce, promise=promise, method=method, out=out, overwrite=overwrite, **size
    )
    print_facts(f"{out}: drawn", {"out": str(out), **_counts(drawn)}, as_json=as_json)
    label_them = ("audit", "label", "--draw", out, "--against", "RUN", "--out", "labels.csv")
    say_next(*label_them, as_json=as_json)


def _counts(drawn: Draw) -> dict[str, Any]:
    return {
        "ledger_root": drawn.ledger_root,
        "method": drawn.method.value,
        "rejected": drawn.rejected,
        "rejects_drawn": len(drawn.from_rejected),
        "kept": drawn.kept,
        "kept_drawn": len(drawn.from_kept),
    }


@audit.command("label")
@spread_options
def label(
    *,
    draw_: DrawFile,
    against: Annotated[Path, typer.Option(metavar="RUN", help="The run that was filtered.")],
    out: Out,
    given: Annotated[
        Path | None,
        typer.Option(
            help="CSV (source_index, label, by) of an indexer or a person; takes precedence."
        ),
    ] = None,
    peaks: PeakOptions,
    overwrite: Overwrite = False,
    inputs: PlacedOptions,
    where: PoolOptions,
    as_json: AsJson = False,
) -> None:
    """Label the events drawn by the peak finder on whole frames, except those labelled already.

    Example: sfxreduce audit label --draw draw.json --against run.zarr --out labels.csv
    """
    run = inputs.opened(against)
    with where.opened() as work:
        labels = sfxreduce.audit_label(
            draw_, run, scorer=peaks.scorer, given=given or (), out=out, overwrite=overwrite, **work
        )
    names = [entry.label.name.lower() for entry in labels]
    counts = {name: names.count(name) for name in ("hit", "maybe", "miss")}
    print_facts(f"{out}: labelled", {"out": str(out), **counts}, as_json=as_json)
    certify_them = ("audit", "certify", "--in", "STORE", "--draw", draw_, "--labels", out)
    say_next(*certify_them, "--out", "certificate.json", as_json=as_json)


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
    certificate = sfxreduce.audit_certify(
        in_,
        draw_,
        labels,
        promise=sfxreduce.Promise(max_loss=max_loss, confidence=confidence),
        known=(seeded, recognised),
        out=out,
        overwrite=overwrite,
    )
    _print(f"{out}: certified", certificate.to_json(), as_json=as_json)
    plan = ("archive", "plan", certificate.subject.source, "--hits", in_, "--certificate", out)
    say_next(*plan, as_json=as_json)


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
    proved = sfxreduce.audit_check(certificate, store=in_, labels=labels)
    checked = "itself" + (", the run" if in_ else "") + (" and the labels" if labels else "")
    facts = proved.to_json() | {"checked_against": checked}
    _print(f"{certificate}: valid, checked against {checked}", facts, as_json=as_json)


def _print(title: str, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print all facts of a certificate as JSON; for people its statement."""
    shown = facts if as_json else {"statement": facts["statement"]}
    print_facts(title, shown, as_json=as_json)
