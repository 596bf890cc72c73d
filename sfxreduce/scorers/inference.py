"""Weights become a network, and normalised events become hit probabilities."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from sfxreduce.errors import ClusterError, ModelError
from sfxreduce.scorers.network import HitNetwork
from sfxreduce.scorers.patches import PatchNetwork
from sfxreduce.scorers.weights import CALIBRATION, Model

__all__ = ["hit_probability", "load_network"]

# Tiles that go through the network together. Always the same number, the last group filled up
# with zeros: torch may choose other arithmetic for another shape, and an event's score must not
# depend on how many others were scored with it. On a CPU more tiles no longer fit the cache.
_TILES_AT_ONCE = {"cpu": 8, "cuda": 64}


def load_network(model: Model, *, device: str = "cpu") -> HitNetwork | PatchNetwork:
    """Build the network of a model, ready to score.

    Sets torch to one thread in this process: workers share a machine process by process.

    Parameters
    ----------
    model : Model
    device : str
        "cpu", "cuda" or "cuda:N".

    Raises
    ------
    ModelError
        If the weights are not those of the architecture.
    ClusterError
        If the device is not there.
    """
    _check_device(device)
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):  # weights drawn here are overwritten
        network = PatchNetwork() if model.config.architecture == "patches" else HitNetwork()
    weights = {
        name: torch.from_numpy(array.copy())
        for name, array in model.weights.items()
        if not name.startswith(CALIBRATION)
    }
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        found = {name: tuple(array.shape) for name, array in model.weights.items()}
        odd = sorted(n for n in wanted | found if wanted.get(n) != found.get(n))
        raise ModelError(
            f"model: expected the weights of architecture '{model.config.architecture}', found "
            f"{odd} missing, unknown or of another shape; train the model again"
        ) from error
    return network.eval().requires_grad_(requires_grad=False).to(device)


def hit_probability(
    network: HitNetwork, seen: NDArray[np.floating], *, device: str = "cpu"
) -> NDArray[np.float32]:
    """Hit probability of normalised events.

    Parameters
    ----------
    network : HitNetwork
        On `device`.
    seen : ndarray
        Shape (event, tile, y, x), normalised.
    device : str

    Returns
    -------
    ndarray of float32
        Shape (event,), between 0 and 1.
    """
    step = max(1, _TILES_AT_ONCE[device.partition(":")[0]] // seen.shape[1])
    probability = np.empty(len(seen), np.float32)
    group = np.zeros((step, *seen.shape[1:]), np.float32)
    with torch.inference_mode():
        for start in range(0, len(seen), step):
            n = min(step, len(seen) - start)
            group[:n] = seen[start : start + n]
            group[n:] = 0
            outputs = network(torch.from_numpy(group).to(device))
            probability[start : start + n] = outputs.softmax(dim=1)[:n, 1].cpu().numpy()
    return probability


def _check_device(device: str) -> None:
    """Raise unless torch can use the device."""
    kind = device.partition(":")[0]
    if kind not in _TILES_AT_ONCE:
        raise ClusterError(f"device: expected cpu, cuda or cuda:N, found '{device}'; pass --device")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ClusterError(
            f"device '{device}': expected a CUDA device, found none that torch {torch.__version__} "
            "can use; pass --device cpu"
        )
