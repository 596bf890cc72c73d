"""Commands run in this process, for tests that look at what a user gets."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from sfxreduce.errors import SfxReduceError
from sfxreduce_cli.main import app

HEARS_HANGUPS = ("/usr/bin/env", "--default-signal=HUP")
"""Before a command of its own process: tests may run under nohup, which it would inherit."""


def run(*arguments: object) -> Result:
    """Run the command line in this process; its own errors become exit statuses as in `main`."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, SfxReduceError):
        result.exit_code = result.exception.exit_status
    elif result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
