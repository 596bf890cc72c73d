"""Inputs that were made to do harm, or are broken: refused with a line, or kept as undecided."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hostile import run_all
from hostile.corpus import CANARY, CASES, SECRET, SECRET_WORDS, Case, make_good_run

PROGRESS = re.compile(r"\s*\w+:? [\d,]+(?: of |/)[\d,]+.*")
MOST_BYTES = 1_300_000_000


@dataclass(frozen=True, kw_only=True)
class Met:
    """A hostile input, and what came of it."""

    case: Case
    folder: Path
    result: dict[str, Any]
    before: dict[str, str]


def picture(folder: Path) -> dict[str, str]:
    """What lies in a folder: kinds, and checksums of files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = f"link to {path.readlink()}"
        elif path.is_file():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path)] = oct(path.stat().st_mode)
    return found


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Met]:
    """All of them, one after the other in one driver."""
    root = tmp_path_factory.mktemp("hostile")
    make_good_run(root)
    cases, before = {}, {}
    for name, maker in CASES.items():
        folder = root / name
        folder.mkdir()
        cases[name] = maker(folder)
        before[name] = picture(folder)
    results = run_all([case.arguments for case in cases.values()])
    return {
        name: Met(case=case, folder=root / name, result=result, before=before[name])
        for (name, case), result in zip(cases.items(), results, strict=True)
    }


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_input_is_refused_or_kept_as_undecided(name: str, met: dict[str, Met]) -> None:
    case, folder, result = met[name].case, met[name].folder, met[name].result
    told = f"{result['stdout']}\n{result['stderr']}"
    assert not result["timed_out"], told
    assert "Traceback" not in told, told
    assert "\x1b" not in told
    assert result["status"] == case.status, told
    if case.status:
        lines = [s for s in result["stderr"].splitlines() if s and not PROGRESS.fullmatch(s)]
        # A verification lists all that is wrong; everything else ends at the first.
        assert len(lines) == 1 or (case.status == 4 and lines), told
        assert all(line.startswith("sfxreduce: ") for line in lines), told
        assert any(case.says in line for line in lines), told
        after = picture(folder)
    else:
        assert json.loads(result["stdout"])["undecided"] == case.undecided
        outputs = str(folder / "hits.zarr")
        after = {p: h for p, h in picture(folder).items() if not p.startswith(outputs)}
    assert after == met[name].before
    assert result["peak_bytes"] < MOST_BYTES, result["peak_bytes"]


def test_nothing_was_executed_and_nothing_read_that_is_secret(met: dict[str, Met]) -> None:
    root = next(iter(met.values())).folder.parent
    assert not (root / CANARY).exists()
    assert (root / SECRET).read_bytes() == SECRET_WORDS * 1000
    words = SECRET_WORDS[:20]
    for one in met.values():
        assert words.decode() not in one.result["stdout"] + one.result["stderr"]
        for path in one.folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert words not in path.read_bytes(), path
