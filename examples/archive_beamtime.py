"""Bring a simulated experiment of five runs to two archives, up to tickets, and restore from them.

Each run is filtered, verified, certified by an audit, planned, approved, copied and recalled; then
the clock is set forward where a facility would wait. One account plays all parts, as the policy
allows it (two_person = false). Run: python examples/archive_beamtime.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

import sfxreduce
from sfxreduce import archive
from sfxreduce.cluster import Pool

DAY_NS = 86_400 * 10**9
PEAKS = sfxreduce.PeakScorer(sfxreduce.PeakFinder(), min_peaks=8)


class Clock:
    """The machine's clock, set forward."""

    def __init__(self) -> None:
        self.ahead_ns = 0

    def __call__(self) -> int:
        """Nanoseconds since 1970."""
        return time.time_ns() + self.ahead_ns


def filtered(root: Path, number: int, n_events: int, pool: Pool) -> tuple[Path, Path]:
    """Simulate a run, keep its hits, and verify them against it."""
    run, hits = root / f"r{number:04}.zarr", root / f"r{number:04}_hits.zarr"
    made = sfxreduce.simulate_run(
        "photosystem-i-8kev",
        n_events=n_events,
        hit_rate=0.3,
        seed=number,
        frame_shape=(700, 700),
    )
    sfxreduce.ingest_run(made, out=run, pool=pool)
    scorer = sfxreduce.CnnScorer(sfxreduce.default_model())
    sfxreduce.filter_run(
        sfxreduce.open_run(run),
        settings=sfxreduce.FilterSettings(scorer=scorer),
        outputs=sfxreduce.Outputs(store=hits),
        pool=pool,
    )
    if not sfxreduce.verify_run(hits, against=sfxreduce.open_run(run), pool=pool).ok:
        raise SystemExit(f"{hits}: does not equal {run}")
    return run, hits


def certified(run: Path, hits: Path, pool: Pool) -> Path:
    """Audit every event of a small run by its peaks, and write what that proves."""
    promise = sfxreduce.Promise(max_loss=0.2, confidence=0.9)
    decisions = sfxreduce.read_reduced(hits, pool=pool).decisions
    rejected = decisions.count(sfxreduce.Decision.REJECT)
    draw = sfxreduce.audit_draw(
        hits,
        nonce="4 2 6 1 1 5",
        promise=promise,
        rejects=rejected,
        kept=decisions.score.size - rejected,
    )
    labels = sfxreduce.audit_label(draw, sfxreduce.open_run(run), scorer=PEAKS, pool=pool)
    path = hits.with_suffix(".certificate.json")
    sfxreduce.audit_certify(hits, draw, labels, promise=promise, out=path)
    return path


def tell(root: Path, clock: Clock) -> None:
    """Print how many runs are where."""
    print(json.dumps(archive.status_runs(root, clock=clock)["states"]))


def tapes(root: Path) -> list[str]:
    """Name the two archives; nobody but the caller does, the evidence least of all."""
    return [f"a=posix:{root}/tape_a", f"b=posix:{root}/tape_b"]


def archived(run: Path, hits: Path, clock: Clock, pool: Pool) -> str:
    """Plan, approve, copy, test."""
    root = run.parent
    rules = root / "policy.toml"
    rules.write_text(archive.preset_text("laptop") + "\n[approvals]\ntwo_person = false\n")
    ann, bob = (archive.Subject.of(run, by=name, clock=clock) for name in ("ann", "bob"))
    certificate = certified(run, hits, pool)
    policy = archive.read_policy(rules)
    [planned] = archive.plan_runs(
        [ann], hits=[hits], policy=policy, certificate=certificate, pool=pool
    )
    token = planned.plan.plan_id[:8]
    tell(root, clock)
    archive.approve_run(bob)
    tell(root, clock)
    archive.execute_run(ann, to=tapes(root), token=token)
    tell(root, clock)
    print(run.name, token, archive.recall_run(ann, to=tapes(root)).statement)
    tell(root, clock)
    return token


def delete_as_told(run: Path, clock: Clock) -> None:
    """Do what the facility's own tool does with a ticket, and report it."""
    subject = archive.Subject.of(run, by="facility", clock=clock)
    ticket = (subject.evidence / "release-ticket.json").read_bytes()
    shutil.rmtree(run)
    facts = {"release_version": 1, "plan_id": json.loads(ticket)["plan_id"], "by": "facility"}
    facts |= {"ticket_sha256": hashlib.sha256(ticket).hexdigest(), "released": [str(run)]}
    receipt = run.with_suffix(".receipt.json")
    receipt.write_text(json.dumps(facts))
    archive.record_release(subject, receipt)


def restored_alike(run: Path, events: list[int], clock: Clock, pool: Pool) -> bool:
    """Release a run, and compare some events that come back with what they were."""
    before = sfxreduce.open_run(run).source.read(events).pixels
    delete_as_told(run, clock)
    tell(run.parent, clock)
    subject = archive.Subject.of(run, by="ann", clock=clock)
    out = run.with_suffix(".back.zarr")
    names, to = [f"@{n}" for n in events], tapes(run.parent)
    found = archive.restore_run_events(subject, names, out=out, to=to, pool=pool)
    same = np.array_equal(sfxreduce.open_run(out).source.read(range(len(events))).pixels, before)
    where = f"{found.from_hits} from the hits, {found.from_archive} from tape"
    print(f"{run.name} events {events}: {where}, {same=}")
    return same


def main() -> None:
    """Go all the way; exit with 1 if a frame came back changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=40, help="of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the events that are restored")
    args = parser.parse_args()
    clock, dice = Clock(), np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as name, sfxreduce.open_pool(serial=True) as pool:
        root = Path(name)
        for tape in ("tape_a", "tape_b"):
            (root / tape).mkdir()
        stores = [filtered(root, number, args.events, pool) for number in range(5)]
        tokens = [archived(run, hits, clock, pool) for run, hits in stores]
        clock.ahead_ns = 8 * DAY_NS
        for (run, _), token in zip(stores, tokens, strict=True):
            subject = archive.Subject.of(run, by="cy", clock=clock)
            done = archive.release_run(subject, token=token, to=tapes(root), pool=pool)
            print(done.ticket.name, run.name)
        tell(root, clock)
        drawn = [sorted(dice.choice(args.events, 3, replace=False).tolist()) for _ in stores]
        alike = [
            restored_alike(run, events, clock, pool)
            for (run, _), events in zip(stores, drawn, strict=True)
        ]
        last = archive.status_run(archive.Subject.of(stores[-1][0], by="ann", clock=clock))
        print(f"{stores[-1][0].name}:", " ".join(str(state) for state in last.history))
    raise SystemExit(0 if all(alike) else 1)


if __name__ == "__main__":
    main()
