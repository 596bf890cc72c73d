"""Options from files and the environment: which one wins, what is refused, and where it is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from archived import Call
from beamtimes import POOL
from commands import run as command
from planted import planted_run

from sfxreduce.io.readers.zarr.run import read_manifest
from sfxreduce.pipeline.ingest import ingest_run


@pytest.fixture
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user's own options lie; the working folder is another."""
    folder = tmp_path / "config" / "sfxreduce"
    folder.mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder.parent))
    monkeypatch.chdir(tmp_path / "work")
    return folder / "config.toml"


@pytest.fixture
def filtered(user_file: Path, call: Call) -> object:
    """Filter a small run by its peaks with more words; the options in the manifest."""
    ingest_run(planted_run(), out=Path("run.zarr"), pool=POOL)
    names = iter("abcdefgh")

    def filter_with(*words: str) -> dict[str, object]:
        out = f"{next(names)}.zarr"
        status, told, errors = call(
            "filter", "--in", "run.zarr", "--out", out, "--serial", "--scorer", "peaks", *words
        )
        assert status == 0, errors
        found = read_manifest(Path(out)).options
        assert told["options"] == found
        return {name: (one["value"], one["origin"]) for name, one in found.items()}

    return filter_with


def test_command_line_environment_named_file_and_users_file_precede_each_other(
    user_file: Path, filtered, monkeypatch: pytest.MonkeyPatch
) -> None:
    def share() -> tuple[object, str]:
        return filtered("--config", "site.toml")["audit_share"]

    Path("site.toml").write_text("")
    assert share() == (0.01, "default")
    user_file.write_text("filter.audit_share = 0.02")
    assert share() == (0.02, "user file")
    Path("site.toml").write_text("[filter]\naudit-share = 0.03\nmax_blanks_kept = 0.5")
    assert share() == (0.03, "config")
    monkeypatch.setenv("SFXREDUCE_FILTER__AUDIT_SHARE", "0.04")
    assert share() == (0.04, "environment")
    told = filtered("--config", "site.toml", "--audit-share", "0.05")
    assert told["audit_share"] == (0.05, "option")
    assert told["max_blanks_kept"] == (0.5, "config")
    assert told["drift"] == ("on", "default")


def test_what_nobody_typed_is_said(
    user_file: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smaller number of peaks may cost hits, and stands in no command that is shown to others."""
    ingest_run(planted_run(), out=Path("run.zarr"), pool=POOL)
    monkeypatch.setenv("SFXREDUCE_FILTER__MIN_PEAKS", "50")
    words = ("--in", "run.zarr", "--out", "a.zarr", "--serial", "--scorer", "peaks")
    status, told, errors = call("filter", *words)
    assert status == 0
    assert "--min-peaks 50: from the environment" in errors
    assert "--scorer" not in errors
    assert told["threshold"] == 50


def test_nothing_is_read_from_the_working_folder(user_file: Path, filtered) -> None:
    for name in ("config.toml", "sfxreduce.toml", ".sfxreduce.toml"):
        Path(name).write_text("filter.audit_share = 0.5")
    assert filtered()["audit_share"] == (0.01, "default")


def test_where_a_value_came_from_changes_no_frame_and_no_ledger(filtered) -> None:
    Path("site.toml").write_text("filter.threshold = 8.0")
    filtered("--config", "site.toml")
    filtered("--threshold", "8.0")
    first, second = (
        {p.relative_to(s): p.read_bytes() for p in Path(s).rglob("*") if p.is_file()}
        for s in ("a.zarr", "b.zarr")
    )
    assert first.keys() == second.keys()
    assert {str(p) for p in first if first[p] != second[p]} == {"manifest/zarr.json"}


@pytest.mark.parametrize(
    "name",
    ["threshold", "max_loss", "confidence", "drift", "keep_from_peaks", "overwrite"],
)
def test_what_lowers_safety_is_not_taken_from_the_environment_or_the_users_file(
    name: str, user_file: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    words = ("filter", "--in", "run.zarr", "--out", "hits.zarr")
    variable = f"SFXREDUCE_FILTER__{name.upper()}"
    monkeypatch.setenv(variable, "1")
    status, _, errors = call(*words)
    assert (status, errors.count("\n")) == (2, 1)
    assert errors.startswith(f"sfxreduce: {variable}: '{name}' can cost hits")
    assert "--config" in errors
    monkeypatch.delenv(variable)
    user_file.write_text(f"filter.{name} = 1")
    status, _, errors = call(*words)
    assert (status, errors.count("\n")) == (2, 1)
    assert f"{user_file}: filter.{name}: '{name}' can cost hits" in errors


def test_copies_are_sent_nowhere_by_a_variable(
    user_file: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.setenv("SFXREDUCE_ARCHIVE__EXECUTE__TO", "a=posix:/elsewhere")
    status, _, errors = call("archive", "execute", "run.zarr")
    assert status == 2
    assert "SFXREDUCE_ARCHIVE__EXECUTE__TO: 'to' can cost hits or start programs" in errors


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("filter.worker = 2", "filter.worker: no option 'worker' of 'sfxreduce filter'; did you "
         "mean 'workers'?"),
        ("[filtre]\nworkers = 2", "no command 'filtre' of 'sfxreduce'; did you mean 'filter'?"),
        ("archive.pln.group = 'x'", "no command 'pln' of 'sfxreduce archive'; did you mean "
         "'plan'?"),
        ("workers = 2", "options stand below their command, as in 'filter.workers'"),
        ("filter.workers = 'many'", "found 'many'; 'sfxreduce filter --help' says what is taken"),
        ("filter.workers = [1, 2]", "filter.workers:"),
        ("filter.workers =", "expected a TOML file with options"),
        (f"a = {'[' * 5000}", "expected a TOML file with options"),
        ("filter = 3", "filter: no option 'filter' of 'sfxreduce'"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_one_line(
    text: str, told: str, user_file: Path, call: Call
) -> None:
    Path("site.toml").write_text(text)
    words = ("filter", "--in", "run.zarr", "--out", "hits.zarr", "--config", "site.toml")
    status, _, errors = call(*words)
    assert (status, errors.count("\n")) == (2, 1)
    assert errors.startswith("sfxreduce: site.toml: ")
    assert told in errors
    Path("site.toml").unlink()
    status, _, errors = call(*words)
    assert (status, errors.count("\n")) == (2, 1)
    assert "site.toml" in errors


def test_lists_and_switches_are_taken_from_file_and_environment(
    user_file: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    Path("data").mkdir()
    user_file.write_text("[info]\nroot = ['data']\nuntrusted = true\n")
    status, _, errors = call("info", "run.zarr")
    assert (status, "run.zarr" in errors) == (1, True)
    user_file.unlink()
    monkeypatch.setenv("SFXREDUCE_INFO__ROOT", "data:.")
    monkeypatch.setenv("SFXREDUCE_INFO__UNTRUSTED", "true")
    status, _, errors = call("info", "run.zarr")
    assert (status, "run.zarr" in errors) == (1, True)


def test_every_command_names_the_option() -> None:
    for words in (("filter",), ("archive", "plan"), ("info",), ("report", "savings")):
        assert "--config FILE" in command(*words, "--help").stdout
