"""The recall test: what an archive gives back is what counts, and what that proves is stated."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from archived import make_files, record
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from sfxreduce.archive.tape.backends import Backend, Capabilities, open_backend
from sfxreduce.archive.tape.recall import RecallResult, check_recall, recall_test
from sfxreduce.archive.tape.receipts import check_receipts
from sfxreduce.errors import OutputError, UsageError
from sfxreduce.io.files.durable import FileRecord

CONTENTS = {f"r1/c/{n}": bytes([n]) * (n + 1) for n in range(8)}
FILES = [record(path, data) for path, data in CONTENTS.items()]


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def archived(folder: Path, lie: str = "none") -> Backend:
    """An archive that was given all files, in two pools."""
    make_files(folder / "disk", CONTENTS)
    (folder / "tape").mkdir()
    backend = open_backend(f"lying:{lie}:{folder}/tape")
    for path in CONTENTS:
        for pool in ("a", "b"):
            backend.put(folder / "disk" / path, path, pool=pool)
    return backend


def in_pools(backend: Backend, *pools: str) -> list[tuple[Backend, str]]:
    return [(backend, pool) for pool in pools]


def recalled(backend: Backend, workdir: Path, *, n: int = 59, seed: int = 1) -> RecallResult:
    return recall_test(in_pools(backend, "a", "b"), FILES, n=n, seed=seed, workdir=workdir)


def codes(result: RecallResult, *, n: int = 59) -> set[str]:
    return {refusal.code for refusal in check_recall(result, FILES, n=n)}


def test_an_honest_archive_passes_and_the_work_folder_is_empty(
    tmp_path: Path, workdir: Path
) -> None:
    result = recalled(archived(tmp_path), workdir)
    assert sorted(result.paths) == sorted(CONTENTS)
    assert (result.tested, result.population, result.bad, result.failures) == (8, 8, 0, ())
    assert result.statement == (
        "All 8 files were recalled from every pool and hashed, none of them is bad."
    )
    assert codes(result) == set()
    assert list(workdir.iterdir()) == []
    json.dumps(asdict(result))


@pytest.mark.parametrize(
    ("lie", "kind", "expected"),
    [
        ("echoed-checksum", "checksum", {"R06", "R08"}),
        ("truncated-recall", "size", {"R06", "R08"}),
        ("no-recall", "lost", {"R08"}),
    ],
)
def test_lies_that_receipts_do_not_show_are_found_by_recalling(
    tmp_path: Path, workdir: Path, lie: str, kind: str, expected: set[str]
) -> None:
    backend = archived(tmp_path, lie)
    receipts = [backend.query(path, pool=pool) for path in CONTENTS for pool in ("a", "b")]
    assert check_receipts(receipts, FILES, copies=2, distinct_pools=True) == []
    result = recalled(backend, workdir)
    assert result.bad == len(FILES)
    assert {failure.kind for failure in result.failures} == {kind}
    assert {failure.pool for failure in result.failures} == {"a", "b"}
    assert codes(result) == expected
    assert "nothing may be released" in result.statement
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize("pool", ["a", "b"])
def test_one_bad_copy_of_one_file_is_enough(tmp_path: Path, workdir: Path, pool: str) -> None:
    backend = archived(tmp_path)
    (tmp_path / "tape" / pool / "r1/c/3").write_bytes(b"\7" * 4)
    result = recalled(backend, workdir)
    assert result.bad == 1
    assert [(failure.path, failure.pool) for failure in result.failures] == [("r1/c/3", pool)]
    assert codes(result) == {"R06", "R08"}


def test_fewer_files_than_asked_for_or_others_are_no_proof(tmp_path: Path, workdir: Path) -> None:
    result = recalled(archived(tmp_path), workdir, n=5)
    assert len(result.paths) == 5
    assert codes(result, n=5) == set()
    assert codes(result, n=6) == {"R08"}
    assert codes(replace(result, paths=(*result.paths[:4], "r1/other")), n=5) == {"R08"}
    assert codes(replace(result, paths=result.paths[:1] * 5), n=5) == {"R08"}
    assert codes(replace(result, population=5), n=5) == {"R08"}


class Silent:
    """An archive that gives back whatever it is asked for."""

    name = "silent"

    def __init__(self, files: list[FileRecord]) -> None:
        self.files = {file.path: file for file in files}

    def capabilities(self) -> Capabilities:
        return Capabilities(tool="silent")

    def recall(self, path: str, into: Path, *, pool: str) -> None:
        into.write_bytes(path.encode())


@pytest.mark.parametrize(
    ("n", "of", "share"), [(59, 1000, "5 %"), (299, 1000, "1 %"), (1, 1000, "95 %")]
)
def test_what_a_passed_test_proves(workdir: Path, n: int, of: int, share: str) -> None:
    files = [record(f"c/{k}", f"c/{k}".encode()) for k in range(of)]
    silent: object = Silent(files)
    result = recall_test([(silent, "a")], files, n=n, seed=3, workdir=workdir)  # type: ignore[list-item]
    assert f"at most {share} of the files are bad, at 95 % confidence" in result.statement
    assert "does not say that it read the medium" in result.statement
    # Were more of them bad, so clean a draw would be a coincidence of less than one in twenty.
    worse = int(of * float(share[:-2]) / 100) + 1
    assert hypergeom.pmf(0, of, worse, n) <= 0.05


@given(st.integers(1, 70), st.integers(0, 2**32), st.permutations(FILES))
def test_the_draw_is_that_of_the_seed_whatever_the_order_of_the_files(
    tmp_path_factory: pytest.TempPathFactory, n: int, seed: int, files: list[FileRecord]
) -> None:
    workdir = tmp_path_factory.mktemp("work")
    drawn = []
    for order in (FILES, files):
        silent: object = Silent(order)
        result = recall_test([(silent, "a")], order, n=n, seed=seed, workdir=workdir)  # type: ignore[list-item]
        drawn.append(result.paths)
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == len(drawn[0]) == min(n, 8)


def test_every_file_may_be_drawn(workdir: Path) -> None:
    silent: object = Silent(FILES)
    drawn = {
        recall_test([(silent, "a")], FILES, n=1, seed=seed, workdir=workdir).paths  # type: ignore[list-item]
        for seed in range(80)
    }
    assert drawn == {(file.path,) for file in FILES}


def test_several_archives_are_each_tested_for_its_own_pool(tmp_path: Path, workdir: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = archived(tmp_path / "one"), archived(tmp_path / "two")
    (tmp_path / "two" / "tape" / "a" / "r1/c/0").unlink()
    result = recall_test([(one, "a"), (two, "b")], FILES, n=59, seed=0, workdir=workdir)
    assert result.bad == 0
    result = recall_test([(one, "b"), (two, "a")], FILES, n=59, seed=0, workdir=workdir)
    assert [(failure.backend, failure.kind) for failure in result.failures] == [(two.name, "lost")]


def test_what_cannot_be_tested_is_said(tmp_path: Path, workdir: Path) -> None:
    backend = archived(tmp_path)
    for files, n, seed in (([], 1, 1), (FILES, 0, 1), (FILES, 1, -1)):
        with pytest.raises(UsageError, match="recall test: expected files"):
            recall_test([(backend, "a")], files, n=n, seed=seed, workdir=workdir)
    with pytest.raises(OutputError, match="cannot be written"):
        recall_test([(backend, "a")], FILES, n=1, seed=1, workdir=tmp_path / "none")
