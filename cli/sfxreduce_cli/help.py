"""Help that can be read: ``-h``, options by what they are about, and sentences to their end."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, TypeVar

import typer
import typer.core

from sfxreduce_cli.config import configure

__all__ = ["Commands", "SectionedCommand"]

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
            help="TOML file with options; command line and environment precede it.",
            is_eager=True,
            callback=configure,
        ),
    ],
)


class SectionedCommand(typer.core.TyperCommand):
    """Command whose options are listed by what they are about, and may stand in a file."""

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
