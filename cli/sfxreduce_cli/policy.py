"""``sfxreduce policy``: check a policy file, and say what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfxreduce_cli.options import AsJson
from sfxreduce_cli.output import print_json, print_lines

__all__ = ["policy"]

policy = typer.Typer(
    help="Check what a policy says about archiving and releasing runs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

PolicyFile = Annotated[Path, typer.Argument(help="Policy, a TOML file.")]
Preset = Annotated[str, typer.Option(help="One that comes along: esrf, euxfel, laptop or lcls.")]


@policy.command("check")
def check(file: PolicyFile, as_json: AsJson = False) -> None:
    """Check a policy file; a key that is not known is refused with exit 3.

    Example: sfxreduce policy check site.toml
    """
    from sfxreduce.archive.rules.policy import policy_sha256, read_policy

    found = read_policy(file)
    facts = {"file": str(file), "name": found.name, "sha256": policy_sha256(found)}
    if as_json:
        print_json({**facts, "policy": found.model_dump(mode="json")})
    else:
        print_lines([f"{file}: policy '{found.name}' is understood"])


@policy.command("explain")
def explain(
    file: Annotated[Path | None, typer.Argument(help="Policy; else the preset.")] = None,
    preset: Preset = "laptop",
    as_json: AsJson = False,
) -> None:
    """Say in plain sentences what a policy asks for, and where its figures come from.

    Example: sfxreduce policy explain --preset lcls
    """
    from sfxreduce.archive.rules import policy as policies
    from sfxreduce.archive.rules.explain import explain_policy

    found = policies.read_policy(file) if file else policies.preset(preset)
    told = explain_policy(found)
    if as_json:
        print_json({"name": found.name, "sentences": told})
    else:
        print_lines(told)


@policy.command("show")
def show(preset: Preset = "laptop", as_json: AsJson = False) -> None:
    """Print a preset as a file, to begin one's own with.

    Example: sfxreduce policy show --preset lcls > site.toml
    """
    from sfxreduce.archive.rules import policy as policies

    if as_json:
        print_json(policies.preset(preset).model_dump(mode="json"))
    else:
        print_lines([policies.preset_text(preset).rstrip()])
