"""``sfxreduce simulate``: a run with known truth."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

import sfxreduce
from sfxreduce_cli.options import AsJson, Out, Overwrite, PoolOptions, spread_options
from sfxreduce_cli.output import print_facts, say_next

__all__ = ["simulate"]


@spread_options
def simulate(
    *,
    out: Out,
    experiment: Annotated[
        str, typer.Option(help="Name of a preset; an unknown one lists them all.")
    ] = "lysozyme-8kev",
    events: Annotated[int, typer.Option(min=1, help="Number of events.")] = 200,
    hit_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of events with at least one crystal.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    frame_shape: Annotated[
        str, typer.Option(metavar="YxX", help="Cut a one-panel camera to its centre, as 350x350.")
    ] = "",
    blur_px: Annotated[
        float | None,
        typer.Option(
            help="Spread of a point on the detector in pixels (standard deviation), in place of "
            "the camera's own."
        ),
    ] = None,
    overwrite: Overwrite = False,
    where: PoolOptions,
    as_json: AsJson = False,
) -> None:
    """Simulate a run from the physics of serial crystallography, with its truth.

    Example: sfxreduce simulate --out run.zarr --experiment lysozyme-8kev --events 200
    """
    shape = _shape(frame_shape)
    run = sfxreduce.simulate_run(
        experiment,
        n_events=events,
        hit_rate=hit_rate,
        seed=seed,
        frame_shape=shape,
        blur_px=blur_px,
    )
    with where.opened(small_here=True) as work:
        stored = sfxreduce.ingest_run(run, out=out, overwrite=overwrite, **work)
    facts = asdict(stored) | {"experiment": experiment, "seed": seed}
    print_facts(f"{out}: simulated", facts, as_json=as_json)
    say_next("filter", "--in", out, "--out", out.with_name("hits.zarr"), as_json=as_json)


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
