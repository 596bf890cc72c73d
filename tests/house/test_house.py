"""The house is as its page draws it: few rooms, no knots, short functions, unique names."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

import sfxreduce
import sfxreduce_cli

PACKAGE = Path(sfxreduce.__file__).parent
CLI = Path(sfxreduce_cli.__file__ or "").parent
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "architecture.md"
PACKAGES = {
    "archive", "audit", "cluster", "decisions", "io", "pipeline", "quality", "report", "run",
    "scorers", "simulate", "train",
}  # fmt: skip
MOST_PAIRS = 80
MOST_LINES = 60


def modules(*folders: Path) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            yield path, ast.parse(path.read_text())


def listed(folder: Path) -> Iterator[str]:
    """Packages and modules of a folder, as the page writes them: a line for each package."""
    for path in sorted(p.parent for p in folder.rglob("__init__.py")):
        names = sorted(p.stem for p in path.glob("*.py") if p.stem != "__init__")
        depth = len(path.relative_to(folder).parts)
        yield f"{'  ' * depth}{path.name}/ {' '.join(names)}".rstrip()


def test_the_top_floor_has_twelve_rooms() -> None:
    shown = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    files = {"__init__.py", "__init__.pyi", "_numba.py", "errors.py", "py.typed"}
    assert shown == PACKAGES | files


def test_the_page_prints_the_tree_that_is_there() -> None:
    block = re.search(r"^```text\n(sfxreduce/.*?)^```", PAGE.read_text(), re.M | re.S)
    assert block is not None
    printed = [re.sub(r" +", " ", line.strip()) for line in block[1].splitlines()]
    expected = [re.sub(r" +", " ", line.strip()) for line in listed(PACKAGE)]
    assert sorted(printed) == sorted(expected)


def test_few_rooms_import_one_another() -> None:
    graph = grimp.build_graph("sfxreduce")
    pairs = set()
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            ours, theirs = ((*name.split("."), "")[1] for name in (module, other))
            if ours and theirs and ours != theirs:
                pairs.add((ours, theirs))
    assert 0 < len(pairs) <= MOST_PAIRS


def test_no_module_imports_itself_in_a_circle() -> None:
    # Imports inside functions count: grimp reads them, too.
    graph = grimp.build_graph("sfxreduce")
    left = {
        module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules
    }
    while free := {module for module, others in left.items() if not others & left.keys()}:
        for module in free:
            del left[module]
    assert not left, f"these import one another: {sorted(left)}"


def test_every_class_has_a_name_of_its_own() -> None:
    names = Counter(
        node.name
        for _, tree in modules(PACKAGE)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_no_function_is_longer_than_a_screen() -> None:
    long = []
    for path, tree in modules(PACKAGE, CLI):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                lines = (node.end_lineno or first) - first + 1
                if lines > MOST_LINES:
                    long.append(f"{path.name}:{node.name} {lines}")
    assert long == []


def test_nothing_is_left_to_do() -> None:
    assert [path for path, _ in modules(PACKAGE, CLI) if "TODO" in path.read_text()] == []


@pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs the checkout")
def test_the_contracts_are_few_and_short() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    contracts = tomllib.loads(text)["tool"]["importlinter"]["contracts"]
    blocks = text.split("[[tool.importlinter.contracts]]")[1:]
    assert len(contracts) == len(blocks) == 5
    assert max(len(block.strip().splitlines()) for block in blocks) <= 14
