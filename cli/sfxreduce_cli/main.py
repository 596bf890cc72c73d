"""Entry point of the command ``sfxreduce``."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import warnings
from importlib import metadata
from typing import Annotated, NoReturn, TextIO

import typer

from sfxreduce.errors import SfxReduceError, SfxReduceWarning, UsageError
from sfxreduce_cli.archive import archive
from sfxreduce_cli.audit import audit
from sfxreduce_cli.clean import clean
from sfxreduce_cli.cluster import cluster
from sfxreduce_cli.convert import convert
from sfxreduce_cli.crossval import crossval
from sfxreduce_cli.doctor import doctor
from sfxreduce_cli.evaluate import evaluate
from sfxreduce_cli.filter import filter_
from sfxreduce_cli.geometry import geometry
from sfxreduce_cli.help import Commands
from sfxreduce_cli.hold import hold
from sfxreduce_cli.info import info
from sfxreduce_cli.ingest import ingest
from sfxreduce_cli.inputs import ManyInputs, OneInput
from sfxreduce_cli.label import label
from sfxreduce_cli.ledger import ledger
from sfxreduce_cli.output import print_json, say
from sfxreduce_cli.policy import policy
from sfxreduce_cli.redecide import redecide
from sfxreduce_cli.report import report
from sfxreduce_cli.review import review
from sfxreduce_cli.simulate import simulate
from sfxreduce_cli.train import train
from sfxreduce_cli.verify import verify
from sfxreduce_cli.view import view
from sfxreduce_cli.why import why

__all__ = ["app", "main"]

INTERRUPTED = 130
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, what a batch system ends jobs with, and what a terminal that is closed sends."""

CLEANING_SECONDS = 60
"""After an interrupt, in which further ones are passed over: outputs are being removed."""

app = Commands(invoke_without_command=True, pretty_exceptions_enable=False)
app.command("filter", cls=OneInput)(filter_)
app.command("redecide", cls=OneInput)(redecide)
app.command("verify", cls=OneInput)(verify)
app.command("ledger", cls=OneInput)(ledger)
app.command("info")(info)
app.command("why")(why)
app.command("review", cls=OneInput)(review)
app.command("view")(view)
app.command("clean")(clean)
app.command("doctor")(doctor)
app.command("simulate")(simulate)
app.command("ingest", cls=ManyInputs)(ingest)
app.command("convert", cls=ManyInputs)(convert)
app.command("label", cls=OneInput)(label)
app.command("train", cls=ManyInputs)(train)
app.command("evaluate", cls=ManyInputs)(evaluate)
app.command("crossval")(crossval)
app.add_typer(audit, name="audit")
app.add_typer(geometry, name="geometry")
app.add_typer(archive, name="archive")
app.add_typer(cluster, name="cluster")
app.add_typer(hold, name="hold")
app.add_typer(policy, name="policy")
app.add_typer(report, name="report")


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    """Keep the hits of serial femtosecond crystallography runs, and account for the rest.

    Example: sfxreduce filter --in run.zarr --out hits.zarr --report report.html
    """
    if version:
        typer.echo(f"sfxreduce {metadata.version('sfxreduce')}")
        raise typer.Exit


def main() -> None:
    """Run the command line; an error becomes one line and its exit status."""
    interrupts = _Interrupts()
    for number in INTERRUPTS:
        # Under nohup a terminal may be closed, and the command goes on.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupts.note)
    sys.unraisablehook = interrupts.hide
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", SfxReduceWarning)
    try:
        _run()
    except BaseException as error:
        done = isinstance(error, SystemExit) and not error.code
        if interrupts.first is None or done:
            raise
        # Compiled code and clusters turn an interrupt into errors of their own. Another one must
        # not end the interpreter while it ends: it would have its default meaning by then.
        for number in INTERRUPTS:
            signal.signal(number, signal.SIG_IGN)
        fault = SfxReduceError(
            "interrupted; no output was left half-written; 'filter' resumes from here if the same "
            "command is given again"
        )
        fault.exit_status = INTERRUPTED
        _fail(fault)


class _Interrupts:
    """`INTERRUPTS`: the first one stops the work, others must not stop the cleaning up."""

    def __init__(self) -> None:
        self.first: float | None = None
        # One that was closed does not call itself a terminal any more.
        self.on_terminal = [stream for stream in (1, 2) if os.isatty(stream)]

    def note(self, number: int, _: object) -> None:
        """Stop what is under way, unless that is being done already."""
        if number == signal.SIGHUP:
            self._leave_terminal()
        now = time.monotonic()
        if self.first is not None and now < self.first + CLEANING_SECONDS:
            return
        self.first = now
        # Conversations with workers break off, and say so when nobody asks any more.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        raise KeyboardInterrupt

    def _leave_terminal(self) -> None:
        """Print to nowhere from now on what would go to a terminal that is no longer there."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in self.on_terminal:
            os.dup2(nowhere, stream)
        os.close(nowhere)

    def hide(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Keep what an interrupt leaves in callbacks and destructors off the terminal."""
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            # It came where nobody could take it: once more, in a moment.
            self.first = None
            again = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
            again.daemon = True
            again.start()
        elif self.first is None:
            sys.__unraisablehook__(unraisable)


def _run() -> None:
    try:
        _refuse_in_starting_worker()
        app(prog_name="sfxreduce")
    except SfxReduceError as error:
        _fail(error)
    except (OSError, MemoryError, UnicodeError) as error:
        # What the system refuses in a way nobody foresaw is still one line.
        _fail(SfxReduceError(f"{type(error).__name__}: {error}"))


def _refuse_in_starting_worker() -> None:
    """Refuse to begin a command once more in its own workers.

    A worker imports the script that it was started from. One that gives a command as soon as it is
    imported would give it again there, beside the first, which holds the locks.
    """
    processes = sys.modules.get("multiprocessing.process")
    if processes and getattr(processes.current_process(), "_inheriting", False):
        raise UsageError(
            "this script gives its command when it is imported, which workers do as they start; "
            "put the call under 'if __name__ == \"__main__\":', or pass --serial"
        )


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One line for a warning of ours; others look as Python has them."""
    if issubclass(category, SfxReduceWarning):
        say(f"sfxreduce: warning: {message}")
    else:
        say(warnings.formatwarning(message, category, filename, lineno, line).rstrip())


def _fail(error: SfxReduceError) -> NoReturn:
    for line in error.lines:
        say(f"sfxreduce: {line}")
    if "--json" in sys.argv:
        print_json(error.to_json())
    raise SystemExit(error.exit_status) from None
