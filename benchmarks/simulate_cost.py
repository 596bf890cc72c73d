"""CPU seconds that one simulated event costs, per experiment, on one thread.

Run with ``OMP_NUM_THREADS=1 python benchmarks/simulate_cost.py``. Every experiment renders the
same mixture of events, half of them with a crystal; setting up the experiment and compiling the
kernels come before the clock starts. The limits are those the simulator was built for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from sfxreduce.simulate import SimulatedFrames, simulate_truth

CASES: tuple[tuple[str, tuple[int, int] | None, float | None], ...] = (
    ("lysozyme-8kev", None, 0.25),
    ("photosystem-i-8kev", None, 0.25),
    ("receptor-lcp", None, 0.25),
    ("polyhedrin-6kev", None, None),
    ("thaumatin-eiger", None, None),
    ("photosystem-ii-jungfrau", None, None),
    ("pyp-cspad", None, None),
    ("lysozyme-8kev", (350, 350), 0.01),
    ("photosystem-i-8kev", (350, 350), 0.01),
)


def cpu_seconds(work: Callable[[Sequence[int]], object], events: Sequence[int]) -> float:
    """CPU seconds per event."""
    start = time.process_time()
    work(events)
    return (time.process_time() - start) / len(events)


def main() -> None:
    print("CPU seconds per event")
    print(f"{'experiment':26}{'frame':>14}{'render':>10}{'truth':>10}{'limit':>8}")
    for name, frame_shape, limit in CASES:
        n = 24 if frame_shape is None else 200
        source = SimulatedFrames(
            experiment=name, n_events=n, hit_rate=0.5, seed=1, frame_shape=frame_shape
        )
        source.read([0, 1])
        simulate_truth(source, range(4))
        render = cpu_seconds(source.read, range(n))
        truth = cpu_seconds(partial(simulate_truth, source), range(n))
        shape = "x".join(str(length) for length in source.detector.frame_shape)
        bound = "" if limit is None else f"{limit:8.2f}"
        print(f"{name:26}{shape:>14}{render:10.4f}{truth:10.4f}{bound}")


if __name__ == "__main__":
    main()
