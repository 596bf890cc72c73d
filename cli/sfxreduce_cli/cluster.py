"""``sfxreduce cluster``: try workers, or see a job's script, before a run depends on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import sfxreduce
from sfxreduce_cli.cluster_options import POOL, Jobs, JobsMax, PoolOptions, WhoStarts
from sfxreduce_cli.options import AsJson, InputOptions, command_group, spread_options
from sfxreduce_cli.output import print_json, print_lines, print_table

if TYPE_CHECKING:
    from sfxreduce.pipeline.cluster_check import ClusterFindings

__all__ = ["cluster"]

FAILED, REFUSED = 1, 3

cluster = command_group(
    "Try the workers of a cluster before a run depends on them.",
    example="cluster check --cluster slurm --in run.zarr --out-dir reduced",
)


@cluster.callback()
def group() -> None:
    """Try the workers of a cluster before a run depends on them."""


@cluster.command("check")
@spread_options
def check(
    *,
    in_: Annotated[
        Path | None, typer.Option("--in", metavar="RUN", help="A run that workers have to see.")
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option("--out-dir", metavar="DIR", help="Folder that workers have to write to."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Model folder; the shipped one if not given.")
    ] = None,
    wait: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="For all jobs to begin; then those that did are asked.",
            rich_help_panel=POOL,
        ),
    ] = 600.0,
    inputs: InputOptions,
    where: PoolOptions,
    as_json: AsJson = False,
) -> None:
    """Start workers, call their roll, tell what each is made of and sees, and end them.

    Ends with exit status 3 if a worker would be refused. Example: sfxreduce cluster check --cluster
    slurm --in run.zarr
    """
    run = inputs.opened(in_) if in_ else None
    with replace(where, drop_bad_workers=True).opened() as work:
        pool = work["pool"]
        found = sfxreduce.cluster_check(pool, run, folder=out_dir, model=model, wait_seconds=wait)
    _show(found, as_json=as_json)


@cluster.command("script")
def script(
    cluster: WhoStarts = "slurm",
    jobs: Jobs = 0,
    jobs_max: JobsMax = 0,
    as_json: AsJson = False,
) -> None:
    """Print the script of a job of SLURM as it would be submitted; nothing is started.

    Example: sfxreduce cluster script --cluster site.toml
    """
    text = sfxreduce.cluster_script(cluster, jobs=jobs, jobs_max=jobs_max)
    if as_json:
        print_json({"script": text})
    else:
        print_lines([text.rstrip()])


def _show(found: ClusterFindings, *, as_json: bool) -> None:
    """Print what was found of each worker; the exit status says whether all may have tasks."""
    if as_json:
        print_json(found.to_json())
    else:
        n_good = len(found.workers) - len(found.bad)
        title = f"{n_good} of {sfxreduce.counted(found.expected, 'worker')} may have tasks"
        print_table(title, {_name_of(worker): _said_of(worker) for worker in found.workers})
    if not found.ok:
        raise typer.Exit(REFUSED if found.bad else FAILED)


def _name_of(worker: Mapping[str, Any]) -> str:
    return f"{worker['name'] or '?'} at {worker['address']}"


def _said_of(worker: Mapping[str, Any]) -> str:
    """What a worker is made of, or why it would be refused."""
    if worker["state"] != "admitted":
        return f"REFUSED: {worker['why']}"
    memory = worker["memory_bytes"]
    limit = f"{memory / 1e9:.1f} GB" if memory else "no memory limit"
    gpu = ", GPU" if worker["gpu"] else ""
    threads = sfxreduce.counted(worker["threads"], "thread")
    return f"{worker['host']}, {threads}, {limit}{gpu}, {worker['cpu']}"
