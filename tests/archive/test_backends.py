"""Archives: what was put is what is there, and lies about it are found out."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
from archived import make_files, record, snapshot
from hypothesis import given
from hypothesis import strategies as st

from sfxreduce.archive.tape.backends import open_backend
from sfxreduce.archive.tape.backends.lying import LIES
from sfxreduce.archive.tape.receipts import (
    Copy,
    Receipt,
    check_receipts,
    receipt_from_json,
    receipt_name,
    receipt_to_json,
)
from sfxreduce.errors import (
    ArchiveError,
    OutputError,
    OutputExists,
    RefusedError,
    SchemaError,
    SourceError,
    UsageError,
)
from sfxreduce.io.files import durable as io_files

DATA = bytes(range(256)) * 20
FILE = record("exp/r1/a.h5", DATA)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    make_files(tmp_path / "disk", {"a.h5": DATA})
    return tmp_path / "disk" / "a.h5"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "tape").mkdir()
    return tmp_path / "tape"


def good(pool: str = "a", **changed: object) -> Receipt:
    receipt = Receipt(
        backend="posix:/tape",
        path=FILE.path,
        size=FILE.size,
        algorithm="sha256",
        value=FILE.sha256,
        value_source="reread",
        state="ONTAPE",
        copies=(Copy(pool=pool, medium=f"VOL-{pool}", archive_id=f"id-{pool}"),),
        queried_at_ns=10,
        tool="test",
        raw_sha256="",
    )
    return replace(receipt, **changed)  # type: ignore[arg-type]


def codes(receipts: list[Receipt], *, copies: int = 2, distinct_pools: bool = True) -> list[str]:
    refusals = check_receipts(receipts, [FILE], copies=copies, distinct_pools=distinct_pools)
    return sorted({refusal.code for refusal in refusals})


# --- receipts --------------------------------------------------------------------------------


def test_two_good_receipts_from_two_pools_are_enough() -> None:
    assert codes([good("a"), good("b")]) == []
    assert codes([good("a", copies=(*good("a").copies, *good("b").copies))]) == []


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"state": "BUFFER"}, "R05"),
        ({"state": "UNKNOWN"}, "R05"),
        ({"value": "0" * 64}, "R06"),
        ({"value": ""}, "R06"),
        ({"size": 1}, "R06"),
        ({"algorithm": "adler32"}, "R06"),
        ({"algorithm": "md5", "value": FILE.sha256}, "R06"),
        ({"value_source": "catalogue"}, "R06"),
        ({"path": "exp/r1/b.h5"}, "R04"),
    ],
)
def test_one_wrong_receipt_is_enough_to_refuse(wrong: dict[str, object], code: str) -> None:
    assert code in codes([good("a"), good("b", **wrong)])
    # However many good ones there are besides.
    assert code in codes([good("a"), good("b"), good("c"), good("d", **wrong)])


def test_a_file_without_receipt_is_refused() -> None:
    assert codes([]) == ["R04"]
    refusals = check_receipts([good("a"), good("b")], [FILE, record("x", b"")], copies=2,
                              distinct_pools=True)  # fmt: skip
    assert [(refusal.code, "x: there is none" in refusal.message) for refusal in refusals] == [
        ("R04", True)
    ]


@pytest.mark.parametrize(
    ("copies", "distinct", "enough"),
    [
        ([("a", "V1"), ("b", "V2")], True, True),
        ([("a", "V1"), ("a", "V2")], True, False),
        ([("a", "V1"), ("a", "V2")], False, True),
        ([("a", "V1"), ("b", "V1")], True, False),
        ([("a", "V1"), ("b", "V1")], False, False),
        ([("a", ""), ("b", "")], True, True),
        ([("a", ""), ("a", "")], False, False),
        ([("a", "V1"), ("a", "")], False, False),
        ([("a", "V1")], False, False),
        ([], False, False),
        # Taking the first that fits would miss that the last two are apart.
        ([("a", "V1"), ("a", "V2"), ("b", "V1")], True, True),
    ],
)
def test_copies_count_that_cannot_be_lost_together(
    copies: list[tuple[str, str]], distinct: bool, enough: bool
) -> None:
    for order in permutations(copies):
        told = tuple(
            Copy(pool=pool, medium=medium, archive_id=str(n))
            for n, (pool, medium) in enumerate(order)
        )
        found = codes([good(copies=told)], distinct_pools=distinct)
        assert found == ([] if enough else ["R07"])


def test_pools_of_two_archives_are_apart_whatever_they_are_called() -> None:
    unnamed = (Copy(pool="main", medium="", archive_id="1"),)
    there = good(copies=unnamed, backend="exec:/x")
    assert codes([good(copies=unnamed), there]) == []
    assert codes([good(copies=unnamed), replace(there, backend="posix:/tape")]) == ["R07"]


def test_the_latest_word_about_a_copy_counts() -> None:
    early = good("a", state="BUFFER", queried_at_ns=1)
    assert codes([good("a"), early, good("b")]) == []
    late = good("a", state="BUFFER", queried_at_ns=99)
    assert codes([late, good("a"), good("b")]) == ["R05"]


RECEIPTS = st.builds(
    Receipt,
    backend=st.text(max_size=9),
    path=st.text(max_size=9),
    size=st.integers(0, 2**60),
    algorithm=st.text(max_size=9),
    value=st.text("0123456789abcdefABCDEF", max_size=64),
    value_source=st.sampled_from(["reread", "catalogue"]),
    state=st.sampled_from(["ONTAPE", "BUFFER", "UNKNOWN"]),
    copies=st.lists(
        st.builds(Copy, pool=st.text(max_size=3), medium=st.text(max_size=3),
                  archive_id=st.text(max_size=3)), max_size=3,
    ).map(tuple),
    queried_at_ns=st.integers(0, 2**62),
    tool=st.text(max_size=9),
    raw_sha256=st.text(max_size=9),
)  # fmt: skip


@given(RECEIPTS)
def test_receipts_survive_json(receipt: Receipt) -> None:
    facts = json.loads(json.dumps(receipt_to_json(receipt)))
    assert receipt_from_json(facts) == receipt
    assert receipt_name(receipt).endswith(".json")


@given(st.lists(RECEIPTS, max_size=5))
def test_whatever_an_archive_says_nothing_but_proof_is_accepted(receipts: list[Receipt]) -> None:
    # None of these can be two proven copies: their checksums are too short, or not ours.
    refused = check_receipts(receipts, [FILE], copies=2, distinct_pools=True)
    assert {refusal.code for refusal in refused} & {"R04", "R05", "R06", "R07"}


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(receipt_to_json(good()))), JUNK)
def test_a_receipt_with_a_field_of_another_kind_is_refused_or_the_same(
    field: str, junk: object
) -> None:
    facts = {**receipt_to_json(good()), field: junk}
    try:
        receipt = receipt_from_json(facts)
    except SchemaError:
        return
    assert receipt_to_json(receipt) == facts


@given(JUNK)
def test_what_is_no_receipt_is_refused(junk: object) -> None:
    with pytest.raises(SchemaError, match="not a receipt as agreed"):
        receipt_from_json(junk)  # type: ignore[arg-type]


def test_receipts_with_more_or_fewer_fields_are_refused() -> None:
    facts = receipt_to_json(good())
    for name in facts:
        with pytest.raises(SchemaError, match=f"'{name}': field required"):
            receipt_from_json({k: v for k, v in facts.items() if k != name})
    with pytest.raises(SchemaError, match="'trust': unexpected keyword argument"):
        receipt_from_json({**facts, "trust": True})


# --- a folder as an archive ------------------------------------------------------------------


def test_what_is_put_can_be_asked_after_and_recalled(root: Path, local: Path) -> None:
    backend = open_backend(f"posix:{root}")
    before = snapshot(local.parent)
    put = backend.put(local, FILE.path, pool="a")
    other = backend.put(local, FILE.path, pool="b")
    assert codes([put], copies=1) == []
    # Two pools in one folder counted as two copies, which one 'rm -r' or one disk would take.
    assert codes([put, other]) == ["R07"]
    (root.parent / "second").mkdir()
    apart = open_backend(f"posix:{root.parent}/second").put(local, FILE.path, pool="b")
    assert codes([put, apart]) == []
    assert replace(backend.query(FILE.path, pool="a"), queried_at_ns=0) == replace(
        put, queried_at_ns=0
    )
    assert backend.capabilities().rereads
    into = root.parent / "back"
    backend.recall(FILE.path, into, pool="b")
    assert into.read_bytes() == DATA
    assert snapshot(local.parent) == before
    assert sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()) == [
        f"a/{FILE.path}",
        f"b/{FILE.path}",
    ]


def test_putting_again_changes_nothing_and_another_file_is_refused(root: Path, local: Path) -> None:
    backend = open_backend(f"posix:{root}")
    backend.put(local, FILE.path, pool="a")
    before = snapshot(root)
    backend.put(local, FILE.path, pool="a")
    assert snapshot(root) == before
    local.write_bytes(b"another")
    with pytest.raises(OutputExists, match="another file lies there"):
        backend.put(local, FILE.path, pool="a")
    assert snapshot(root) == before


def test_a_receipt_says_what_is_on_the_disk_now(root: Path, local: Path) -> None:
    backend = open_backend(f"posix:{root}")
    backend.put(local, FILE.path, pool="a")
    (root / "a" / FILE.path).write_bytes(DATA[:-1])
    assert codes([backend.query(FILE.path, pool="a")], copies=1) == ["R06"]
    (root / "a" / FILE.path).unlink()
    with pytest.raises(ArchiveError, match="there is no file"):
        backend.query(FILE.path, pool="a")
    with pytest.raises(ArchiveError, match="there is no file"):
        backend.recall(FILE.path, root.parent / "back", pool="a")


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("call", ["fsync", "replace", "sync_folder", "sha256_file"])
def test_a_crash_while_putting_leaves_no_half_file_and_can_be_repeated(
    root: Path, local: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise Interrupted

    backend = open_backend(f"posix:{root}")
    (root / "a" / "exp" / "r1").mkdir(parents=True)
    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", crash)
        elif call == "replace":
            patch.setattr(Path, "replace", crash)
        elif call == "sync_folder":
            patch.setattr("sfxreduce.archive.tape.backends.posix.sync_folder", crash)
        else:
            patch.setattr(io_files, "sha256_file", crash)
        with pytest.raises(Interrupted):
            backend.put(local, FILE.path, pool="a")
    left = [p for p in root.rglob("*") if p.is_file()]
    assert all(p.read_bytes() == DATA and p.name == "a.h5" for p in left)
    assert codes([backend.put(local, FILE.path, pool="a")], copies=1) == []


def test_a_put_that_is_killed_leaves_nothing_under_the_name_and_is_swept_later(
    root: Path, local: Path
) -> None:
    killed = (
        "import os, signal, pathlib, sys\n"
        "from sfxreduce.archive.tape.backends import open_backend\n"
        "backend = open_backend(f'posix:{sys.argv[1]}')\n"
        "pathlib.Path(sys.argv[1], 'a/exp/r1').mkdir(parents=True)\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "backend.put(pathlib.Path(sys.argv[2]), sys.argv[3], pool='a')\n"
    )
    command = [sys.executable, "-c", killed, str(root), str(local), FILE.path]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (left,) = (root / "a" / "exp" / "r1").iterdir()
    assert left.name.endswith(".partial")
    backend = open_backend(f"posix:{root}")
    with pytest.raises(ArchiveError, match="there is no file"):
        backend.query(FILE.path, pool="a")
    assert codes([backend.put(local, FILE.path, pool="a")], copies=1) == []
    # Nobody holds its lock any more.
    assert not left.exists()


def test_a_disk_that_returns_other_bytes_is_noticed(
    root: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io_files, "sha256_file", lambda path: "0" * 64)
    with pytest.raises(Exception, match="what was read back differs"):
        open_backend(f"posix:{root}").put(local, FILE.path, pool="a")
    assert [p for p in root.rglob("*") if p.is_file()] == []


def test_paths_and_links_that_leave_the_pool_are_refused(root: Path, local: Path) -> None:
    backend = open_backend(f"posix:{root}")
    for path in ("../up", "/etc/x", "a/../../b", "a\nb"):
        with pytest.raises(SchemaError, match="relative, normalised"):
            backend.put(local, path, pool="a")
    for pool in ("..", "a/b", "", ".hidden", "-x", "a b"):
        with pytest.raises(UsageError, match="choose another name"):
            backend.put(local, "x", pool=pool)
    (root / "a").mkdir()
    (root.parent / "elsewhere").mkdir()
    (root / "a" / "link").symlink_to(root.parent / "elsewhere")
    (root / "b").symlink_to(root.parent / "elsewhere")
    for path, pool in (("link/x", "a"), ("x", "b")):
        with pytest.raises(ArchiveError, match="a link leads out"):
            backend.put(local, path, pool=pool)
    (root / "a" / "file").symlink_to(local)
    with pytest.raises(ArchiveError, match="there is no file"):
        backend.query("file", pool="a")
    assert list((root.parent / "elsewhere").iterdir()) == []


def test_two_pools_on_one_device_are_refused_if_asked(root: Path, local: Path) -> None:
    backend = open_backend(f"posix:{root}?separate-devices")
    first = backend.put(local, FILE.path, pool="a")
    with pytest.raises(ArchiveError, match="lie on one device"):
        backend.put(local, FILE.path, pool="b")
    # Two archives on one device do not get past the receipts either.
    (root.parent / "tape2").mkdir()
    second = open_backend(f"posix:{root.parent}/tape2?separate-devices")
    assert codes([first, second.put(local, FILE.path, pool="b")]) == ["R07"]
    # One folder under two names is one medium.
    (root.parent / "alias").symlink_to(root)
    plain, alias = open_backend(f"posix:{root}"), open_backend(f"posix:{root.parent}/alias")
    assert codes([plain.query(FILE.path, pool="a"), alias.query(FILE.path, pool="a")]) == ["R07"]


def test_an_archive_that_is_not_mounted_is_refused(root: Path) -> None:
    with pytest.raises(ArchiveError, match="mount point"):
        open_backend(f"posix:{root}?mounted")
    with pytest.raises(ArchiveError, match="there is no folder"):
        open_backend(f"posix:{root}/not/there")
    assert open_backend("posix:/proc?mounted").name == "posix:/proc?mounted"


def test_a_recall_replaces_nothing(root: Path, local: Path) -> None:
    backend = open_backend(f"posix:{root}")
    backend.put(local, FILE.path, pool="a")
    with pytest.raises(OutputExists, match="already exists"):
        backend.recall(FILE.path, local, pool="a")
    with pytest.raises(OutputError, match="cannot be written"):
        backend.recall(FILE.path, root.parent / "no" / "folder", pool="a")
    with pytest.raises(SourceError, match="cannot be read"):
        backend.put(root.parent / "gone", "y", pool="a")


@pytest.mark.parametrize(
    "spec",
    ["tape:/x", "posix", "posix:relative", "posix:/tmp?fast", "exec:/bin/true?timeout=0",
     "exec:/bin/true?timeout=x", "lying:never:/tmp", "lying:buffer-only:tmp", ""],
)  # fmt: skip
def test_archives_that_are_none_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        open_backend(spec)


# --- a script as an archive ------------------------------------------------------------------

SCRIPT = """#!/bin/bash
set -eu
root={root}
case $1 in
capabilities)
    echo '{{"tool": "cp", "pools": ["a", "b"], "rereads": true, "recalls_from_medium": true}}' ;;
put) mkdir -p "$(dirname "$root/$4/$3")"; cp "$2" "$root/$4/$3"; exec "$0" query "$3" "$4" ;;
query)
    file="$root/$3/$2"
    size=$(stat -c %s "$file")
    sum=$(sha256sum "$file" | cut -d' ' -f1)
    printf '{{"path": "%s", "size": %s, "algorithm": "sha256",' "$2" "$size"
    printf '"value": "%s",' "$sum"
    printf '"value_source": "reread", "state": "ONTAPE", "tool": "cp",'
    printf '"copies": [{{"pool": "%s", "medium": "V-%s", "archive_id": "7"}}]}}' "$3" "$3" ;;
recall) cp "$root/$4/$2" "$3" ;;
esac
"""


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "site.sh"
    path.write_text(text)
    path.chmod(0o755)
    return f"exec:{path}"


def test_a_script_that_keeps_the_contract_is_an_archive(
    tmp_path: Path, root: Path, local: Path
) -> None:
    backend = open_backend(script(tmp_path, SCRIPT.format(root=root)))
    assert backend.capabilities().pools == ("a", "b")
    receipts = [backend.put(local, FILE.path, pool=pool) for pool in "ab"]
    assert codes(receipts) == []
    assert receipts[0].tool == "cp"
    backend.recall(FILE.path, tmp_path / "back", pool="a")
    assert (tmp_path / "back").read_bytes() == DATA
    with pytest.raises(OutputExists, match="already exists"):
        backend.recall(FILE.path, tmp_path / "back", pool="a")
    with pytest.raises(ArchiveError, match=r"ended with status 1 \(stat: .*No such file"):
        backend.query("gone", pool="a")


def told(**changed: object) -> str:
    facts = receipt_to_json(good())
    kept = ("path", "size", "algorithm", "value", "value_source", "state", "copies")
    return json.dumps({**{name: facts[name] for name in kept}, **changed})


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("echo '[]'", "expected one JSON object"),
        ("echo 'done'", "expected one JSON object"),
        ("true", "expected one JSON object"),
        ("echo '{}'", "'path': field required"),
        ("""echo '{"path": "a", "path": "b"}'""", "expected one JSON object"),
        ("head -c 300000 /dev/zero | tr '\\0' '['", "expected one JSON object"),
        ("yes", "expected an answer of at most 1048576 bytes"),
        ("sleep 60", "did not end in time"),
        ("exec >&- 2>&-; sleep 60", "did not end in time"),
        ("sleep 60 & sleep 60", "did not end in time"),
        ("printf 'a\\nno \\033[31mdrive\\n' >&2; exit 75", r"75 \(no \?\[31mdrive\); try again"),
        ("head -c 1000000 /dev/zero >&2; exit 1", r"status 1 \("),
        ("kill -9 $$", "was ended by SIGKILL"),
        (f"echo '{told(state='SAFE')}'", "'state': input should be 'ONTAPE'"),
        (f"echo '{told(size='12')}'", "'size': input should be a valid integer"),
        (f"echo '{told(size=True)}'", "'size': input should be a valid integer"),
        (f"echo '{told(value='xyz')}'", "'value': string should match"),
        (f"echo '{told(backend='posix:/x')}'", "expected the fields"),
        (f"echo '{told(queried_at_ns=1)}'", "expected the fields"),
        (f"echo '{told(copies=[{'pool': 'a'}])}'", "'copies.0.medium': field required"),
        (f"echo '{told(copies=[{}] * 17)}'", "'copies.*': "),
        (f"echo '{told(path='a' * 5000)}'", "'path': value error, expected at most 4096"),
    ],
)
def test_a_script_that_breaks_the_contract_is_not_believed(
    tmp_path: Path, body: str, match: str
) -> None:
    limit = 1 if "sleep" in body else 60
    backend = open_backend(script(tmp_path, f"#!/bin/bash\n{body}\n") + f"?timeout={limit}")
    with pytest.raises(ArchiveError, match=match):
        backend.query(FILE.path, pool="a")


def test_what_a_script_started_ends_with_it(tmp_path: Path) -> None:
    backend = open_backend(
        script(tmp_path, f"#!/bin/bash\nsleep 61 & echo $! > {tmp_path}/child\nsleep 61\n")
        + "?timeout=1"
    )
    with pytest.raises(ArchiveError, match="in time"):
        backend.query("x", pool="a")
    child = int((tmp_path / "child").read_text())
    status = Path(f"/proc/{child}/stat")
    for _ in range(100):
        # Killed, though perhaps not yet reaped by whoever inherited it.
        if not status.exists() or status.read_text().split()[2] == "Z":
            break
        threading.Event().wait(0.05)
    else:
        pytest.fail("the script's child is still running")


def test_a_script_may_say_a_receipt_is_of_another_file_and_is_caught(tmp_path: Path) -> None:
    backend = open_backend(script(tmp_path, f"#!/bin/bash\necho '{told(path='b')}'\n"))
    assert "R04" in codes([backend.query(FILE.path, pool="a")], copies=1)


@pytest.mark.parametrize(
    "answer",
    ['{"tool": 1, "pools": [], "rereads": true, "recalls_from_medium": true}', "{}",
     '{"tool": "x", "pools": "a", "rereads": true, "recalls_from_medium": true}',
     '{"tool": "x", "pools": [], "rereads": 1, "recalls_from_medium": true}'],
)  # fmt: skip
def test_capabilities_of_another_form_are_refused(tmp_path: Path, answer: str) -> None:
    backend = open_backend(script(tmp_path, f"#!/bin/bash\necho '{answer}'\n"))
    with pytest.raises(ArchiveError, match="expected capabilities"):
        backend.capabilities()


def test_scripts_that_are_none_or_anybodys_are_refused(tmp_path: Path) -> None:
    spec = script(tmp_path, "#!/bin/bash\n")
    path = tmp_path / "site.sh"
    for bit in (stat.S_IWOTH, stat.S_IWGRP):
        path.chmod(0o755 | bit)
        with pytest.raises(RefusedError, match="others may change it"):
            open_backend(spec)
    path.chmod(0o755)
    open_backend(spec)
    tmp_path.chmod(0o770)
    with pytest.raises(RefusedError, match="others may change it"):
        open_backend(spec)
    tmp_path.chmod(0o1777)
    open_backend(spec)
    tmp_path.chmod(0o700)
    path.chmod(0o644)
    with pytest.raises(ArchiveError, match="expected a program"):
        open_backend(spec)
    with pytest.raises(ArchiveError, match="expected a program"):
        open_backend(f"exec:{tmp_path}/none")


def test_a_script_that_recalls_nothing_is_not_believed(tmp_path: Path) -> None:
    backend = open_backend(script(tmp_path, "#!/bin/bash\necho '{}'\n"))
    with pytest.raises(ArchiveError, match="left no file"):
        backend.recall("x", tmp_path / "back", pool="a")


@pytest.mark.parametrize("name", ["hpss-hsi.sh", "rucio-fts.sh"])
def test_the_examples_for_sites_are_sound_shell(name: str, tmp_path: Path) -> None:
    path = Path(__file__).resolve().parents[2] / "examples" / "backends" / name
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True)
    # A path that a shell or the archive's own tool might take for a command goes no further.
    for hostile in ("a;rm b", "a b", "$(id)", "-x", "../a"):
        done = subprocess.run(
            [str(path), "query", hostile, "pool"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, done
        assert "characters" in done.stderr


# --- lies ------------------------------------------------------------------------------------

FOUND_OUT = {
    "none": [],
    "buffer-only": ["R05"],
    "accepted": ["R05"],
    "wrong-checksum": ["R06"],
    "wrong-size": ["R06"],
    "other-algorithm": ["R06"],
    "catalogue": ["R06"],
    "one-copy": ["R07"],
    "same-pool": ["R07"],
    "same-medium": ["R07"],
    "other-file": ["R04"],
    "stale": [],  # its age is judged when it is taken down: see test_lies
    # These receipts look good: only a recall finds out. See the tests of the recall.
    "echoed-checksum": [],
    "truncated-recall": [],
    "no-recall": [],
}


def test_every_lie_is_expected() -> None:
    assert set(FOUND_OUT) == set(LIES)


@pytest.mark.parametrize("lie", sorted(LIES))
def test_each_lie_is_refused_with_its_code(root: Path, local: Path, lie: str) -> None:
    backend = open_backend(f"lying:{lie}:{root}")
    put = [backend.put(local, FILE.path, pool=pool) for pool in ("a", "b")]
    asked = [backend.query(FILE.path, pool=pool) for pool in ("a", "b")]
    for receipts in (put, asked):
        refusals = check_receipts(receipts, [FILE], copies=2, distinct_pools=True)
        assert sorted({refusal.code for refusal in refusals}) == FOUND_OUT[lie]
        assert all(refusal.message and refusal.remedy for refusal in refusals)
