"""A journal shows every change to it, and keeps what was acknowledged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfxreduce.errors import OutputError, VerificationError
from sfxreduce.io.files.journal import (
    Entry,
    chain_line,
    complete_lines,
    open_journal,
    read_chain,
    read_journal,
)

bodies = st.lists(
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=3),
    min_size=1,
    max_size=6,
)


def chained(items: list[dict[str, object]]) -> tuple[list[bytes], list[Entry]]:
    lines: list[bytes] = []
    entries: list[Entry] = []
    for body in items:
        line, entry = chain_line(body, after=entries[-1] if entries else None)
        lines.append(line)
        entries.append(entry)
    return lines, entries


@given(bodies)
def test_what_was_written_is_read(items: list[dict[str, object]]) -> None:
    lines, entries = chained(items)
    assert read_chain(b"".join(lines), where="j") == entries
    assert [entry.body for entry in entries] == items


@given(bodies, st.data())
def test_one_changed_bit_is_noticed(items: list[dict[str, object]], data: st.DataObject) -> None:
    whole = bytearray(b"".join(chained(items)[0]))
    # Of the last line nothing follows that names it: there its own form alone speaks for it, and
    # the head of the file.
    first = len(b"".join(chained(items)[0][:-1]))
    if not first:
        return
    whole[data.draw(st.integers(0, first - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(VerificationError):
        read_chain(complete_lines(bytes(whole)), where="j")


@given(bodies, st.data())
def test_a_line_that_is_gone_or_moved_is_noticed(
    items: list[dict[str, object]], data: st.DataObject
) -> None:
    lines, _ = chained(items)
    if len(lines) < 2:
        return
    at = data.draw(st.integers(0, len(lines) - 2))
    removed = lines[:at] + lines[at + 1 :]
    swapped = [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]]
    for changed in (removed, swapped):
        with pytest.raises(VerificationError):
            read_chain(b"".join(changed), where="j")


def write(path: Path, *names: str) -> None:
    with open_journal(path) as journal:
        for name in names:
            journal.append({"event": name})


def test_lines_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, "begin")
    write(path, "shard", "end")
    assert [entry.body["event"] for entry in read_journal(path)] == ["begin", "shard", "end"]


@given(cut=st.integers(1, 30))
def test_a_line_cut_off_by_a_crash_does_not_count(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    write(path, "begin", "shard")
    line, _ = chain_line({"event": "torn"}, after=read_journal(path)[-1])
    with path.open("ab") as file:
        file.write(line[:cut])
    assert [entry.body["event"] for entry in read_journal(path)] == ["begin", "shard"]
    write(path, "end")
    assert [entry.body["event"] for entry in read_journal(path)] == ["begin", "shard", "end"]


def test_a_line_whose_head_was_not_written_counts(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, "begin")
    line, _ = chain_line({"event": "shard"}, after=read_journal(path)[-1])
    with path.open("ab") as file:
        file.write(line)
    assert len(read_journal(path)) == 2


@pytest.mark.parametrize("left", [0, 1, 2])
def test_lines_removed_from_the_end_are_noticed(tmp_path: Path, left: int) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, "begin", "shard", "end")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:left]))
    with pytest.raises(VerificationError, match="removed"):
        read_journal(path)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with (
        open_journal(path),
        pytest.raises(OutputError, match="another process"),
        open_journal(path),
    ):
        pass


def test_a_line_that_did_not_reach_the_disk_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    calls: list[int] = []

    def fails(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(5, "Input/output error")

    with open_journal(path) as journal:
        journal.append({"event": "begin"})
        monkeypatch.setattr(os, "fsync", fails)
        for _ in range(2):
            with pytest.raises(OutputError):
                journal.append({"event": "shard"})
    assert len(calls) == 1
