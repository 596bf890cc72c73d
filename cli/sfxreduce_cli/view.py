"""``sfxreduce view``: the events of any run in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sfxreduce
from sfxreduce_cli.options import AsJson, PlacedOptions, spread_options, tunnel
from sfxreduce_cli.output import print_json, say

__all__ = ["Port", "say_address", "view"]

Port = Annotated[
    int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 for one that is free.")
]


@spread_options
def view(
    *,
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run store, CXI or HDF5 file, or an output.")
    ],
    event: Annotated[int, typer.Option(help="Event to begin with, from 0.")] = 0,
    port: Port = 0,
    inputs: PlacedOptions,
    as_json: AsJson = False,
) -> None:
    """Show the events of a run in the browser, one by one; Ctrl-C ends it.

    Example: sfxreduce view run.zarr --event 17
    """
    opened = inputs.opened(run)
    sfxreduce.view_run(opened, event=event, port=port, ready=say_address)
    if as_json:
        print_json({"run": opened.path, "events": opened.n_events})


def say_address(address: str) -> None:
    """Say where a page is, and how to get there from another machine; Ctrl-C ends it."""
    say(f"open in a browser: {address}")
    if there := tunnel(address):
        say(f"first, on your own machine: {there}")
    say("Ctrl-C ends it")
