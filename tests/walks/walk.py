"""A walk: commands of the documentation one after the other, and what each of them says next."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a page, and what its output has to say.

    Parameters
    ----------
    line : str
        As it stands in a block of the page.
    says : tuple of str
        Parts of what is printed, on either stream: the hint at the next step among them.
    """

    line: str
    says: tuple[str, ...] = ()


def lines_of(page: str) -> list[str]:
    """Lines of the blocks of a page that are run."""
    text = (DOCS / page).read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def walk(page: str, steps: tuple[Step, ...], folder: Path) -> None:
    """Type every line of a page in one shell, in order; each step has to say what it should.

    Every line of the page is a step, so that none is left unread.
    """
    assert [step.line for step in steps] == lines_of(page)
    script = "\n".join(f"{step.line}\necho '=====' >&1" for step in steps)
    scripts = str(Path(sys.executable).parent)
    done = subprocess.run(
        ["bash", "-euc", f"exec 2>&1\n{script}"],
        cwd=folder,
        env={**os.environ, "PATH": scripts + os.pathsep + os.environ["PATH"]},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    told = done.stdout.split("=====\n")
    assert done.returncode == 0, told[-1]
    for step, said in zip(steps, told, strict=False):
        for part in step.says:
            assert part in said, f"{step.line}: expected {part!r} in:\n{said}"
