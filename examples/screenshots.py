"""Take the pictures of the documentation from a run that is simulated and filtered for them.

Reports and pages are taken in Chromium, the terminal as rich draws it. Nothing is fetched from
anywhere. Run: python examples/screenshots.py
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console
from rich.text import Text

EVENTS = 320
COLUMNS = 100
GREYS, COLOURS = 16, 64
SFXREDUCE = [sys.executable, "-m", "sfxreduce_cli"]
SATURATED = 24
"""Between the strongest and the weakest colour of a pixel that is not taken for grey."""

PICTURE: Any = {"x": 0, "y": 0, "width": 1280, "height": 660}
"""Of the review page: what is below it is empty."""

LONG = "60"
"""Seconds that the pages of the run stay; they are ended as soon as they are not needed."""


class Terminal:
    """A command on a terminal: what it has printed, and the screen that this makes."""

    def __init__(self, *words: str, folder: Path) -> None:
        self.words = words
        self._printed = b""
        pid, self._screen = pty.fork()
        if not pid:
            os.chdir(folder)
            environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
            os.execve(sys.executable, [*SFXREDUCE, *words], environment)
        self._pid = pid

    def read(self, seconds: float) -> str:
        """Wait for more, and give all that was printed."""
        if select.select([self._screen], [], [], seconds)[0]:
            with suppress(OSError):  # the command has ended
                self._printed += os.read(self._screen, 1 << 16)
        return self._printed.decode(errors="replace")

    def until(self, pattern: str, *, seconds: float = 600) -> str:
        """Wait for a text; gives its first group."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := re.search(pattern, self.read(1.0)):
                return found[1] if found.groups() else found[0]
        raise TimeoutError(f"no '{pattern}' in {self.lines()}")

    def end(self) -> None:
        """Type Ctrl-C, and wait."""
        os.kill(self._pid, signal.SIGINT)
        deadline = time.monotonic() + 60
        while not os.waitpid(self._pid, os.WNOHANG)[0]:
            self.read(0.2)
            if time.monotonic() > deadline:
                os.kill(self._pid, signal.SIGKILL)

    def lines(self) -> list[str]:
        """Lines on the screen, colours included: what was drawn over is gone."""
        lines, at = [""], 0
        for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|[\r\n])", self._printed.decode()):
            up = re.fullmatch(r"\x1b\[(\d*)A", part)
            if part == "\n":
                at += 1
                lines += [""] * (at + 1 - len(lines))
            elif up:
                at -= int(up[1] or 1)
            elif part == "\x1b[2K":
                lines[at] = ""
            elif part == "\r":
                continue  # what follows either ends the line or clears it
            elif not part.startswith("\x1b[") or part.endswith("m"):
                lines[at] += part
        return lines


def main() -> None:
    """Make the run, and take every picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).resolve().parents[1] / "docs" / "images"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--chromium", type=Path, default=Path("/usr/bin/chromium"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        folder = Path(name)
        simulate = ["simulate", "--out", "run.zarr", "--experiment", "photosystem-i-8kev"]
        simulate += ["--events", str(EVENTS), "--hit-rate", "0.15", "--seed", "1"]
        subprocess.run([*SFXREDUCE, *simulate], cwd=folder, check=True, stdout=sys.stderr)
        browser = driver.chromium.launch(
            executable_path=str(options.chromium), args=["--no-sandbox"]
        )
        take_run(browser, folder, options.out)
        take_review(browser, folder, options.out)
        take_report(browser, folder, options.out)
        browser.close()


def take_run(browser: Browser, folder: Path, out: Path) -> None:
    """Page of the run while it is filtered, and the terminal after it."""
    words = ["filter", "--in", "run.zarr", "--out", "hits.zarr", "--report", "report.html"]
    terminal = Terminal(*words, "--linger", LONG, folder=folder)
    with opened(browser, terminal.until(r"this run: (http\S+)")) as page:
        wanted = page.locator("img[alt^='frame of event']").nth(11)
        deadline = time.monotonic() + 900
        while time.monotonic() < deadline and not wanted.is_visible():
            terminal.read(0.5)
            page.wait_for_timeout(200)
        save(page.screenshot(full_page=True), out / "run-page.png")
        terminal.until("the pages stay")
        lines = terminal.lines()
        terminal.end()
    shown = [line for line in lines if not re.search(r"127\.0\.0\.1|the pages stay|ssh -N", line)]
    draw_terminal([f"$ sfxreduce {' '.join(words)}", *shown], out / "terminal.svg")


def take_review(browser: Browser, folder: Path, out: Path) -> None:
    """An event near the threshold, labelled."""
    terminal = Terminal("review", "--in", "hits.zarr", "--against", "run.zarr", folder=folder)
    with opened(browser, terminal.until(r"(http\S+token=\S+)")) as page:
        heading = page.locator("h2").first
        heading.wait_for()
        for key in ("ArrowRight", "h", "ArrowLeft"):
            before = heading.inner_text()
            page.keyboard.press(key)
            page.locator(f"h2:not(:text-is('{before}'))").first.wait_for()
        page.wait_for_timeout(1500)
        save(page.screenshot(clip=PICTURE), out / "review.png")
    terminal.end()


def take_report(browser: Browser, folder: Path, out: Path) -> None:
    """The report on a desk and on a phone."""
    for width, height, name in ((1280, 1180, "report.png"), (390, 1500, "report-phone.png")):
        with opened(browser, (folder / "report.html").as_uri(), width, height) as page:
            save(page.screenshot(), out / name)


@contextmanager
def opened(browser: Browser, address: str, width: int = 1280, height: int = 820) -> Iterator[Page]:
    """A page, closed with the block."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(address)
    yield page
    page.close()


def save(png: bytes, path: Path) -> None:
    """Write a picture in few colours, which halves it."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    # Frames are grey and of all shades; what is written and drawn has few colours.
    pixels = np.asarray(picture).reshape(-1, 3)
    coloured = pixels[np.ptp(pixels, axis=1) > SATURATED].reshape(1, -1, 3)
    greys = np.repeat(np.linspace(0, 255, GREYS).astype(np.uint8), 3)
    others = Image.fromarray(coloured).quantize(COLOURS).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*greys.tolist(), *others[: 3 * COLOURS]])
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {picture.width} x {picture.height}, {path.stat().st_size:,} bytes")


def draw_terminal(lines: list[str], path: Path) -> None:
    """Write lines of a terminal as SVG, in whatever font the reader has."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for line in lines:
        console.print(Text.from_ansi(line))
    svg = console.export_svg(title="sfxreduce")
    svg = re.sub(r"@font-face \{.*?\}\s*|<!--.*?-->", "", svg, flags=re.DOTALL).replace(
        "Fira Code, ", ""
    )
    path.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")
    print(f"{path.name}: {len(lines)} lines, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
