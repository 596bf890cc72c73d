"""As many jobs as are wanted, and none once the work is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from sfxreduce.cluster.slurm.certificates import RunCertificates
from sfxreduce.cluster.slurm.profile import SlurmProfile
from sfxreduce.cluster.slurm.queue import Queued, cancel, queued, submit
from sfxreduce.cluster.supply import Outlook, jobs_wanted
from sfxreduce.errors import ClusterError

__all__ = ["Jobs"]

LOOK_SECONDS = 5.0
"""Between two looks at the queue; controllers ask not to be asked more often."""

TELL_SECONDS = 60.0
"""Between two lines about jobs that wait."""

MOST_FAILED = 3
"""Jobs in a row that end before a worker of theirs has come, after which no more are tried."""

RENEW_SECONDS = 900.0
"""Between two certificates: a job that starts finds one that is not older."""

END_SECONDS = 50.0
"""In which cancelled jobs have to leave the queue."""

LOG_BYTES = 4096


class Jobs:
    """Keeps jobs of SLURM up as long as there is work; a `sfxreduce.cluster.supply.Supply`.

    Parameters
    ----------
    name : str
        Of the jobs, which no others have.
    script : callable
        Gives the script of a job whose worker has a name.
    there : callable
        How many workers there are.
    came : callable
        Names of the workers that have come at any time.
    certificates : RunCertificates, optional
        Signed again from time to time.
    tell : callable
        Given one line about jobs that wait or end early.
    """

    def __init__(
        self,
        profile: SlurmProfile,
        *,
        name: str,
        script: Callable[[str], str],
        there: Callable[[], int],
        came: Callable[[], set[str]],
        certificates: RunCertificates | None,
        tell: Callable[[str], None],
    ) -> None:
        self._profile, self._name, self._script = profile, name, script
        self._there, self._came = there, came
        self._certificates, self._tell = certificates, tell
        self._numbers = count(1)
        self._outlook = Outlook()
        self._known: dict[str, str] = {}
        self._at_work: set[str] = set()
        self._queue: list[Queued] = []
        self._failed = 0
        self._sending = False
        self._fault: ClusterError | None = None
        self._wake: Callable[[], None] | None = None
        self._end = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="jobs", daemon=True)
        self._renewed = time.monotonic()

    @property
    def offers_gpu(self) -> bool:
        """Whether its workers offer the resource ``GPU``."""
        return self._profile.gpus > 0

    @property
    def facts(self) -> dict[str, Any]:
        """Numbers of all jobs that were submitted."""
        return {"jobs": list(self._known)}

    @property
    def waiting(self) -> list[Queued]:
        """Jobs that had not begun at the last look."""
        return [job for job in self._queue if job.waits]

    def is_coming(self) -> bool:
        """See `sfxreduce.cluster.supply.Supply`."""
        return self._fault is None and not self._end.is_set()

    def check(self) -> None:
        """See `sfxreduce.cluster.supply.Supply`."""
        if self._fault is not None:
            raise self._fault

    def expect(self, outlook: Outlook) -> None:
        """See `sfxreduce.cluster.supply.Supply`."""
        self._outlook = outlook

    def attach(self, wake: Callable[[], None]) -> None:
        """See `sfxreduce.cluster.supply.Supply`."""
        self._wake = wake

    def await_all(self, seconds: float) -> int:
        """See `sfxreduce.cluster.supply.Supply`."""
        n_workers = self._profile.jobs * self._profile.workers_a_job
        self.wait(n_workers, seconds=seconds)
        return n_workers

    def begin(self) -> None:
        """Submit the first jobs, and see to them from now on.

        Raises
        ------
        ClusterError
            If SLURM does not take the first one.
        """
        self._submit()
        self._keeper.start()

    def wait(self, n_workers: int, *, seconds: float | None = None) -> int:
        """Wait for workers.

        Parameters
        ----------
        seconds : float, optional
            For which is waited; for as long as it takes if not given.

        Returns
        -------
        int
            How many have come.

        Raises
        ------
        ClusterError
            If job after job ends before its worker has come.
        """
        begun = told = time.monotonic()
        while (n := self._there()) < n_workers:
            self.check()
            now = time.monotonic()
            if seconds is not None and now - begun > seconds:
                break
            if now - told > TELL_SECONDS:
                told = now
                self._tell(self._waiting_line())
            time.sleep(0.2)
        return n

    def _waiting_line(self) -> str:
        reasons = sorted({job.reason for job in self.waiting})
        why = f" ({', '.join(reasons)})" if reasons else ""
        return (
            f"{len(self._queue) - len(self.waiting)} of {len(self._queue)} jobs of SLURM have "
            f"begun, {len(self.waiting)} wait{why}; Ctrl-C cancels them"
        )

    def close(self) -> None:
        """Cancel every job, and wait until SLURM has forgotten them."""
        self._end.set()
        if self._keeper.is_alive():
            self._keeper.join()
        deadline = time.monotonic() + END_SECONDS
        left = list(self._known)
        # One whose sending was interrupted may be listed a moment later.
        looks = 3 if self._sending else 1
        while time.monotonic() < deadline:
            try:
                # By name: one may have been submitted when the command was interrupted.
                left = [job.number for job in queued(self._name)]
                cancel(left)
            except ClusterError:
                left = left or list(self._known)
            looks -= not left
            if not looks:
                return
            time.sleep(0.5)
        self._tell(
            f"SLURM does not say that these jobs have ended; look at them with 'squeue', and "
            f"type: scancel {' '.join(left)}"
        )

    def _keep(self) -> None:
        while not self._end.is_set():
            try:
                self._look()
                self._renew()
            except ClusterError as error:
                self._tell(f"{error}; asking again in {LOOK_SECONDS:g} seconds")
            if self._fault is not None and self._wake is not None:
                self._wake()
            self._end.wait(LOOK_SECONDS)

    def _look(self) -> None:
        """Compare what is there with what is wanted."""
        self._queue = queued(self._name)
        numbers = {job.number for job in self._queue}
        for number in self._at_work - numbers:
            self._note_end(number)
        self._at_work = numbers & set(self._known)
        if self._fault is not None:
            return
        wanted = jobs_wanted(
            self._outlook,
            jobs=self._profile.jobs,
            jobs_max=self._profile.most_jobs,
            workers_a_job=self._profile.workers_a_job,
        )
        for _ in range(wanted - len(self._queue)):
            if self._end.is_set():
                return
            self._submit()
        too_many = len(self._queue) - wanted
        if too_many > 0:
            # Those that work go on; those that wait are not needed any more.
            surplus = [job.number for job in self.waiting[-too_many:]]
            self._at_work.difference_update(surplus)
            cancel(surplus)

    def _submit(self) -> None:
        worker = f"{self._name}-{next(self._numbers)}"
        self._sending = True
        number = submit(self._script(worker))
        self._sending = False
        self._known[number] = worker
        self._at_work.add(number)

    def _note_end(self, number: str) -> None:
        """Count jobs that ended before a worker of theirs had come."""
        worker = self._known[number]
        # Several of a job have its name and a number.
        if any(name == worker or name.startswith(f"{worker}-") for name in self._came()):
            self._failed = 0
            return
        self._failed += 1
        log = self._profile.shared_folder / self._name / f"job-{number}.log"
        if self._failed >= MOST_FAILED:
            self._fault = ClusterError(
                f"{self._failed} jobs of SLURM in a row ended before a worker had come; the last "
                f"one, {number}, said: {_last_line(log)}; see {log.parent}, and try 'sfxreduce "
                "cluster check'"
            )
        else:
            self._tell(f"job {number} of SLURM ended before its worker had come; another is sent")

    def _renew(self) -> None:
        now = time.monotonic()
        if self._certificates is not None and now - self._renewed > RENEW_SECONDS:
            self._certificates.renew()
            self._renewed = now


def _last_line(log: Path) -> str:
    """What a job said last."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return "nothing"
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
