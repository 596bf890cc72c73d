"""Entry point of the command ``sfxreduce``."""

from __future__ import annotations

import sys

import typer

from sfxreduce.errors import SfxReduceError
from sfxreduce_cli.audit import audit
from sfxreduce_cli.evaluate import evaluate
from sfxreduce_cli.filter import filter_
from sfxreduce_cli.info import info
from sfxreduce_cli.ingest import ingest
from sfxreduce_cli.inputs import ManyInputs
from sfxreduce_cli.output import print_json, say
from sfxreduce_cli.simulate import simulate
from sfxreduce_cli.train import train
from sfxreduce_cli.verify import verify

__all__ = ["app", "main"]

app = typer.Typer(
    help="Keep the hits of serial femtosecond crystallography runs, and account for the rest.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("filter")(filter_)
app.command("verify")(verify)
app.command("info")(info)
app.command("simulate")(simulate)
app.command("ingest", cls=ManyInputs)(ingest)
app.command("train", cls=ManyInputs)(train)
app.command("evaluate", cls=ManyInputs)(evaluate)
app.add_typer(audit, name="audit")


def main() -> None:
    """Run the command line; an error of ours becomes one line and its exit status."""
    try:
        app(prog_name="sfxreduce")
    except SfxReduceError as error:
        say(f"sfxreduce: {error}")
        if "--json" in sys.argv:
            print_json({"error": str(error), "exit_status": error.exit_status})
        raise SystemExit(error.exit_status) from None
