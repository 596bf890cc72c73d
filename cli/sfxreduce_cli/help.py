"""What is the same in all commands: help that can be read, and paths that are on a disk."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import typer.core

from sfxreduce.errors import UsageError
from sfxreduce_cli.config import configure

__all__ = ["READ_THERE", "Commands", "SectionedCommand", "refuse_address", "takes_path"]

Function = TypeVar("Function", bound=Callable[..., Any])

HELP = {"help_option_names": ["-h", "--help"]}
WHOLE_SENTENCE = 1000
CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="TOML file with options; command line and environment override it.",
            is_eager=True,
            callback=configure,
        ),
    ],
)

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

READ_THERE = {
    "filter": "--in",
    "info": "PATH",
    "redecide": "--against",
    "verify": "--against",
}
"""Commands that read runs of object stores, and where they are given."""


class SectionedCommand(typer.core.TyperCommand):
    """Command with options by what they are about, in a file too; its paths are paths."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse addresses where paths belong, then parse as always."""
        # As they were typed: of a path, one of its two slashes is left.
        typed, _, _ = self.make_parser(ctx).parse_args(list(args))
        for parameter in self.get_params(ctx):
            name = _name_of(parameter)
            value = typed.get(parameter.name)
            if takes_path(parameter) and not self._reads_there(value, name):
                refuse_address(value, name)
        return super().parse_args(ctx, args)

    def _reads_there(self, value: object, option: str) -> bool:
        """Whether a value is an address of an object store, where the command reads one."""
        is_s3 = isinstance(value, str) and value.startswith("s3://")
        return is_s3 and READ_THERE.get(str(self.name)) == option

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for arguments, one for options of no panel, and one for each panel."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panel = getattr(parameter, "rich_help_panel", None) or usual
                sections.setdefault(panel, []).append(record)
        first = ("Arguments", "Options")
        for name in sorted(sections, key=lambda name: name not in first):
            with formatter.section(name):
                formatter.write_dl(sections[name])


def takes_path(parameter: Any) -> bool:
    """Whether an option or argument names something on a disk."""
    return parameter.type_descriptor.annotation in (Path, list[Path])


def refuse_address(value: object, option: str) -> None:
    """Refuse an address as ``s3://bucket/run.zarr``, which would be taken for a folder ``s3:``.

    Parameters
    ----------
    value : object
        A text, or several; anything else is none.

    Raises
    ------
    UsageError
        If it is one.

    Examples
    --------
    >>> refuse_address(["run.zarr"], "--in")
    """
    for one in (
        [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    ):
        if isinstance(one, str) and (found := ADDRESS.match(one)):
            where = ", ".join(f"'{name} {there}'" for name, there in READ_THERE.items())
            known = (
                f"s3:// is read by {where}, and never written"
                if found[0] == "s3://"
                else f"{found[0]} is neither read nor written"
            )
            raise UsageError(
                f"{option} {one}: expected a path of this machine, found an address; {known}: copy "
                "what is there to a disk, or mount it"
            )


def _name_of(parameter: Any) -> str:
    """Name of an option as it is typed, or of an argument as the help shows it."""
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    return str(max(parameter.opts, key=len))


class _SpelledOutGroup(typer.core.TyperGroup):
    """Group that lists its commands with whole sentences."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - not needed
        """Write name and first sentence of each command; long ones go on below."""
        rows = [
            (name, command.get_short_help_str(WHOLE_SENTENCE))
            for name, command in self.commands.items()
            if not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _configured(function: Callable[..., Any]) -> Callable[..., Any]:
    """Command with one more option, by which a file gives others."""

    @wraps(function)
    def command(**given: Any) -> Any:
        given.pop(CONFIG.name)
        return function(**given)

    signature = inspect.signature(function, eval_str=True)
    taken = [*signature.parameters.values(), CONFIG]
    command.__signature__ = signature.replace(parameters=taken)  # type: ignore[attr-defined]
    return command


class Commands(typer.Typer):
    """Commands with help of this kind."""

    def __init__(self, **how: Any) -> None:
        how = {"rich_markup_mode": None, "no_args_is_help": True, "context_settings": HELP} | how
        super().__init__(cls=_SpelledOutGroup, **how)

    def command(
        self, name: str | None = None, *, cls: Any = None, **how: Any
    ) -> Callable[[Function], Function]:
        """See `typer.Typer.command`; each command takes ``--config`` besides its own options."""
        register = super().command(name, cls=cls or SectionedCommand, **how)

        def registered(function: Function) -> Function:
            register(_configured(function))
            return function

        return registered
