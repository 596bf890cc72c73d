"""Bring a simulated experiment of five runs to two archives, up to tickets, and restore from one.

The clock is set forward where a facility would wait. Run: python examples/archive_beamtime.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

import sfxreduce
from sfxreduce.archive import executing, planning, releasing, restoring, status
from sfxreduce.archive.policy import preset
from sfxreduce.archive.subject import Subject, wall_clock
from sfxreduce.cluster import Pool

DAY_NS = 86_400 * 10**9


class Clock:
    """The machine's clock, set forward."""

    def __init__(self) -> None:
        self.ahead_ns = 0

    def __call__(self) -> int:
        """Nanoseconds since 1970."""
        return wall_clock() + self.ahead_ns


def make_runs(root: Path, n_runs: int, n_events: int, pool: Pool) -> list[Path]:
    """Simulate and filter."""
    runs = []
    for n in range(n_runs):
        run = root / f"r{n:04}.zarr"
        made = sfxreduce.simulated_run("photosystem-i-8kev", n_events=n_events, seed=n)
        sfxreduce.store_run(made, out=run, pool=pool)
        outputs = sfxreduce.Outputs(store=root / f"r{n:04}_hits.zarr")
        scorer = sfxreduce.PeakScorer(sfxreduce.PeakFinder(), min_peaks=8)
        sfxreduce.run_filter(sfxreduce.open_run(run), outputs=outputs, scorer=scorer, pool=pool)
        runs.append(run)
    return runs


def archive(run: Path, root: Path, clock: Clock, pool: Pool) -> str:
    """Plan, approve, copy, test."""
    hits = run.with_name(f"{run.stem}_hits.zarr")
    ann, bob = (Subject.of(run, by=name, clock=clock) for name in ("ann", "bob"))
    options = planning.PlanOptions(policy=preset("laptop"), hits=hits)
    token = planning.plan_run(ann, options, pool=pool).plan_id[:8]
    planning.approve_run(bob)
    to = [f"a=posix:{root}/tape_a", f"b=posix:{root}/tape_b"]
    executing.execute_run(ann, to=to, token=token)
    print(run.name, token, executing.recall_run(ann).statement)
    return token


def main() -> None:
    """Go all the way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=24)
    args = parser.parse_args()
    clock = Clock()
    with tempfile.TemporaryDirectory() as name, sfxreduce.open_pool(serial=True) as pool:
        root = Path(name)
        for tape in ("tape_a", "tape_b"):
            (root / tape).mkdir()
        runs = make_runs(root, 5, args.events, pool)
        tokens = [archive(run, root, clock, pool) for run in runs]
        clock.ahead_ns = 8 * DAY_NS
        for run, token in zip(runs, tokens, strict=True):
            subject = Subject.of(run, by="cy", clock=clock)
            print(releasing.release_run(subject, token=token, pool=pool).ticket.name, run.name)
        print(json.dumps(status.summary_of(root, clock=clock)["states"]))
        before = sfxreduce.open_run(runs[0]).source.read([0, 1]).pixels
        # What the facility's own tool does.
        shutil.rmtree(runs[0])
        subject = Subject.of(runs[0], by="facility", clock=clock)
        ticket = (subject.evidence / "release-ticket.json").read_bytes()
        receipt = root / "receipt.json"
        facts = {"release_version": 1, "plan_id": json.loads(ticket)["plan_id"], "by": "facility"}
        facts |= {"ticket_sha256": hashlib.sha256(ticket).hexdigest(), "released": [str(runs[0])]}
        receipt.write_text(json.dumps(facts))
        print(releasing.record_release(subject, receipt))
        out = root / "back.zarr"
        found = restoring.restore_run_events(subject, ["@0", "@1"], out=out, pool=pool)
        same = np.array_equal(sfxreduce.open_run(out).source.read([0, 1]).pixels, before)
        print(f"{found.events} events restored, {found.from_archive} of them from tape: {same=}")


if __name__ == "__main__":
    main()
