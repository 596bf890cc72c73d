"""Help is there where it is asked for, whole, and in order."""

from __future__ import annotations

import re

import pytest
import typer.main
from commands import run as command

from sfxreduce_cli.main import app

GROUPS = ("archive", "audit", "geometry", "hold", "policy", "report")


@pytest.mark.parametrize("words", [(), ("filter",), ("audit",), ("archive", "plan")])
def test_the_short_option_shows_the_same_help(words: tuple[str, ...]) -> None:
    short, whole = command(*words, "-h"), command(*words, "--help")
    assert short.exit_code == whole.exit_code == 0
    assert short.stdout == whole.stdout


@pytest.mark.parametrize("group", ["", *GROUPS])
def test_lists_of_commands_are_whole_and_groups_have_an_example(group: str) -> None:
    told = command(*group.split(), "--help").stdout
    assert "Example: sfxreduce " in told
    assert "..." not in told.split("Commands:")[1]
    assert max(map(len, told.splitlines())) <= 80
    example = re.search(r"Example: sfxreduce (\S+) (\S+)", told)
    assert example is not None
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert example[1] in commands
    if group:
        assert example[2] in commands[group].commands


def test_options_are_listed_by_what_they_are_about() -> None:
    told = command("filter", "--help").stdout
    sections = re.findall(r"^(\S.*):$", told, re.MULTILINE)
    assert sections[0] == "Options"
    assert {
        "How events are judged", "How the run is read", "Runs that are still being written",
        "What is written beside the store", "Where the pixels lie", "Where the work runs",
    } == set(sections[1:])  # fmt: skip
    judged = told.split("How events are judged:")[1].split("\n\n")[0]
    assert "--max-loss" in judged
    assert "--workers" not in judged


def test_a_word_that_is_nearly_one_is_answered_with_that() -> None:
    assert "Did you mean 'filter'?" in command("filtr").stderr
    wrong = command("filter", "--in", "a", "--out", "b", "--treshold", "1")
    assert wrong.exit_code == 2
    assert "--threshold" in wrong.stderr
