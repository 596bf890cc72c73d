"""The compiled peak finder against the same method in NumPy and scipy.ndimage.

Both see the same synthetic frames in one process; CPU time, best of several, compilation left
out. Quote the ratios: the milliseconds are this machine's.

    python benchmarks/peak_finder.py
"""

from __future__ import annotations

import argparse
import runpy
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfxreduce.scorers.peaks.finder import PeakFinder

PLAIN = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "plain_peaks.py"))["plain_peaks"]
ADU_PER_PHOTON = 20
SPOT = np.array([[0.2, 0.5, 0.2], [0.5, 2.0, 0.5], [0.2, 0.5, 0.2]])


def frame_with_peaks(side: int, n_peaks: int) -> NDArray[np.int16]:
    """Square frame: water ring, readout noise, peaks of a few pixels."""
    rng = np.random.default_rng(1)
    y, x = np.indices((side, side)) - (side - 1) / 2
    photons = 2 + 6 * np.exp(-(((np.hypot(y, x) - 0.5 * side / 2) / (0.2 * side / 2)) ** 2))
    for cy, cx in rng.integers(2, side - 2, (n_peaks, 2)):
        photons[cy - 1 : cy + 2, cx - 1 : cx + 2] += rng.exponential(30) * SPOT
    adu = ADU_PER_PHOTON * rng.poisson(photons) + rng.normal(0, 4, photons.shape)
    frame: NDArray[np.int16] = np.clip(np.rint(adu), -32768, 16383).astype(np.int16)
    return frame


def cpu_ms(action: Callable[[], object], repeats: int) -> float:
    """Least CPU time of one call in milliseconds."""
    action()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        taken.append(time.process_time() - start)
    return 1e3 * min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, nargs="+", default=[350, 1750])
    options = parser.parse_args()
    finder, batch = PeakFinder(), 16
    print(f"{'frame':<24}{'peaks':>6}{'plain':>10}{'find':>9}{'count':>9}{'plain/count':>13}")
    print(f"{'':<24}{'':>6}{'ms':>10}{'ms':>9}{'ms':>9}{'ratio':>13}")
    for side in options.side:
        good = np.ones((side, side), bool)
        radius = np.hypot(*(np.indices((side, side)) - (side - 1) / 2))
        for what, n_peaks in (("blank", 0), ("100 peaks", 100)):
            frame = frame_with_peaks(side, n_peaks)
            frames = np.broadcast_to(frame, (batch, side, side))
            found = len(finder.find(frame, good, radius))
            if found != len(PLAIN(frame, good, radius, finder)):
                raise SystemExit(f"{side} {what}: the two searches disagree")
            plain = cpu_ms(lambda: PLAIN(frame, good, radius, finder), 2)  # noqa: B023 - called here
            one = cpu_ms(lambda: finder.find(frame, good, radius), options.repeats)  # noqa: B023
            many = cpu_ms(lambda: finder.count(frames, good, radius), options.repeats) / batch  # noqa: B023
            name = f"{side} x {side}, {what}"
            print(f"{name:<24}{found:>6}{plain:>10.1f}{one:>9.2f}{many:>9.2f}{plain / many:>13.0f}")


if __name__ == "__main__":
    main()
