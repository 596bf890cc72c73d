"""``sfxreduce simulate``: a run with known truth."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

import sfxreduce
from sfxreduce_cli.options import (
    AsJson,
    Out,
    Overwrite,
    SchedulerAddress,
    SecurityPath,
    Serial,
    Workers,
    working_pool,
)
from sfxreduce_cli.output import print_json, print_table

__all__ = ["simulate"]


def simulate(
    out: Out,
    experiment: Annotated[
        str, typer.Option(help="Name of a preset; a wrong one lists them all.")
    ] = "lysozyme-8kev",
    events: Annotated[int, typer.Option(min=1, help="Number of events.")] = 200,
    hit_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of events with at least one crystal.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    frame_shape: Annotated[
        str, typer.Option(metavar="YxX", help="Cut a one-panel camera to its centre, as 350x350.")
    ] = "",
    overwrite: Overwrite = False,
    serial: Serial = False,
    scheduler: SchedulerAddress = "",
    security: SecurityPath = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Simulate a run by the physics of serial crystallography, truth included.

    Example: sfxreduce simulate --out run.zarr --experiment lysozyme-8kev --events 200
    """
    run = sfxreduce.simulate_run(
        experiment,
        n_events=events,
        hit_rate=hit_rate,
        seed=seed,
        frame_shape=_shape(frame_shape),
    )
    with working_pool(serial=serial, scheduler=scheduler, workers=workers, security=security) as (
        pool,
        progress,
    ):
        stored = sfxreduce.ingest_run(
            run, out=out, pool=pool, overwrite=overwrite, progress=progress
        )
    facts = asdict(stored) | {"experiment": experiment, "seed": seed}
    if as_json:
        print_json(facts)
    else:
        print_table(f"{out}: simulated", facts)


def _shape(text: str) -> tuple[int, int] | None:
    """Read ``350x350`` as (y, x)."""
    if not text:
        return None
    try:
        n_y, n_x = (int(n) for n in text.lower().split("x"))
    except ValueError:
        raise typer.BadParameter(f"expected y by x pixels as 350x350, found '{text}'") from None
    if min(n_y, n_x) < 1:
        raise typer.BadParameter(f"expected at least one pixel each way, found '{text}'")
    return n_y, n_x
