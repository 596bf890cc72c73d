"""The fused scorer against torch and onnxruntime: CPU milliseconds per event, one thread.

All see the same random weights and the same tiles in one process, turn by turn, so that what else
the machine does meets all of them; medians of several rounds. Random weights say nothing about
accuracy, only that all give the same answer. Quote the ratios: the milliseconds are this machine's.
Without onnxruntime and onnx its row shows dashes.

    python benchmarks/fused.py
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))  # before torch loads

import numpy as np
import torch
from numpy.typing import NDArray

from sfxreduce.scorers.fused import (
    FusedNetwork,
    fused_probability_of_pixels,
    fused_probability_of_tiles,
)
from sfxreduce.scorers.network import TILE_SHAPE, HitNetwork
from sfxreduce.scorers.normalise import Normalisation, normalise

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--events", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    n = options.events
    trunk = HitNetwork().eval().trunk
    weights = {f"trunk.{name}": value.numpy() for name, value in trunk.state_dict().items()}
    fused, good = FusedNetwork.of(weights), np.ones((1, *TILE_SHAPE), bool)
    pixels = np.random.default_rng(0).poisson(5, (n, 1, *TILE_SHAPE)).astype(np.uint16)
    seen = pixels * np.float32(SCALE) + np.float32(OFFSET)
    how = Normalisation()
    actions: dict[str, Action] = {
        "fused, uint16 pixels in": lambda: fused_probability_of_pixels(
            fused, pixels, good, scale=SCALE, offset=OFFSET
        ),
        "fused, float32 tiles in": lambda: fused_probability_of_tiles(fused, seen),
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
    actions["normalise + fused"] = lambda: fused_probability_of_tiles(
        fused, normalise(pixels, good, how=how)
    )
    taken = cpu_ms(actions, options.repeats)
    if "onnxruntime, batch 32" not in taken:
        taken |= dict.fromkeys(("onnxruntime, batch 1", "onnxruntime, batch 32"), float("nan"))
    print(f"{'one tile an event, one thread':<32}{'CPU-ms per event':>18}{'of fused':>10}")
    for name, spent in taken.items():
        ratio = spent / taken["fused, uint16 pixels in"]
        print(
            f"{name:<32}"
            + (f"{spent / n:>18.2f}{ratio:>9.1f}x" if spent > 0 else f"{'-':>18}{'-':>10}")
        )


if __name__ == "__main__":
    main()
