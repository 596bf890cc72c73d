"""Options that a file or the environment gives, and where each value in force came from.

A value on the command line precedes one of the environment, that one the file of ``--config``, and
that the user's own file. What lowers safety or starts programs is taken from the first and the
third only: nobody should lose hits by a variable that somebody set last year. Nothing is read from
the working folder, which others may write to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from sfxreduce.errors import UsageError

__all__ = ["configure", "in_force"]

ENVIRONMENT = "SFXREDUCE_"
BETWEEN = "__"
ORIGINS = "sfxreduce.origins"

BY_HAND = frozenset(
    {
        "cluster",
        "confidence",
        "drift",
        "execute",
        "incomplete",
        "keep_from_peaks",
        "max_loss",
        "overwrite",
        "prologue",
        "threshold",
        "to",
    }
)
"""Options that lower safety or start programs: from the command line and ``--config`` only."""

UNNAMED = frozenset({"config", "help"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """One value that was given.

    Parameters
    ----------
    words : tuple of str
        Commands and option, as in ("archive", "plan", "group").
    where : str
        File and key, or variable, for messages.
    origin : str
        "user file", "config" or "environment".
    """

    words: tuple[str, ...]
    value: Any
    where: str
    origin: str


def configure(ctx: typer.Context, path: str | None) -> None:
    """Take options of this command from the user's file, a named file and the environment.

    Parameters
    ----------
    path : str, optional
        The file that ``--config`` names.

    Raises
    ------
    UsageError
        If a file cannot be read, or a key is unknown, may not stand there, or has no fitting value.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    words = _words(ctx)
    for given in (*_of_user(), *_of_file(path), *_of_environment()):  # the last one wins
        parameter = _parameter_of(ctx.find_root().command, given)
        name = given.words[-1]
        if name in BY_HAND and given.origin != "config":
            raise UsageError(
                f"{given.where}: '{name}' can cost hits or start programs, and is taken only from "
                f"the command line or a file named with --config; remove it there, and type "
                f"--{name.replace('_', '-')}"
            )
        if given.words[:-1] == words:
            values[parameter.name] = _fitting(ctx, parameter, given)
            origins[parameter.name] = given.origin
    ctx.default_map = values
    ctx.meta[ORIGINS] = origins


def in_force(ctx: typer.Context, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Values of options and where each came from.

    Parameters
    ----------
    names : tuple of str
        Of parameters; those that the command does not have are left out.

    Returns
    -------
    dict
        By name: ``value``, and ``origin``, which is "option", "environment", "config" (the file of
        ``--config``), "user file" or "default".
    """
    origins = ctx.meta.get(ORIGINS, {})
    told = {}
    for name in filter(ctx.params.__contains__, names):
        source, value = ctx.get_parameter_source(name), ctx.params[name]
        typed = source is not None and source.name == "COMMANDLINE"
        origin = "option" if typed else origins.get(name, "default")
        plain = str(value) if isinstance(value, Path) else getattr(value, "value", value)
        told[name] = {"value": plain, "origin": origin}
    return told


def _words(ctx: typer.Context) -> tuple[str, ...]:
    """Name of a command with those of its groups."""
    words: list[str] = []
    while ctx.parent is not None:
        words.insert(0, _plain(ctx.info_name or ""))
        ctx = ctx.parent  # type: ignore[assignment]
    return tuple(words)


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()


def _of_user() -> Iterator[_Given]:
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    # As the system does it, a user without a home keeps the tilde.
    path = Path(os.path.expanduser(folder)) / "sfxreduce" / "config.toml"  # noqa: PTH111
    if path.is_absolute() and os.path.lexists(path):
        yield from _of_table(_read(path), (), path, "user file")


def _of_file(path: str | None) -> Iterator[_Given]:
    if path is not None:
        yield from _of_table(_read(Path(path)), (), Path(path), "config")


def _of_environment() -> Iterator[_Given]:
    for name, value in sorted(os.environ.items()):
        if name.startswith(ENVIRONMENT) and BETWEEN in name:
            words = tuple(name.removeprefix(ENVIRONMENT).lower().split(BETWEEN))
            yield _Given(words=words, value=value, where=name, origin="environment")


def _read(path: Path) -> Mapping[str, Any]:
    import tomllib  # of use only where there is a file

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{path}: expected a TOML file with options, as in 'filter.workers = 4'; {reason}"
        ) from error


def _of_table(
    table: Mapping[str, Any], words: tuple[str, ...], path: Path, origin: str
) -> Iterator[_Given]:
    """Every value of a table, those of the tables in it included."""
    for key, value in table.items():
        inner = (*words, _plain(key))
        if isinstance(value, Mapping):
            yield from _of_table(value, inner, path, origin)
        else:
            where = f"{path}: {'.'.join(inner)}"
            yield _Given(words=inner, value=value, where=where, origin=origin)


def _parameter_of(command: Any, given: _Given) -> Any:
    """Find the option that a value is for."""
    path = ["sfxreduce"]
    *groups, name = given.words
    for word in groups:
        below = {_plain(key): (key, one) for key, one in getattr(command, "commands", {}).items()}
        if word not in below:
            raise _unknown(given, word, "command", path, list(below))
        key, command = below[word]
        path.append(key)
    options = {
        _plain(written): parameter
        for parameter in command.params
        if parameter.param_type_name == "option"
        for written in parameter.opts
        if written.startswith("--") and _plain(written) not in UNNAMED
    }
    if name not in options or not groups:
        raise _unknown(given, name, "option", path, list(options) if groups else [])
    return options[name]


def _unknown(given: _Given, word: str, kind: str, path: list[str], known: list[str]) -> UsageError:
    near = get_close_matches(word, known, n=1)
    advice = f"did you mean '{near[0]}'?" if near else f"'{' '.join(path)} --help' lists them"
    if not given.words[1:]:
        advice = f"options stand below their command, as in 'filter.{word}'"
    return UsageError(f"{given.where}: no {kind} '{word}' of '{' '.join(path)}'; {advice}")


def _fitting(ctx: typer.Context, parameter: Any, given: _Given) -> Any:
    """Value as the option takes it; a value of the environment is split where several are taken."""
    value = given.value
    if parameter.multiple and isinstance(value, str):
        inside = given.origin == "environment"
        value = value.split(os.pathsep) if inside else [value]
    try:
        parameter.process_value(ctx, value)
    except typer.BadParameter as error:
        words = " ".join(given.words[:-1]).replace("_", "-")
        raise UsageError(
            f"{given.where}: {error.message.rstrip('.')}, found '{given.value}'; "
            f"'sfxreduce {words} --help' says what is taken"
        ) from error
    except TypeError as error:
        raise UsageError(f"{given.where}: expected one value or a list, found {value}") from error
    return value
