"""Conventional peak finders of other projects on simulated frames, whole and only their centre.

`time_peers` is for other benchmarks: the peak finders run in the environment of `make peers`, so
that what they need never meets what sfxreduce needs.

    make peers
    python benchmarks/peers_runner.py
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers.time_peak_finders import PeerSettings

import sfxreduce

__all__ = ["PEERS_PYTHON", "PeerSettings", "PeerTiming", "time_peers"]

PEERS_PYTHON = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
_SCRIPT = Path(__file__).parent / "peers" / "time_peak_finders.py"
_SIDE = 350


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerTiming:
    """What one peak finder took and found.

    Parameters
    ----------
    name, version : str
    cpu_ms, least_cpu_ms : float
        CPU milliseconds per event on one thread: median and least of the repeats.
    n_peaks : tuple of int
        Of each event.
    settings : PeerSettings
    missing : str
        Why there are no figures; then the times are NaN, and `version` and `n_peaks` are empty.
    """

    name: str
    version: str = ""
    cpu_ms: float = math.nan
    least_cpu_ms: float = math.nan
    n_peaks: tuple[int, ...] = ()
    settings: PeerSettings
    missing: str = ""

    @classmethod
    def of(cls, found: Mapping[str, Any], settings: PeerSettings) -> PeerTiming:
        """Read one entry of the script's JSON."""
        if "missing" in found:
            return cls(name=found["name"], settings=settings, missing=found["missing"])
        return cls(
            name=found["name"],
            version=found["version"],
            cpu_ms=found["cpu_ms_per_event"]["median"],
            least_cpu_ms=found["cpu_ms_per_event"]["min"],
            n_peaks=tuple(found["n_peaks"]),
            settings=settings,
        )


def time_peers(
    frames: NDArray[np.generic],
    good: NDArray[np.bool_],
    *,
    python: Path = PEERS_PYTHON,
    settings: PeerSettings | None = None,
    repeats: int = 5,
) -> list[PeerTiming]:
    """Time every peak finder on the same frames, turn by turn in one process.

    Parameters
    ----------
    frames : ndarray
        Shape (event, y, x), one panel with the beam in its middle, in ADU.
    good : ndarray of bool
        Shape (y, x).
    python : Path
        Interpreter of the environment of `make peers`.
    settings : PeerSettings, optional
    repeats : int

    Raises
    ------
    FileNotFoundError
        If the environment has not been made.
    RuntimeError
        If the script fails in it.
    """
    if not python.exists():
        raise FileNotFoundError(f"{python}: no environment of the peak finders; run 'make peers'")
    settings = settings or PeerSettings()
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("frames.npy", "good.npy")]
        for path, array in zip(paths, (frames, good), strict=True):
            np.save(path, array)
        # -I: what PYTHONPATH holds is sfxreduce's, not the peers'.
        command = [str(python), "-I", str(_SCRIPT), *paths, "--repeats", str(repeats)]
        command += ["--settings", json.dumps(asdict(settings))]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        said = (ran.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(
            f"{_SCRIPT.name}: expected exit status 0, found {ran.returncode}: {said}"
        )
    return [PeerTiming.of(found, settings) for found in json.loads(ran.stdout)["finders"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="photosystem-i-8kev", help="of one panel")
    parser.add_argument("--events", type=int, default=12)
    options = parser.parse_args()
    run = sfxreduce.simulate_run(options.experiment, n_events=options.events, hit_rate=0.5, seed=1)
    if len(run.detector.panels) != 1 or run.truth is None:
        n_panels = len(run.detector.panels)
        raise SystemExit(f"{options.experiment}: expected a camera of 1 panel, found {n_panels}")
    frames = run.source.read(range(options.events)).pixels
    good = run.detector.good()
    is_hit = run.truth["n_peaks"].values > 0
    middle = tuple(slice((n - _SIDE) // 2, (n + _SIDE) // 2) for n in good.shape)
    whole = time_peers(frames, good)
    centre = time_peers(frames[:, *middle], good[middle])
    print(f"{'':<28}{'':>9}{'CPU-ms per event':>20}{'peaks (median)':>20}")
    print(f"{'':<28}{'version':>9}{'whole':>10}{'centre':>10}{'hits':>10}{'blanks':>10}")
    for full, crop in zip(whole, centre, strict=True):
        if full.missing:
            print(f"{full.name:<28}{'-':>9}  {full.missing}")
            continue
        counts = [median_of(full.n_peaks, kind) for kind in (is_hit, ~is_hit)]
        print(
            f"{full.name:<28}{full.version:>9}{full.cpu_ms:>10.1f}{crop.cpu_ms:>10.2f}"
            f"{counts[0]:>10.0f}{counts[1]:>10.0f}"
        )


def median_of(counts: Sequence[int], chosen: NDArray[np.bool_]) -> float:
    """Median number of peaks of some events."""
    return float(np.median(np.asarray(counts)[chosen])) if chosen.any() else math.nan


if __name__ == "__main__":
    main()
