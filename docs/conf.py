"""Sphinx settings; the command-line page is written from the commands' own help."""

from __future__ import annotations

from pathlib import Path

import typer
from typer.testing import CliRunner

import sfxreduce_cli.main

project = "sfxreduce"
author = "The sfxreduce developers"
copyright = "2026, the sfxreduce developers"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
exclude_patterns = ["_build", "results/*"]
html_theme = "pydata_sphinx_theme"
html_title = "sfxreduce"
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}
html_show_sourcelink = False
html_sidebars = {"**": []}
autodoc_typehints = "none"
napoleon_numpy_docstring = True


def command_names(group: object, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Words of every command, those of groups included."""
    found = []
    for name, command in sorted(getattr(group, "commands", {}).items()):
        found += [(*before, name), *command_names(command, (*before, name))]
    return found


def write_cli_page(*_: object) -> None:
    """Write one section for each command."""
    app = sfxreduce_cli.main.app
    parts = ["# Command line\n"]
    for words in command_names(typer.main.get_command(app)):
        shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "92"}).output
        parts.append(f"## sfxreduce {' '.join(words)}\n\n```text\n{shown.strip()}\n```\n")
    Path(__file__).with_name("reference").joinpath("cli.md").write_text("\n".join(parts))


def setup(_app: object) -> None:
    write_cli_page()
