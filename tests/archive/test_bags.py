"""Bags and packages: what they name is what is there, and nothing leaves its folder."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import unicodedata
from dataclasses import asdict
from pathlib import Path
from urllib.parse import unquote, urlparse

import bagit
import pytest
from archived import SAFE_PATHS, make_files, record, snapshot
from bagged import decode_path, read_bag, validate_bag
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sfxreduce.archive.evidence.documents import (
    PackagePaper,
    PackedFile,
    paper_bytes,
    read_paper,
)
from sfxreduce.archive.rules.refusals import ArchiveRefused
from sfxreduce.archive.tape.bags import PLAN_FILE, write_bag
from sfxreduce.archive.tape.packages import Package, pack
from sfxreduce.archive.tape.paths import check_path, encode_path
from sfxreduce.archive.tape.tars import read_member, sum_package, write_package
from sfxreduce.errors import OutputExists, SchemaError, SourceError, UsageError
from sfxreduce.io.files.durable import FileRecord

INFO = {"External-Identifier": "exp/r1", "Bagging-Date": "2026-01-02"}
CONTENTS = {
    "zarr.json": b"{}",
    "frames/c/0/0/0": bytes(range(256)) * 7,
    "frames/c/1/0/0": b"shard",
    "empty": b"",
    "with space/100%.h5": b"percent",
    "ångström/é.cxi": b"accents",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "run.zarr"
    make_files(folder, CONTENTS)
    return folder


@pytest.fixture
def bag(tmp_path: Path, source: Path) -> Path:
    folder = tmp_path / "plan"
    write_bag(
        folder,
        files=[record(path, data) for path, data in CONTENTS.items()],
        source=source,
        info=INFO,
        tag_files={PLAN_FILE: b'{"plan": 1}\n'},
    )
    return folder


def fetch(bag: Path) -> None:
    """Bring the payload as fetch.txt says, as any program for bags would."""
    for line in (bag / "fetch.txt").read_text().splitlines():
        url, size, path = line.split(maxsplit=2)
        target = bag / decode_path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(unquote(urlparse(url).path), target)
        assert target.stat().st_size == int(size)


# --- paths -----------------------------------------------------------------------------------


@given(st.text())
def test_every_text_survives_the_writing_of_a_manifest(text: str) -> None:
    written = encode_path(text)
    assert decode_path(written) == text
    assert "\n" not in written
    assert "\r" not in written


@given(st.text(st.characters() | st.sampled_from("./\0\n\r%~ "), max_size=20))
@example("..")
@example("a/../b")
@example("/etc/passwd")
@example("a//b")
@example("a/./b")
@example("a\nb")
@example("a\0b")
@example("a ")
@example("")
@example("\udcff")
def test_a_path_that_is_accepted_stays_below_its_folder(path: str) -> None:
    try:
        check_path(path, where="plan")
    except SchemaError:
        return
    root = "/data/of/all"
    assert not path.startswith("/")
    joined = os.path.normpath(f"{root}/{path}")
    assert joined.startswith(root + "/")
    assert os.path.relpath(joined, root) == path
    assert not set(path) & set("\0\n\r")
    path.encode()


@pytest.mark.parametrize(
    "path", ["..", "a/../b", "/etc", "a//b", "./a", "a\nb", "a\0b", "a\rb", "a ", "", "\udcff"]
)
def test_unsafe_paths_are_refused(path: str) -> None:
    with pytest.raises(SchemaError, match="expected a relative, normalised path"):
        check_path(path, where="plan")


def test_too_long_paths_are_refused() -> None:
    check_path("a" * 255, where="plan")
    with pytest.raises(SchemaError, match="too long"):
        check_path("a" * 256, where="plan")
    with pytest.raises(SchemaError, match="too long"):
        check_path("/".join(["a" * 200] * 30), where="plan")


# --- bags ------------------------------------------------------------------------------------


def test_a_bag_is_valid_once_its_payload_was_fetched_and_not_before(bag: Path) -> None:
    assert validate_bag(bag) != []
    fetch(bag)
    assert validate_bag(bag) == []


def test_bagit_itself_agrees_where_no_path_has_a_percent_sign(tmp_path: Path, source: Path) -> None:
    plain = {path: data for path, data in CONTENTS.items() if "%" not in path}
    folder = tmp_path / "plain"
    write_bag(
        folder,
        files=[record(path, data) for path, data in plain.items()],
        source=source,
        info=INFO,
        tag_files={},
    )
    assert not bagit.Bag(str(folder)).is_valid()
    fetch(folder)
    found = bagit.Bag(str(folder))
    assert found.validate() is True
    assert found.version_info == (1, 0)
    assert found.info["Payload-Oxum"] == f"{sum(map(len, plain.values()))}.{len(plain)}"
    assert found.info["External-Identifier"] == "exp/r1"


def test_a_bag_whose_payload_was_hard_linked_is_valid(bag: Path, source: Path) -> None:
    for path in CONTENTS:
        target = bag / "data" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(source / path)
    assert validate_bag(bag) == []


@pytest.mark.parametrize(
    "name",
    [
        "data/frames/c/0/0/0",
        "data/with space/100%.h5",
        PLAN_FILE,
        "ro-crate-metadata.json",
        "bag-info.txt",
        "fetch.txt",
        "manifest-sha256.txt",
        "bagit.txt",
    ],
)
def test_one_changed_byte_makes_a_bag_invalid(bag: Path, name: str) -> None:
    fetch(bag)
    data = bytearray((bag / name).read_bytes())
    data[-2] ^= 1
    (bag / name).write_bytes(bytes(data))
    assert validate_bag(bag) != []


def test_what_lacks_or_adds_a_file_is_no_valid_bag(bag: Path) -> None:
    fetch(bag)
    (bag / "data" / "more").write_bytes(b"")
    assert validate_bag(bag) != []
    (bag / "data" / "more").unlink()
    assert validate_bag(bag) == []
    for name in ("tagmanifest-sha256.txt", "bag-info.txt", "data/empty"):
        kept = (bag / name).read_bytes()
        (bag / name).unlink()
        assert validate_bag(bag) != [], name
        (bag / name).write_bytes(kept)
    assert validate_bag(bag) == []


def test_a_bag_is_read_as_it_was_written(bag: Path) -> None:
    expected = sorted((record(p, d) for p, d in CONTENTS.items()), key=lambda f: f.path)
    assert list(read_bag(bag)) == expected


def test_the_same_plan_is_the_same_bag_and_none_is_replaced(
    tmp_path: Path, source: Path, bag: Path
) -> None:
    files = [record(path, data) for path, data in reversed(CONTENTS.items())]
    again = tmp_path / "again"
    write_bag(again, files=files, source=source, info=INFO, tag_files={PLAN_FILE: b'{"plan": 1}\n'})
    for name in sorted(p.name for p in bag.iterdir() if p.is_file()):
        assert (again / name).read_bytes() == (bag / name).read_bytes()
    with pytest.raises(OutputExists, match="already exists"):
        write_bag(again, files=files, source=source, info=INFO, tag_files={})


def test_writing_a_bag_leaves_the_source_alone(tmp_path: Path, source: Path) -> None:
    before = snapshot(source)
    files = [record(path, data) for path, data in CONTENTS.items()]
    write_bag(tmp_path / "b", files=files, source=source, info=INFO, tag_files={})
    assert snapshot(source) == before
    with pytest.raises(UsageError, match="overlaps"):
        write_bag(source / "b", files=files, source=source, info=INFO, tag_files={})
    assert snapshot(source) == before


@given(st.lists(SAFE_PATHS, unique_by=lambda p: unicodedata.normalize("NFC", p), max_size=6))
@settings(max_examples=40)
def test_bags_of_any_safe_paths_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, paths: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("bag")
    files = [record(path, path.encode()) for path in paths]
    write_bag(folder / "b", files=files, source=folder / "s", info=INFO, tag_files={})
    assert list(read_bag(folder / "b")) == sorted(files, key=lambda f: f.path)


def test_what_cannot_be_in_a_bag_is_refused(tmp_path: Path) -> None:
    def write(**changed: object) -> None:
        given = {"files": [], "source": tmp_path / "s", "info": INFO, "tag_files": {}, **changed}
        write_bag(tmp_path / "b", **given)  # type: ignore[arg-type]

    with pytest.raises(SchemaError, match="leaves its folder"):
        write(files=[record("../up", b"")])
    with pytest.raises(SchemaError, match="one path to other systems"):
        write(files=[record("é", b""), record("e\u0301", b"")])
    with pytest.raises(SchemaError, match="one path"):
        write(files=[record("a", b""), record("a", b"")])
    with pytest.raises(UsageError, match="External-Identifier"):
        write(info={})
    with pytest.raises(UsageError, match="cannot hold"):
        write(info={**INFO, "Note": "two\nlines"})
    with pytest.raises(UsageError, match="a file of the bag itself"):
        write(tag_files={"manifest-md5.txt": b""})
    with pytest.raises(UsageError, match="absolute path"):
        write(source=Path("run"))
    assert not (tmp_path / "b").exists()


def test_the_crate_names_every_file(bag: Path) -> None:
    crate = json.loads((bag / "ro-crate-metadata.json").read_text())
    things = {thing["@id"]: thing for thing in crate["@graph"]}
    assert things["ro-crate-metadata.json"]["about"] == {"@id": "./"}
    assert things["./"]["datePublished"] == "2026-01-02"
    assert {unquote(p["@id"]) for p in things["./"]["hasPart"]} == {f"data/{p}" for p in CONTENTS}


# --- packages --------------------------------------------------------------------------------

SIZES = st.lists(st.integers(0, 120), max_size=30)


@given(SIZES, st.integers(1, 200))
def test_every_file_is_in_one_package_of_the_size_asked_for(sizes: list[int], target: int) -> None:
    files = [FileRecord(path=f"c/{n}", size=size, sha256="") for n, size in enumerate(sizes)]
    packages = pack(files, target_bytes=target)
    assert [file for package in packages for file in package.files] == files
    held = [sum(file.size for file in package.files) for package in packages]
    for package, n_bytes in zip(packages, held, strict=True):
        assert n_bytes <= target or len(package.files) == 1
    # None could have taken the first file of the next one.
    for n_bytes, after in zip(held, packages[1:], strict=False):
        assert n_bytes + after.files[0].size > target
    assert len({package.name for package in packages}) == len(packages)


@given(st.lists(SAFE_PATHS, min_size=1, max_size=5, unique=True), st.data())
@settings(max_examples=40)
def test_places_in_a_package_are_those_that_tar_finds(
    tmp_path_factory: pytest.TempPathFactory, paths: list[str], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("package")
    # A path may be a folder of another one here, so the files lie flat.
    contents = {f"{n}-{p.replace('/', '_')}"[:60]: p.encode() * 99 for n, p in enumerate(paths)}
    (package,) = pack(make_files(folder / "s", contents))
    tar = write_package(package, source=folder / "s", folder=folder)
    assert tar == record(package.name, (folder / package.name).read_bytes())
    with tarfile.open(folder / package.name) as opened:
        assert {m.name: m.offset_data for m in opened} == dict(package.offsets)
    path = data.draw(st.sampled_from(sorted(contents)))
    read_member(folder / package.name, package, path, into=folder / "one")
    assert (folder / "one").read_bytes() == contents[path]


class Nowhere(io.RawIOBase):
    def write(self, data: bytes) -> int:  # type: ignore[override]
        return len(data)

    def tell(self) -> int:
        return 0


def test_long_names_and_huge_files_keep_their_places() -> None:
    files = [
        FileRecord(path="/".join(["å" * 100] * 3), size=3, sha256=""),
        FileRecord(path="huge", size=9 * 2**30, sha256=""),
        FileRecord(path="last", size=1, sha256=""),
    ]
    package = Package(name="p.tar", files=tuple(files))
    # tar itself counts where it is; what it writes goes nowhere.
    with tarfile.open(fileobj=Nowhere(), mode="w", format=tarfile.PAX_FORMAT) as tar:
        for file in files:
            header = tarfile.TarInfo(file.path)
            header.size = file.size
            tar.addfile(header)
            assert package.offsets[file.path] == tar.offset
            tar.offset += -(-file.size // 512) * 512
    assert package.size == tar.offset


def test_a_package_is_the_same_bytes_whenever_it_is_written(tmp_path: Path) -> None:
    (package,) = pack(make_files(tmp_path / "s", CONTENTS))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first = write_package(package, source=tmp_path / "s", folder=tmp_path / "a")
    os.utime(tmp_path / "s" / "zarr.json", (1, 1))
    assert write_package(package, source=tmp_path / "s", folder=tmp_path / "b") == first
    assert sum_package(package, source=tmp_path / "s") == first


@pytest.mark.parametrize("changed", [b"shorT", b"shor", b"shorter", None])
def test_a_file_that_changed_is_not_packed(tmp_path: Path, changed: bytes | None) -> None:
    (package,) = pack(make_files(tmp_path / "s", CONTENTS))
    (tmp_path / "s" / "frames/c/1/0/0").unlink()
    if changed is not None:
        (tmp_path / "s" / "frames/c/1/0/0").write_bytes(changed)
    with pytest.raises(SourceError, match="c/1/0/0"):
        write_package(package, source=tmp_path / "s", folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_damaged_member_is_not_taken_out(tmp_path: Path) -> None:
    (package,) = pack(make_files(tmp_path / "s", CONTENTS))
    write_package(package, source=tmp_path / "s", folder=tmp_path)
    data = bytearray((tmp_path / package.name).read_bytes())
    data[package.offsets["zarr.json"]] ^= 1
    (tmp_path / package.name).write_bytes(bytes(data))
    with pytest.raises(SourceError, match="not what was archived"):
        read_member(tmp_path / package.name, package, "zarr.json", into=tmp_path / "one")
    assert not (tmp_path / "one").exists()
    read_member(tmp_path / package.name, package, "frames/c/1/0/0", into=tmp_path / "one")
    assert (tmp_path / "one").read_bytes() == b"shard"


def test_an_index_is_read_back_and_a_changed_one_refused() -> None:
    packages = pack([record(p, d) for p, d in CONTENTS.items()], target_bytes=1800)
    assert len(packages) == 2
    papers = [
        PackagePaper(
            name=package.name,
            size=package.size,
            sha256="0" * 64,
            files=tuple(
                PackedFile(**asdict(f), offset=package.offsets[f.path]) for f in package.files
            ),
        )
        for package in packages
    ]
    index = [json.loads(paper_bytes(paper)) for paper in papers]

    def read(facts: object) -> Package:
        return read_paper(PackagePaper, json.dumps(facts), where="index").package

    assert [read(facts) for facts in index] == packages
    index[0]["files"][0]["offset"] += 512
    with pytest.raises(SchemaError, match="the index was changed"):
        read(index[0])
    index[0]["files"][0]["path"] = "../up"
    with pytest.raises(SchemaError, match="leaves its folder"):
        read(index[0])
    for text in ("null", "[null]", "[{}]", '{"name": "p", "files": [{}]}', '{"name": 1}', "7"):
        with pytest.raises(ArchiveRefused, match=r"R16: .*index"):
            read(json.loads(text))
