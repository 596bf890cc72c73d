"""Conventional peak finders of other projects, turn by turn with whatever else is measured.

`Peers` is for other benchmarks: the peak finders run in a process of the environment of
`make peers`, so that what they need never meets what sfxreduce needs.

    make peers
    python benchmarks/peers_runner.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from peers.time_peak_finders import PeerSettings

import sfxreduce

__all__ = [
    "FASTEST_PEER",
    "MAIN_PEER",
    "NO_ANSWER",
    "PEERS_PYTHON",
    "PeerSettings",
    "PeerTurn",
    "Peers",
]

PEERS_PYTHON = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"

MAIN_PEER = "LUTE peakfinder_8_v2"
"""What LCLS runs on whole runs."""

FASTEST_PEER = "OM peakfinder8, fast mode"
"""Its background is that of a sample of the pixels."""

NO_ANSWER = -1
"""Peaks of a frame that ended the process of a search."""

_SCRIPT = Path(__file__).parent / "peers" / "time_peak_finders.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerTurn:
    """One search of all loaded frames.

    Parameters
    ----------
    cpu_ms : float
        CPU milliseconds per event on one thread.
    n_peaks : ndarray of int64
        Shape (event,); `NO_ANSWER` where the search ended its process.
    """

    cpu_ms: float
    n_peaks: NDArray[np.int64]


class Peers:
    """The peak finders of other projects, in a process that waits for its turns.

    Parameters
    ----------
    python : Path
        Interpreter of the environment of `make peers`.

    Attributes
    ----------
    versions : dict of str to str
        Of each search that is installed.
    missing : dict of str to str
        Why each of the others is not.
    crashes : Counter of str
        Frames that each search ended its process on.

    Raises
    ------
    SystemExit
        If the environment has not been made.
    """

    def __init__(self, python: Path = PEERS_PYTHON) -> None:
        if not python.exists():
            raise SystemExit(f"{python}: no environment of the peak finders; run 'make peers'")
        self._folder = tempfile.TemporaryDirectory()
        self._python = python
        self._loaded: dict[str, str] = {}
        self.crashes: Counter[str] = Counter()
        listed = self._start()
        self.versions = {one["name"]: one["version"] for one in listed if "version" in one}
        self.missing = {one["name"]: one["missing"] for one in listed if "missing" in one}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def load(self, frames: NDArray[np.generic], good: NDArray[np.bool_]) -> None:
        """Hand over frames for the next searches.

        Parameters
        ----------
        frames : ndarray
            Shape (event, y, x), one panel with the beam in its middle, in ADU.
        good : ndarray of bool
            Shape (y, x).
        """
        folder = Path(self._folder.name)
        # By its content: what a search prepares for a mask is kept.
        mask = folder / f"good{hashlib.sha256(good.tobytes()).hexdigest()[:16]}-{good.shape[0]}.npy"
        if not mask.exists():
            np.save(mask, good)
        np.save(folder / "frames.npy", frames)
        self._loaded = {"frames": str(folder / "frames.npy"), "good": str(mask)}
        self._ask(self._loaded)

    def search(self, finder: str, settings: PeerSettings | None = None) -> PeerTurn:
        """Search all loaded frames once; one by one if that ends the process."""
        command = {"finder": finder, "settings": asdict(settings or PeerSettings())}
        try:
            answers = [self._ask(command)]
        except RuntimeError:
            answers = self._one_by_one(command)
        cpu_ms = [a["cpu_ms"] for a in answers if a is not None]
        n_peaks = [n for a in answers for n in ([NO_ANSWER] if a is None else a["n_peaks"])]
        return PeerTurn(cpu_ms=float(np.mean(cpu_ms)), n_peaks=np.array(n_peaks, np.int64))

    def _one_by_one(self, command: dict[str, Any]) -> list[dict[str, Any] | None]:
        """Answers frame by frame, in a new process after each that ended the last one."""
        self._start()
        answers: list[dict[str, Any] | None] = []
        for frame in range(self._ask(self._loaded)["n_events"]):
            try:
                answers.append(self._ask(command | {"only": frame}))
            except RuntimeError:
                self.crashes[command["finder"]] += 1
                answers.append(None)
                self._start()
                self._ask(self._loaded)
        return answers

    def _start(self) -> list[dict[str, str]]:
        """Start the process; which searches are installed."""
        # -I: what PYTHONPATH holds is sfxreduce's, not the peers'.
        self._process = subprocess.Popen(
            [str(self._python), "-I", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        listed: list[dict[str, str]] = self._next()["finders"]
        return listed

    def _ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._next()

    def _next(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{_SCRIPT.name}: expected an answer, found exit status {self._process.wait()}; "
                "its message is above"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="photosystem-i-8kev", help="of one panel")
    parser.add_argument("--events", type=int, default=12)
    options = parser.parse_args()
    run = sfxreduce.simulate_run(options.experiment, n_events=options.events, hit_rate=0.5, seed=1)
    if len(run.detector.panels) != 1 or run.truth is None:
        n_panels = len(run.detector.panels)
        raise SystemExit(f"{options.experiment}: expected a camera of 1 panel, found {n_panels}")
    is_hit = run.truth["n_peaks"].values > 0
    print(f"{'':<28}{'version':>9}{'CPU-ms':>10}{'peaks: hits':>14}{'blanks':>10}")
    with Peers() as peers:
        peers.load(run.source.read(range(options.events)).pixels, run.detector.good())
        for name, version in peers.versions.items():
            turn = peers.search(name)
            counts = [median_of(turn.n_peaks.tolist(), kind) for kind in (is_hit, ~is_hit)]
            print(f"{name:<28}{version:>9}{turn.cpu_ms:>10.1f}{counts[0]:>14.0f}{counts[1]:>10.0f}")
        for name, reason in peers.missing.items():
            print(f"{name:<28}{'-':>9}  {reason}")


def median_of(counts: Sequence[int], chosen: NDArray[np.bool_]) -> float:
    """Median number of peaks of some events."""
    return float(np.median(np.asarray(counts)[chosen])) if chosen.any() else float("nan")


if __name__ == "__main__":
    main()
