"""The fused scorers against torch and onnxruntime: CPU time per event or candidate, one thread.

All see the same random weights and the same tiles in one process, turn by turn, so that what else
the machine does meets all of them; medians of several rounds. Random weights say nothing about
accuracy, only that all give the same answer. Quote the ratios: the times are this machine's.
Without onnxruntime and onnx there is no row of theirs.

    python benchmarks/fused.py
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))  # before torch loads

import numpy as np
import torch
from numpy.typing import NDArray
from rows import Row

from sfxreduce.scorers.cnn.patches.candidates import PATCH, Candidates
from sfxreduce.scorers.cnn.patches.cpu import FusedPatchNetwork
from sfxreduce.scorers.cnn.patches.network import PatchNetwork, patch_logits
from sfxreduce.scorers.cnn.poster.cpu import FusedNetwork
from sfxreduce.scorers.cnn.poster.network import TILE_SHAPE, HitNetwork
from sfxreduce.scorers.cnn.poster.normalise import Normalisation, normalise

Action = Callable[[], NDArray[np.float32]]
SCALE, OFFSET = 0.1, -0.5


def probability(margin: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of hits, from how much louder they are than misses."""
    return np.exp(-np.logaddexp(0, -margin)).astype(np.float32)


def by_torch(
    network: torch.nn.Module, seen: NDArray[np.float32], batch: int, *, channels_last: bool
) -> Action:
    """Eager torch on batches of tiles, in the order of axes it takes by itself or channels last."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    parts = torch.split(torch.from_numpy(seen), batch)

    def action() -> NDArray[np.float32]:
        with torch.inference_mode():
            outputs = torch.cat([network(part.contiguous(memory_format=order)) for part in parts])
        return probability((outputs[:, 1] - outputs[:, 0]).numpy())

    return action


def by_onnxruntime(trunk: torch.nn.Sequential, seen: NDArray[np.float32], batch: int) -> Action:
    """Batches of tiles in onnxruntime, float32, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        onnx_model(trunk), options, providers=["CPUExecutionProvider"]
    )
    parts = [seen[start : start + batch] for start in range(0, len(seen), batch)]

    def action() -> NDArray[np.float32]:
        outputs = np.concatenate([session.run(None, {"tiles": part})[0] for part in parts])
        return probability(outputs[:, 1] - outputs[:, 0])

    return action


def onnx_model(trunk: torch.nn.Sequential) -> bytes:
    """The trunk as an ONNX file, layer by layer."""
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes, constants, last = [], [], "tiles"
    for i, layer in enumerate(trunk):
        names = [last]
        for kind, value in layer.named_parameters():
            names.append(f"{kind}{i}")
            constants.append(numpy_helper.from_array(value.detach().numpy(), names[-1]))
        settings: dict[str, tuple[str, dict[str, Any]]] = {
            "Conv2d": ("Conv", {"kernel_shape": [7, 7]}),
            "MaxPool2d": ("MaxPool", {"kernel_shape": [5, 5], "strides": [5, 5]}),
            "ReLU": ("Relu", {}),
            "Flatten": ("Flatten", {}),
            "Linear": ("Gemm", {"transB": 1}),
        }
        operator, attributes = settings[type(layer).__name__]
        last = f"values{i}"
        nodes.append(helper.make_node(operator, names, [last], **attributes))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("tiles", ["n", 1, *TILE_SHAPE]), (last, ["n", 2]))
    ]
    graph = helper.make_graph(nodes, "hits", ends[:1], ends[1:], constants)
    # Old enough for every onnxruntime; newer versions change nothing for these layers.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return bytes(model.SerializeToString())


def cpu_ms(actions: dict[str, Action], repeats: int) -> dict[str, float]:
    """Median CPU time of a call of each in milliseconds, after one call that compiles."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()
    for _ in range(repeats):
        for name, action in actions.items():
            start = time.process_time()
            action()
            taken[name].append(time.process_time() - start)
    return {name: 1e3 * statistics.median(times) for name, times in taken.items()}


def patch_actions(n: int) -> dict[str, Action]:
    """The patch network on `n` candidates, many or few a call; all give the same logits."""
    network = PatchNetwork().eval().requires_grad_(requires_grad=False)
    fused = FusedPatchNetwork.of({k: v.numpy() for k, v in network.state_dict().items()})
    rng = np.random.default_rng(0)
    patch = rng.normal(0, 2, (n, PATCH, PATCH)).clip(-4, 16).astype(np.float16)
    noise, nowhere = rng.lognormal(0, 1, n).astype(np.float32), np.zeros(n, np.int16)

    def action(logits: Callable[[Candidates], NDArray[np.float32]], size: int) -> Action:
        parts = [
            Candidates(
                tile=nowhere[i : i + size].astype(np.int32),
                y=nowhere[i : i + size],
                x=nowhere[i : i + size],
                scale=np.ones(len(nowhere[i : i + size]), np.uint8),
                prominence=noise[i : i + size],
                noise_photons=noise[i : i + size],
                patch=patch[i : i + size],
            )
            for i in range(0, n, size)
        ]
        return lambda: np.concatenate([logits(part) for part in parts])

    actions = {
        "fused, 512 a call": action(fused.logits, 512),
        "fused, 5 a call": action(fused.logits, 5),
        "torch eager, 512 a call": action(partial(patch_logits, network), 512),
        "torch eager, 5 a call": action(partial(patch_logits, network), 5),
    }
    expected = actions["torch eager, 512 a call"]()
    for name, logits in actions.items():
        if not np.allclose(logits(), expected, rtol=1e-4, atol=1e-5):
            raise SystemExit(f"{name}: expected the logits of torch, found others")
    return actions


def measure(*, n_events: int = 32, repeats: int = 7) -> list[Row]:
    """Time the poster's network in every runtime; see `end_to_end` for what normalising adds.

    Parameters
    ----------
    n_events : int
        Of one tile each.
    repeats : int
    """
    taken = cpu_ms(poster_actions(n_events), repeats)
    per_candidate = cpu_ms(patch_actions(5 * 512), repeats)
    base = taken["fused, uint16 pixels in"]
    section, ours = "the networks alone", "the poster's network, fused"
    rows = [Row(section=section, name=ours, cpu_ms=base / n_events)]
    wanted = {"torch eager, batch 32": "at least 10", "onnxruntime, batch 32": "at least 4"}
    for name, spent in taken.items():
        if name.startswith(("torch", "onnx")):
            row = Row(section=section, name=name, cpu_ms=spent / n_events, against=ours)
            rows.append(replace(row, ratio=spent / base, wanted=wanted.get(name, "")))
    if not any(row.name.startswith("onnx") for row in rows):
        rows.append(Row(section=section, name="onnxruntime", cpu_ms=None, note="not installed"))
    fused = per_candidate["fused, 512 a call"]
    for name, spent in per_candidate.items():
        row = Row(section=section, name=f"patch network, {name}", cpu_ms=spent / 5)
        note = "512 candidates, about as many as a whole frame has"
        rows.append(replace(row, against="patch network, fused", ratio=spent / fused, note=note))
    return rows


def poster_actions(n: int) -> dict[str, Action]:
    """The poster's network on `n` tiles in every runtime; all give the same probabilities."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trunk = HitNetwork().eval().trunk
    weights = {f"trunk.{name}": value.numpy() for name, value in trunk.state_dict().items()}
    fused, good = FusedNetwork.of(weights), np.ones((1, *TILE_SHAPE), bool)
    pixels = np.random.default_rng(0).poisson(5, (n, 1, *TILE_SHAPE)).astype(np.uint16)
    seen = pixels * np.float32(SCALE) + np.float32(OFFSET)
    how = Normalisation()
    actions: dict[str, Action] = {
        "fused, uint16 pixels in": lambda: hit_probability(
            fused.outputs(pixels, good, scale=SCALE, offset=OFFSET)
        ),
        "fused, float32 tiles in": lambda: hit_probability(fused.outputs(seen, good)),
        "torch eager, batch 32": by_torch(trunk, seen, 32, channels_last=False),
        "torch channels last, batch 8": by_torch(trunk, seen, 8, channels_last=True),
    }
    if all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
        actions["onnxruntime, batch 1"] = by_onnxruntime(trunk, seen, 1)
        actions["onnxruntime, batch 32"] = by_onnxruntime(trunk, seen, 32)
    expected = actions["torch eager, batch 32"]()
    for name, action in actions.items():
        if not np.allclose(action(), expected, rtol=1e-4):
            raise SystemExit(f"{name}: expected the probabilities of torch, found others")
    # What normalisation adds to whichever runtime; it has other numbers, so no answer to compare.
    actions["normalise alone"] = lambda: normalise(pixels, good, how=how)
    actions["normalise + fused"] = lambda: hit_probability(
        fused.outputs(normalise(pixels, good, how=how), good)
    )
    return actions


def hit_probability(outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of events, shape (event,), by the tile that speaks loudest, shape (event, tile, 2)."""
    return probability((outputs[..., 1] - outputs[..., 0]).max(axis=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--events", type=int, default=32)
    options = parser.parse_args()
    for row in measure(n_events=options.events, repeats=options.repeats):
        print(row.line)


if __name__ == "__main__":
    main()
