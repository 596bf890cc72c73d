"""A SLURM of one machine that runs jobs as a real one does, for as long as a test needs it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
START_SECONDS = 60
N_CPUS = 8
"""That the batch system believes in: jobs are small here, and several have to run at once."""

CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=1000
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=2
MessageTimeout=60
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=65536 State=UNKNOWN
PartitionName=short Nodes=node1 Default=YES MaxTime=INFINITE OverTimeLimit=0 State=UP
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSystem:
    """How to talk to a running SLURM.

    Parameters
    ----------
    environment : dict
        With which its commands find it.
    folder : Path
        Of its configuration and logs.
    """

    environment: dict[str, str]
    folder: Path

    def told(self, *command: str) -> str:
        """What a command of it prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    def jobs(self) -> list[str]:
        """Numbers of the jobs that wait, run or end."""
        return self.told("squeue", "--noheader", "--format=%i").split()

    def running(self) -> list[str]:
        """Numbers of the jobs that run."""
        return self.told("squeue", "--noheader", "--format=%i", "--states=R").split()

    def history(self) -> list[str]:
        """Of every job there was: its number, state and time limit, as the controller has them."""
        return self.told("scontrol", "--oneliner", "show", "job").splitlines()


def why_not() -> str:
    """Why no SLURM can be run here; empty if it can."""
    if os.geteuid():
        return "needs root, to run the daemons of a SLURM"
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    return f"needs Debian's slurm-wlm and munge: no {', '.join(missing)} here" if missing else ""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def batch_system() -> Iterator[BatchSystem]:
    """A SLURM on loopback: one node, one partition, two free ports, ended by its own processes."""
    with ExitStack() as stack:
        # Sockets have short paths, and munged wants a folder that only trusted users may change.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
        folder.chmod(0o755)
        host = socket.gethostname().partition(".")[0]
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                folder=folder,
                host=host,
                cpus=N_CPUS,
                ctld_port=_free_port(),
                slurmd_port=_free_port(),
            )
        )
        environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        _munge(stack, folder)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        _daemon(stack, ["slurmctld", "-D", "-c"], environment, folder / "slurmctld.out")
        _daemon(stack, ["slurmd", "-D", "-N", "node1"], environment, folder / "slurmd.out")
        system = BatchSystem(environment=environment, folder=folder)
        _wait_until_idle(system)
        yield system
        for job in system.jobs():
            system.told("scancel", job)


def _munge(stack: ExitStack, folder: Path) -> None:
    """Start what signs the messages of the daemons, with a key of its own."""
    own = folder / "munge"
    own.mkdir(mode=0o755)
    (own / "key").write_bytes(os.urandom(1024))
    (own / "key").chmod(0o400)
    shutil.chown(own, "munge")
    shutil.chown(own / "key", "munge")
    files = ("socket", "key-file", "pid-file", "log-file", "seed-file")
    command = [f"--{option}={own / option.partition('-')[0]}" for option in files]
    command = ["munged", "--foreground", *command]
    _daemon(stack, command, dict(os.environ), folder / "munged.out", user="munge")
    deadline = time.monotonic() + START_SECONDS
    while not (own / "socket").exists():
        if time.monotonic() > deadline:
            raise TimeoutError((folder / "munged.out").read_text())
        time.sleep(0.05)


def _daemon(
    stack: ExitStack,
    command: list[str],
    environment: dict[str, str],
    log: Path,
    user: str | None = None,
) -> None:
    """Start a daemon in the foreground of its own session; it ends with the stack."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, start_new_session=True, user=user
        )

    def end() -> None:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(end)


def _wait_until_idle(system: BatchSystem) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        said = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"],
            env=system.environment, capture_output=True, text=True,
        )  # fmt: skip
        if said.stdout.strip() == "idle":
            return
        if time.monotonic() > deadline:
            logs = [file.read_text() for file in sorted(system.folder.glob("*.log"))]
            raise TimeoutError("\n".join([said.stderr, *logs])[-4000:])
        time.sleep(0.2)
