"""``sfxreduce policy``: check a policy file, and explain it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sfxreduce
from sfxreduce_cli.options import AsJson, command_group
from sfxreduce_cli.output import print_json, print_lines, print_sentences

__all__ = ["policy"]

policy = command_group(
    "Check what a policy says about archiving and releasing runs.",
    example="policy explain --preset lcls",
)

PolicyFile = Annotated[Path, typer.Argument(help="Policy, a TOML file.")]
Preset = Annotated[str, typer.Option(help="A shipped policy: esrf, euxfel, laptop, lcls, or try.")]


@policy.command("check")
def check(file: PolicyFile, as_json: AsJson = False) -> None:
    """Check a policy file; a key that is not known is refused with exit 3.

    Example: sfxreduce policy check site.toml
    """
    rules = sfxreduce.archive.read_policy(file)
    if as_json:
        facts = {"file": str(file), "name": rules.name}
        facts["sha256"] = sfxreduce.archive.policy_sha256(rules)
        print_json({**facts, "policy": rules.model_dump(mode="json")})
    else:
        print_lines([f"{file}: policy '{rules.name}' is valid"])


@policy.command("explain")
def explain(
    file: Annotated[Path | None, typer.Argument(help="Policy; default: the preset.")] = None,
    preset: Preset = "laptop",
    as_json: AsJson = False,
) -> None:
    """Explain in plain sentences what a policy asks for, and where its figures come from.

    Example: sfxreduce policy explain --preset lcls
    """
    rules = sfxreduce.archive.read_policy(file) if file else sfxreduce.archive.preset(preset)
    sentences = sfxreduce.archive.explain_policy(rules)
    print_sentences(sentences, of={"name": rules.name}, as_json=as_json)


@policy.command("show")
def show(preset: Preset = "laptop", as_json: AsJson = False) -> None:
    """Print a preset as a file, to start a policy of your own from.

    Example: sfxreduce policy show --preset lcls > site.toml
    """
    if as_json:
        print_json(sfxreduce.archive.preset(preset).model_dump(mode="json"))
    else:
        print_lines([sfxreduce.archive.preset_text(preset).rstrip()])
