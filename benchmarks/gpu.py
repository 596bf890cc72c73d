"""Events a second on a graphics card, and what limits them, measured on this machine.

Frames are made here: photons on a flat background and some peaks, 16 bits, packed as a run store
packs its tiles. Random weights say nothing about accuracy, only that the device gives the
processor's answers; this is checked before anything is timed. A device's rate is by the wall
clock, one core's by its own clock; best of several. What was not measured is null, with a reason.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --device cpu --small

It needs torch, numpy and numba, and this repository on PYTHONPATH; without zarr, numcodecs and
google-crc32c nothing is decoded, without scipy the patch network is left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))  # before torch loads

import numba
import numpy as np
import torch
from fused import hit_probability
from gpu_feeds import (
    GOOD,
    TILE_BYTES,
    TILES_PER_FRAME,
    Pixels,
    RunStore,
    Stored,
    UnmeasuredError,
    decoded_feed,
    encoded_feed,
    make_frames,
    make_tiles,
    room_for,
    run_store_feed,
)
from numpy.typing import NDArray

from sfxreduce.scorers.cnn.gpu.transfer import as_numbers
from sfxreduce.scorers.cnn.poster._normalise_gpu import least_variance
from sfxreduce.scorers.cnn.poster.cpu import FusedNetwork
from sfxreduce.scorers.cnn.poster.gpu import DeviceSettings, Feed, PosterOnDevice
from sfxreduce.scorers.cnn.poster.network import TILE_SHAPE, HitNetwork
from sfxreduce.scorers.cnn.poster.normalise import Normalisation, normalise
from sfxreduce.scorers.peaks.finder import PeakFinder

HOW = Normalisation()
EVENTS_PER_TASK = 8192  # as `sfxreduce.pipeline.stages.score`, which needs Dask


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table."""

    what: str
    unit: str
    value: float | None
    reason: str = ""
    of: dict[str, Any] = field(default_factory=dict)


@dataclass
class Bench:
    """Everything that is measured, in order."""

    device: str
    small: bool
    compiled: bool
    tiles: int
    seconds: float
    threads: Sequence[int]
    json: Path | None
    machine: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def measure(self, what: str, unit: str, action: Callable[[], float], **of: Any) -> None:
        """Note a figure, or why there is none; a failure costs its own figure only."""
        value, reason = None, ""
        try:
            value = action()
        except UnmeasuredError as error:
            reason = str(error)
        except RuntimeError as error:  # of torch, its compiler or the card
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            self.failures.append(f"{what} {of}: {reason}")
        self.figures.append(Figure(what=what, unit=unit, value=value, reason=reason, of=of))
        self.save()

    def save(self) -> None:
        """Write what is known so far: a run that is cut off is not lost."""
        if self.json is None:
            return
        document = {
            "machine": self.machine,
            "settings": {
                "device": self.device,
                "small": self.small,
                "tiles_per_sub_batch": self.tiles,
            },
            "figures": [asdict(figure) for figure in self.figures],
            "failures": self.failures,
        }
        self.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    def value(self, what: str, **of: Any) -> float:
        """Return the best figure of that name; raise if there is none."""
        found = [f for f in self.figures if f.what == what and of.items() <= f.of.items()]
        values = [f.value for f in found if f.value is not None]
        if not values:
            why = found[0].reason if found else "not measured"
            raise UnmeasuredError(f"{what}: {why}")
        return max(values)


# How it is timed


def loud_network() -> HitNetwork:
    """Random weights, loud enough to spread the probabilities."""
    torch.manual_seed(4)
    network = HitNetwork().requires_grad_(requires_grad=False)
    for value in network.parameters():
        value.mul_(2.4)
    return network


def cpu_rate(action: Callable[[], object], n: int, repeats: int = 3) -> float:
    """Items per second of one core, by its own clock, after one call that compiles."""
    action()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        taken.append(time.process_time() - start)
    return n / min(taken)


def wall_rate(bench: Bench, score: Callable[[int], object], step: int) -> float:
    """Items per second by the wall clock; `score` takes how many, in multiples of a step."""
    score(step)  # compiles, and fills the allocators
    start = time.perf_counter()
    score(step)
    n = step * max(1, round(bench.seconds / (time.perf_counter() - start)))
    taken = []
    for _ in range(1 if bench.small else 3):
        start = time.perf_counter()
        score(n)
        taken.append(time.perf_counter() - start)
    return n / min(taken)


# What is measured


def measure_one_core(bench: Bench, tiles: Pixels, packed: Stored, fused: FusedNetwork) -> None:
    """What one core does, with and without decoding."""

    def score(pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        seen = normalise(pixels, GOOD, adu_per_photon=1.0, how=HOW)
        return hit_probability(fused.outputs(seen, GOOD))

    n = min(len(tiles), 64)
    read = partial(packed.read, range(n), room_for(n))
    bench.measure("packed tiles", "times smaller", lambda: packed.ratio)
    bench.measure("decode, one core", "tiles/s", lambda: cpu_rate(read, n))
    bench.measure(
        "one core, decoding excluded", "events/s", lambda: cpu_rate(lambda: score(tiles[:n]), n)
    )
    bench.measure(
        "one core, decoding included",
        "events/s",
        lambda: cpu_rate(lambda: score(read()[:, np.newaxis]), n),
    )


def measure_peak_finder(bench: Bench, tiles: Pixels) -> None:
    """The conventional method on one core: on whole frames, as it is used, and on the same tile."""
    find = PeakFinder()
    for pixels, shown, n_tiles in (
        (make_frames(1 if bench.small else 4), "whole frames", TILES_PER_FRAME),
        (tiles[:16, 0], "centre tiles", 1),
    ):
        good = np.ones(pixels.shape[1:], np.bool_)
        radius = np.hypot(*(np.indices(good.shape) - (len(good) - 1) / 2))
        count = partial(find.count, pixels, good, radius, adu_per_photon=1.0)
        rate = partial(cpu_rate, count, len(pixels))
        name = f"peak finder on {shown}, one core"
        bench.measure(f"{name}, decoding excluded", "events/s", rate)
        bench.measure(
            f"{name}, decoding included", "events/s", partial(with_decoding, bench, name, n_tiles)
        )


def with_decoding(bench: Bench, name: str, n_tiles: int) -> float:
    """Rate of one core that also decodes so many tiles an event."""
    alone = bench.value(f"{name}, decoding excluded")
    return 1 / (1 / alone + n_tiles / bench.value("decode, one core"))


def measure_limits(bench: Bench, packed: Stored) -> None:
    """Decoding by several threads, or processes, and the way to the device."""
    for t in bench.threads:
        decode = partial(decode_on_threads, packed, bench.tiles, t)
        rate = partial(wall_rate, bench, decode, bench.tiles * t)
        bench.measure("decode limit", "tiles/s", rate, threads=t)
    most = max(bench.threads)
    rate = partial(decode_in_processes, bench, packed, most)
    bench.measure("decode limit without Python's lock", "tiles/s", rate, processes=most)
    for kind in ("pinned", "pageable"):
        bench.measure("host to device", "GB/s", partial(bandwidth, bench, kind), memory=kind)
    bench.measure(
        "copy limit",
        "tiles/s",
        lambda: 1e9 * bench.value("host to device", memory="pinned") / TILE_BYTES,
    )


def decode_on_threads(packed: Stored, tiles: int, n_threads: int, n: int) -> None:
    """Decode, each thread into memory that it keeps."""
    kept: SimpleQueue[Pixels] = SimpleQueue()
    for _ in range(n_threads):
        kept.put(room_for(tiles))

    def decode(part: range) -> None:
        there = kept.get()
        packed.read(part, there)
        kept.put(there)

    parts = [range(i, min(i + tiles, n)) for i in range(0, n, tiles)]
    with ThreadPoolExecutor(n_threads) as threads:
        for _ in threads.map(decode, parts):
            pass


def decode_in_processes(bench: Bench, packed: Stored, n: int) -> float:
    """Tiles per second of as many processes, which share nothing: what the processors could do."""
    if not packed.encoded:
        raise UnmeasuredError("nothing is packed")
    fork = multiprocessing.get_context("fork")
    begin, rates = fork.Barrier(n), fork.SimpleQueue()

    def decode() -> None:
        there = room_for(bench.tiles)
        packed.read(range(bench.tiles), there)
        begin.wait()
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < bench.seconds:
            packed.read(range(bench.tiles), there)
            done += bench.tiles
        rates.put(done / (time.perf_counter() - start))

    with warnings.catch_warnings():
        # They end before they could miss one of this process's threads.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        processes = [fork.Process(target=decode, daemon=True) for _ in range(n)]
        for process in processes:
            process.start()
    total = sum(rates.get() for _ in processes)
    for process in processes:
        process.join()
    return total


def bandwidth(bench: Bench, kind: str) -> float:
    """Gigabytes per second of one large copy."""
    if not bench.device.startswith("cuda"):
        raise UnmeasuredError("no CUDA device, so nothing is copied")
    n_bytes = 2**28
    here = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=kind == "pinned").fill_(1)
    there = torch.empty(n_bytes, dtype=torch.uint8, device=bench.device)
    taken = []
    for _ in range(8):
        torch.cuda.synchronize(bench.device)
        start = time.perf_counter()
        there.copy_(here, non_blocking=True)
        torch.cuda.synchronize(bench.device)
        taken.append(time.perf_counter() - start)
    return n_bytes / min(taken) / 1e9


def measure_poster(
    bench: Bench, tiles: Pixels, packed: Stored, network: HitNetwork, fused: FusedNetwork
) -> None:
    """The poster's network on the device: numbers of 32 and 16 bits, eager and compiled."""
    store = RunStore(4 if bench.small else 64)
    seen = normalise(tiles, GOOD, adu_per_photon=1.0, how=HOW)
    expected = hit_probability(fused.outputs(seen, GOOD))

    def poster(n_threads: int, *, half: bool, compiled: bool) -> PosterOnDevice:
        if compiled and not bench.compiled:
            raise UnmeasuredError("not asked for on a processor; pass --compiled")
        settings = DeviceSettings(
            device=bench.device,
            half=half,
            compiled=compiled,
            n_threads=n_threads,
            tiles=bench.tiles,
        )
        return PosterOnDevice(network, fused=fused, how=HOW, settings=settings)

    for half, compiled in itertools.product((False, True), repeat=2):
        of = {
            "precision": "half" if half else "float32",
            "mode": "compiled" if compiled else "eager",
        }
        make = partial(poster, half=half, compiled=compiled)
        bench.measure(
            "largest difference of a probability",
            "",
            partial(difference, bench, make, tiles, expected),
            **of,
        )
        bench.measure(
            "device, nothing but the network", "events/s", partial(network_rate, bench, make), **of
        )
        decoded = partial(decoded_feed, tiles, good=GOOD)
        encoded = partial(encoded_feed, packed, good=GOOD)
        bench.measure(
            "device, decoding excluded",
            "events/s",
            partial(poster_rate, bench, make, decoded, min(2, max(bench.threads))),
            **of,
        )
        for t in bench.threads:
            bench.measure(
                "device, decoding included",
                "events/s",
                partial(poster_rate, bench, make, encoded, t),
                threads=t,
                **of,
            )
        bench.measure(
            "device, decoding included, task by task",
            "events/s",
            partial(task_rate, bench, make, encoded),
            threads=max(bench.threads),
            **of,
        )
        bench.measure(
            "device, reading a run store included",
            "events/s",
            partial(run_store_rate, bench, make, store),
            threads=max(bench.threads),
            **of,
        )


def difference(
    bench: Bench,
    make: Callable[[int], PosterOnDevice],
    tiles: Pixels,
    expected: NDArray[np.float32],
) -> float:
    """How far the device's probabilities are from the processor's, at worst."""
    poster = make(1)
    found = poster.score(decoded_feed(tiles, len(tiles), GOOD)).score
    worst = float(np.abs(found - expected).max())
    if not worst <= poster.tolerance:
        bench.failures.append(f"off by {worst:.2g}, expected at most {poster.tolerance}")
    return worst


def poster_rate(
    bench: Bench,
    make: Callable[[int], PosterOnDevice],
    feed: Callable[[int], Feed],
    n_threads: int,
) -> float:
    """Events per second of the whole way, with so many threads that read."""
    poster = make(n_threads)
    step = bench.tiles * (1 if bench.small else max(8, n_threads))
    return wall_rate(bench, lambda n: poster.score(feed(n)), step)


def run_store_rate(bench: Bench, make: Callable[[int], PosterOnDevice], store: RunStore) -> float:
    """Events per second from files that the system holds in memory."""
    feed = partial(run_store_feed, store.opened(), good=GOOD)
    return poster_rate(bench, make, feed, max(bench.threads))


def task_rate(
    bench: Bench, make: Callable[[int], PosterOnDevice], feed: Callable[[int], Feed]
) -> float:
    """Events per second if the threads stop after each scoring task, as they do in a run."""
    poster = make(max(bench.threads))
    task = 2 * bench.tiles if bench.small else EVENTS_PER_TASK

    def score(n: int) -> None:
        for _ in range(0, n, task):
            poster.score(feed(task))

    return wall_rate(bench, score, task)


def network_rate(bench: Bench, make: Callable[[int], PosterOnDevice]) -> float:
    """Events per second once the bytes are on the device."""
    poster = make(1)
    n = min(bench.tiles, poster.seam.most_at_once)
    sent = torch.ones(n * TILE_BYTES, dtype=torch.uint8, device=bench.device)
    good = torch.ones((1, *TILE_SHAPE), dtype=torch.bool, device=bench.device)
    least, dtype, finite = least_variance(HOW, 1.0), np.dtype(np.uint16), True

    def score(n_events: int) -> None:
        with torch.inference_mode(), poster.seam.exact():
            for _ in range(0, n_events, n):
                margin = poster.margin(as_numbers(sent, dtype), good, least, finite)
            poster.seam.fetch(margin)()

    return wall_rate(bench, score, n * (1 if bench.small else 8))


def measure_patches(bench: Bench) -> None:
    """The patch network on all tiles of a frame; threads find its candidates, or the device."""
    n_frames = 2 if bench.small else 16
    frames = make_tiles(n_frames * TILES_PER_FRAME, 3).reshape(n_frames, -1, *TILE_SHAPE)
    good = np.ones(frames.shape[1:], np.bool_)
    bench.measure("candidates, one core", "tiles/s", partial(candidates_rate, frames[:1], good))
    packed = Stored(frames)
    feeds = {
        "excluded": partial(decoded_feed, frames, good=good),
        "included": partial(encoded_feed, packed, good=good),
    }
    searches = {"": False, ", searched on the device": True}
    for t, (decoding, feed), (where, on_device) in itertools.product(
        bench.threads, feeds.items(), searches.items()
    ):
        bench.measure(
            f"patches, decoding {decoding}{where}",
            "events/s",
            partial(patches_rate, bench, feed, t, search_on_device=on_device),
            threads=t,
        )


def candidates_rate(frames: Pixels, good: NDArray[np.bool_]) -> float:
    """Tiles per second in which one core finds the candidates."""
    from sfxreduce.scorers.cnn.patches.candidates import CandidateFinder

    find = CandidateFinder()
    return cpu_rate(lambda: find(frames, good, adu_per_photon=1.0), len(frames) * len(good))


def patches_rate(
    bench: Bench, feed: Callable[[int], Feed], n_threads: int, *, search_on_device: bool
) -> float:
    """Events per second of the patch network, with so many threads that read."""
    try:
        from sfxreduce.scorers.cnn.patches.candidates import CandidateFinder
        from sfxreduce.scorers.cnn.patches.gpu import PatchesOnDevice
        from sfxreduce.scorers.cnn.patches.network import PatchNetwork
        from sfxreduce.scorers.cnn.patches.pooling import Pooling
    except ImportError as error:
        raise UnmeasuredError(f"the patch network cannot be loaded ({error})") from error
    torch.manual_seed(1)
    scorer = PatchesOnDevice(
        PatchNetwork(),
        finder=CandidateFinder(),
        pooling=Pooling(),
        settings=DeviceSettings(
            device=bench.device,
            n_threads=n_threads,
            tiles=bench.tiles,
            search_on_device=search_on_device,
        ),
    )
    events = max(1, bench.tiles // TILES_PER_FRAME)  # of one sub-batch
    return wall_rate(bench, lambda n: scorer.score(feed(n)), events * n_threads)


def measure_ratios(bench: Bench) -> None:
    """How near the device comes to its limits, and how far it leaves one core behind."""
    for t in bench.threads:
        bench.measure(
            "share of the smaller limit", "", partial(share_of_limit, bench, t), threads=t
        )
    others = (
        "one core",
        "peak finder on whole frames, one core",
        "peak finder on centre tiles, one core",
    )
    for other, decoding in itertools.product(others, ("excluded", "included")):
        bench.measure(
            f"device over {other}, decoding {decoding}",
            "times",
            partial(ratio, bench, other, decoding),
        )


def share_of_limit(bench: Bench, n_threads: int) -> float:
    """Rate of the whole way over what decoding and copying would each allow alone."""
    decoding = bench.value("decode limit", threads=n_threads)
    limit = min(decoding, bench.value("copy limit"))
    return bench.value("device, decoding included", threads=n_threads) / limit


def ratio(bench: Bench, other: str, decoding: str) -> float:
    """Return the device's best rate over another's."""
    best = bench.value(f"device, decoding {decoding}")
    return best / bench.value(f"{other}, decoding {decoding}")


# What is said


def machine(device: str) -> dict[str, Any]:
    """Facts that the figures depend on."""
    facts: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "numba": numba.__version__,
    }
    if not device.startswith("cuda"):
        return facts | {"gpu": None, "driver": None, "gpu_reason": "no CUDA device was asked for"}
    properties = torch.cuda.get_device_properties(device)
    return (
        facts
        | {
            "gpu": properties.name,
            "gpu_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
        | card_facts()
    )


def card_facts() -> dict[str, Any]:
    """What the driver's own tool tells."""
    names = ("driver_version", "pcie.link.gen.current", "pcie.link.width.current")
    query = f"--query-gpu={','.join(names)}"
    try:
        answer = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        return {"driver": None, "driver_reason": f"nvidia-smi: {error}"}
    driver, *link = (part.strip() for part in answer.splitlines()[0].split(","))
    return {"driver": driver, "pcie": "generation " + ", lanes ".join(link)}


def cpu_name() -> str:
    """Return the processor's name, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def print_table(facts: dict[str, Any], figures: Sequence[Figure]) -> None:
    for name, fact in facts.items():
        print(f"{name:<12}{fact}")
    print(f"\n{'':<74}{'value':>12}  unit")
    for figure in figures:
        what = ", ".join([figure.what, *(f"{k} {v}" for k, v in figure.of.items())])
        value = "-" if figure.value is None else f"{figure.value:.4g}"
        print(f"{what:<74}{value:>12}  {figure.unit}{figure.reason and f' ({figure.reason})'}")


def run(options: argparse.Namespace) -> Bench:
    """Measure everything."""
    small = options.small
    bench = Bench(
        device=options.device,
        small=small,
        compiled=options.compiled or options.device.startswith("cuda"),
        tiles=options.tiles or (4 if small else 128),
        seconds=0.1 if small else options.seconds,
        threads=options.threads or thread_counts(2 if small else 64),
        json=options.json,
        machine=machine(options.device),
    )
    tiles = make_tiles(8 if small else 512)
    network = loud_network()
    fused = FusedNetwork.of({name: value.numpy() for name, value in network.state_dict().items()})
    packed = Stored(tiles)
    measure_one_core(bench, tiles, packed, fused)
    measure_peak_finder(bench, tiles)
    measure_limits(bench, packed)
    measure_poster(bench, tiles, packed, network, fused)
    measure_patches(bench)
    measure_ratios(bench)
    return bench


def thread_counts(most: int) -> list[int]:
    """Powers of two up to the number of processors, and that number."""
    cores = min(len(os.sched_getaffinity(0)), most)
    return sorted({2**i for i in range(cores.bit_length())} & set(range(1, cores + 1)) | {cores})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="everything once, in a minute")
    parser.add_argument("--compiled", action="store_true", help="also compiled, on a processor")
    parser.add_argument(
        "--threads", type=int, nargs="+", help="that decode; 1, 2, 4, ... if not given"
    )
    parser.add_argument("--tiles", type=int, default=0, help="of one sub-batch")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one timing")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no CUDA device that torch can use; pass --device cpu")
    torch.set_num_threads(1)
    bench = run(options)
    print_table(bench.machine, bench.figures)
    if bench.failures:
        sys.exit("\n".join(bench.failures))


if __name__ == "__main__":
    main()
