"""How many values ``--in`` takes: one, or as many as a shell glob gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from sfxreduce_cli.help import SectionedCommand

__all__ = ["ManyInputs", "OneInput", "spread_inputs"]


def spread_inputs(args: Sequence[str], *, option: str = "--in") -> list[str]:
    """Repeat an option before each of the values that follow it.

    Examples
    --------
    >>> spread_inputs(["--in", "a.cbf", "b.cbf", "--out", "run.zarr"])
    ['--in', 'a.cbf', '--in', 'b.cbf', '--out', 'run.zarr']
    """
    spread: list[str] = []
    n_values = -1
    for arg in args:
        if arg.startswith("-") and arg != "-":
            n_values = 0 if arg == option else -1
        elif n_values >= 0:
            n_values += 1
            if n_values > 1:
                spread.append(option)
        spread.append(arg)
    return spread


class ManyInputs(SectionedCommand):
    """Command whose ``--in`` takes any number of values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spread the inputs, then parse as always."""
        return super().parse_args(ctx, spread_inputs(spread_inputs(args), option="--labels"))


class OneInput(SectionedCommand):
    """Command that refuses a second ``--in``, of which the parser would silently take the last."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Count the inputs, then parse as always."""
        n_inputs = sum(arg == "--in" or arg.startswith("--in=") for arg in args)
        if n_inputs > 1:
            raise typer.BadParameter(f"expected one run, found {n_inputs}", param_hint="--in")
        return super().parse_args(ctx, args)
