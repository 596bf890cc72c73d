"""``sfxreduce archive check-ticket``: whether a site may act on a release ticket."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from sfxreduce_cli.archiving import print_facts
from sfxreduce_cli.options import AsJson

__all__ = ["check_ticket"]


def check_ticket(
    ticket: Annotated[
        Path, typer.Argument(help="release-ticket.json; its signature is beside it.")
    ],
    key: Annotated[Path, typer.Option("--key", metavar="PUBLIC", help="Ed25519 in PEM.")],
    as_json: AsJson = False,
) -> None:
    """Say whether a site may act on a ticket: signed, in force, not held, files unchanged.

    Example: sfxreduce archive check-ticket run.zarr.evidence/release-ticket.json --key public.pem
    """
    from sfxreduce.archive.evidence import subject
    from sfxreduce.archive.steps import check_ticket as checking

    found = checking.check_ticket(ticket, key=key, clock=subject.wall_clock)
    ends = datetime.fromtimestamp(found.valid_until_ns / 1e9, UTC).isoformat(timespec="seconds")
    facts = {
        "ticket": str(ticket),
        "run": found.run,
        "plan_id": found.plan_id,
        "files": len(found.files),
        "bytes": found.bytes,
        "valid_until": ends,
    }
    print_facts(f"{ticket}: may be acted on", facts, as_json=as_json)
