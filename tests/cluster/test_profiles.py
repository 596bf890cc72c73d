"""What jobs ask for is checked before any is sent, and as many are sent as are worth it."""

from __future__ import annotations

import json
import math
import os
import stat
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from accounts import need_root
from commands import run
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

import sfxreduce
from sfxreduce.cluster.scheduler_file import scheduler_in
from sfxreduce.cluster.slurm.certificates import RunCertificates
from sfxreduce.cluster.slurm.profile import EXPECTED, SlurmProfile, profile_of
from sfxreduce.cluster.supply import Outlook, jobs_wanted
from sfxreduce.errors import RefusedError, UsageError

SITES = Path(__file__).resolve().parents[2] / "docs" / "sites"


def test_every_key_says_what_it_takes() -> None:
    assert set(EXPECTED) == set(SlurmProfile.model_fields)


@pytest.mark.parametrize("path", sorted(SITES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_profile_of_each_site_becomes_a_script(path: Path) -> None:
    script = sfxreduce.cluster_script(str(path))
    profile = profile_of(str(path))
    assert f"#SBATCH -p {profile.partition}\n" in script
    assert f"#SBATCH -t {profile.walltime}\n" in script
    assert f"--cpus-per-task={profile.cores}\n" in script
    assert f"--lifetime {profile.lifetime_seconds:.0f}s" in script
    assert "--tls-key " in script
    assert "--no-dashboard" in script
    for line in profile.prologue:
        assert f"\n{line}\n" in script
    assert script.index(profile.python) > max(script.index(line) for line in ["#SBATCH -p"])
    assert set(tomllib.loads(path.read_text())) <= set(EXPECTED)


def test_there_are_sites() -> None:
    assert {path.stem for path in SITES.glob("*.toml")} >= {"s3df", "maxwell"}


def test_nothing_is_asked_for_that_nobody_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    script = sfxreduce.cluster_script("slurm")
    for option in (" -p ", " -A ", "--constraint", "--gres", "--interface", "--local-directory"):
        assert option not in script
    assert not list(tmp_path.iterdir())


def test_a_graphics_card_is_one_worker(tmp_path: Path) -> None:
    (tmp_path / "gpu.toml").write_text('gpus = 1\ncores = 8\nmemory = "64 GB"\n')
    script = sfxreduce.cluster_script(str(tmp_path / "gpu.toml"))
    assert "#SBATCH --gres=gpu:1\n" in script
    assert "#SBATCH --cpus-per-task=8\n" in script
    assert "--resources GPU=1" in script
    assert "--nworkers" not in script
    assert profile_of(str(tmp_path / "gpu.toml")).workers_a_job == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partitions = 'a'", "no key 'partitions' here; did you mean 'partition'"),
        ("surprise = 1", "no key 'surprise' here; expected partition, account"),
        ('partition = "a\\n#SBATCH"', "partition: expected a name of SLURM"),
        ("account = 'a b'", "account: expected a name of SLURM"),
        ("constraint = 3", "constraint: expected features"),
        ("cores = 0", "cores: expected a whole number from 1 to 1024, found 0"),
        ("cores = '4'", "cores: expected a whole number from 1 to 1024, found '4'"),
        ("cores = true", "cores: expected a whole number"),
        ("memory = '8'", "memory: expected the memory of a job with its unit"),
        ("memory = 8", "memory: expected the memory of a job with its unit"),
        ("memory = '8 parsecs'", "memory: expected"),
        ("walltime = '2:30'", "walltime: expected HH:MM:SS or D-HH:MM:SS"),
        ("walltime = 01:00:00", "walltime: expected HH:MM:SS"),
        ("walltime = '00:00:30'", "walltime: expected"),
        ("jobs = 0", "jobs: expected a whole number from 1 to 10000, found 0"),
        ("jobs = 4\njobs_max = 3", "jobs_max: expected a whole number"),
        ("jobs_max = 1.5", "jobs_max: expected a whole number"),
        ("interface = 'ib 0'", "interface: expected the name of a network interface"),
        ("python = ''", "python: expected one line"),
        ("prologue = 'module load'", "prologue: expected a list of lines"),
        ('prologue = ["a\\nb"]', "prologue: expected a list of lines"),
        ("local_directory = '/a b'", "local_directory: expected a path without spaces"),
        ("log_directory = 'here'", "log_directory: expected an absolute path"),
        ("gpus = 2", "gpus: expected 0 or 1"),
        ("[partition]\nname = 'a'", "partition: expected a name of SLURM"),
        ("partition = ", "expected a TOML file with keys"),
    ],
)
def test_a_profile_with_a_fault_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as told:
        profile_of(str(path))
    assert str(told.value).startswith(f"--cluster {path}: ")
    assert said in str(told.value)
    assert len(told.value.lines) == 1
    result = run("cluster", "script", "--cluster", path)
    assert result.exit_code == 2


@pytest.mark.parametrize(
    "words",
    [
        ("--cluster", "elsewhere"),
        ("--cluster", "missing.toml"),
        ("--cluster", "slurm", "--serial"),
        ("--cluster", "slurm", "--scheduler", "tcp://127.0.0.1:1"),
        ("--cluster", "slurm", "--workers", "3"),
        ("--cluster", "slurm", "--jobs", "3", "--jobs-max", "2"),
        ("--cluster", "local", "--jobs", "3"),
        ("--scheduler-file", "missing.json"),
        ("--scheduler-file", "missing.json", "--scheduler", "tcp://127.0.0.1:1"),
    ],
)
def test_options_that_do_not_fit_are_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    result = run("simulate", "--out", tmp_path / "run.zarr", "--events", "2", *words)
    assert result.exit_code == 2
    assert not (tmp_path / "run.zarr").exists()


def test_a_machine_without_slurm_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with (
        pytest.raises(sfxreduce.SfxReduceError, match="sbatch: no such program") as told,
        sfxreduce.open_pool(cluster="slurm"),
    ):
        pass
    assert told.value.exit_status == 1
    assert not list(tmp_path.iterdir())


@given(
    st.integers(0, 10**6), st.floats(0, 1e4), st.integers(1, 50), st.integers(0, 500),
    st.integers(1, 64),
)  # fmt: skip
def test_no_more_jobs_are_sent_than_are_worth_it(
    tasks: int, seconds: float, jobs: int, more: int, workers: int
) -> None:
    left = Outlook(tasks_left=tasks, seconds_a_task=seconds)
    wanted = jobs_wanted(left, jobs=jobs, jobs_max=jobs + more, workers_a_job=workers)
    assert jobs <= wanted <= jobs + more
    # Each worker of those beyond the fewest finds four tasks and a minute of work.
    if wanted > jobs:
        others = (wanted - 1) * workers
        assert others * 4 <= tasks
        assert others * 60 <= tasks * seconds or math.isclose(others * 60, tasks * seconds)


def test_fifty_seven_tasks_are_not_fifty_five_jobs() -> None:
    # Dask's own target asked for one worker for nearly each task.
    left = Outlook(tasks_left=57, seconds_a_task=20.0)
    assert jobs_wanted(left, jobs=1, jobs_max=100, workers_a_job=1) == 15


@pytest.mark.parametrize("walltime", ["00:01:00", "00:02:00", "04:00:00", "14-00:00:00"])
def test_every_worker_ends_before_its_job(walltime: str) -> None:
    profile = SlurmProfile(walltime=walltime)
    last = profile.lifetime_seconds + profile.stagger_seconds
    assert profile.stagger_seconds > 0
    assert last <= profile.walltime_seconds - min(600, profile.walltime_seconds / 5)
    assert profile.lifetime_seconds - profile.stagger_seconds > profile.walltime_seconds / 2


def test_certificates_are_their_owners_alone_and_last_for_a_lifetime_and_an_hour(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "deep" / "run"
    before = os.umask(0)
    try:
        certificates = RunCertificates(folder, lifetime_seconds=600)
        certificates.renew()
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(path.name for path in folder.iterdir()) == [
        "tls-ca.pem", "tls-cert.pem", "tls-key.pem",
    ]  # fmt: skip
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    made = x509.load_pem_x509_certificate((folder / "tls-cert.pem").read_bytes())
    left = made.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(minutes=69) < left <= timedelta(minutes=70)
    (folder / "job-1.log").touch()
    certificates.remove(logs=False)
    assert [path.name for path in folder.iterdir()] == ["job-1.log"]
    certificates.remove(logs=True)
    assert not folder.exists()


def scheduler_file(folder: Path, said: object, mode: int = 0o600) -> Path:
    path = folder / "scheduler.json"
    path.write_text(said if isinstance(said, str) else json.dumps(said))
    path.chmod(mode)
    return path


def test_a_scheduler_says_in_a_file_where_it_is(tmp_path: Path) -> None:
    path = scheduler_file(tmp_path, {"address": "tls://10.0.0.7:8786", "workers": {}}, 0o644)
    assert scheduler_in(path) == "tls://10.0.0.7:8786"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_scheduler_file_that_others_may_write_to_is_refused(mode: int, tmp_path: Path) -> None:
    path = scheduler_file(tmp_path, {"address": "tcp://127.0.0.1:1"}, mode)
    with pytest.raises(RefusedError, match="only you may write to") as told:
        scheduler_in(path)
    assert len(told.value.lines) == 1
    out = tmp_path / "run.zarr"
    words = ["simulate", "--out", out, "--events", "2", "--scheduler-file", path]
    assert run(*words).exit_code == 3


def test_a_scheduler_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    need_root()
    path = scheduler_file(tmp_path, {"address": "tcp://127.0.0.1:1"})
    os.chown(path, 61_004, -1)
    with pytest.raises(RefusedError, match="one of user 61004"):
        scheduler_in(path)


@pytest.mark.parametrize("said", ["", "[]", "{", '{"address": 3}', '{"address": ""}', "\x00"])
def test_a_scheduler_file_that_is_none_is_one_line(said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--scheduler-file") as told:
        scheduler_in(scheduler_file(tmp_path, said))
    assert len(told.value.lines) == 1


def test_the_environment_names_a_scheduler_unless_the_command_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfxreduce_cli.cluster_options import PoolOptions

    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    monkeypatch.setenv("DASK_SCHEDULER_FILE", str(tmp_path / "scheduler.json"))
    assert PoolOptions().file == tmp_path / "scheduler.json"
    assert PoolOptions().is_elsewhere
    for options in (
        PoolOptions(serial=True),
        PoolOptions(cluster="local"),
        PoolOptions(scheduler="tcp://127.0.0.1:1"),
    ):
        assert options.file is None
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://127.0.0.1:2")
    assert PoolOptions().address == "tcp://127.0.0.1:2"
    assert PoolOptions().file is None
    assert PoolOptions(cluster="local").address == ""
