"""Weights become a network, and normalised events become hit probabilities."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray

from sfxreduce.errors import ModelError
from sfxreduce.scorers.cnn.gpu.batches import Batches, Fetched, assembled
from sfxreduce.scorers.cnn.gpu.device import seam_of
from sfxreduce.scorers.cnn.model import CALIBRATION, Model
from sfxreduce.scorers.cnn.patches.gpu import PatchesOnDevice
from sfxreduce.scorers.cnn.patches.network import PatchNetwork
from sfxreduce.scorers.cnn.poster.cpu import FusedNetwork
from sfxreduce.scorers.cnn.poster.gpu import DeviceSettings, PosterOnDevice
from sfxreduce.scorers.cnn.poster.network import HitNetwork

__all__ = ["device_scorer", "hit_probability", "load_network"]

# Tiles that go through the network together. Always the same number, the last group filled up
# with zeros: torch may choose other arithmetic for another shape, and an event's score must not
# depend on how many others were scored with it. On a CPU more tiles no longer fit the cache.
_TILES_AT_ONCE = {"cpu": 8, "cuda": 64}


def load_network(model: Model, *, device: str = "cpu") -> HitNetwork | PatchNetwork:
    """Build the network of a model, ready to score.

    Sets torch to one thread in this process: workers share a machine process by process.

    Parameters
    ----------
    device : str
        "cpu", "cuda" or "cuda:N".

    Raises
    ------
    ModelError
        If the weights are not those of the architecture.
    ClusterError
        If the device is not there.
    """
    target = seam_of(device).device
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
    return network.eval().requires_grad_(requires_grad=False).to(target)


def device_scorer(model: Model, settings: DeviceSettings) -> PosterOnDevice | PatchesOnDevice:
    """Build what scores events of a model on a device while threads decode the next ones.

    Raises
    ------
    ModelError
        If the weights are not those of the architecture.
    ClusterError
        If the device is not there.
    """
    network, config = load_network(model, device=settings.device), model.config
    if isinstance(network, PatchNetwork):
        return PatchesOnDevice(
            network,
            finder=config.candidates,
            pooling=config.pooling,
            class_head=model.class_head,
            usual=model.usual,
            settings=settings,
        )
    fused = FusedNetwork.of(model.weights)
    return PosterOnDevice(network, fused=fused, how=config.normalisation, settings=settings)


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

    Returns
    -------
    ndarray of float32
        Shape (event,), between 0 and 1. Where the device's memory is full, groups are halved; what
        does not fit at all is answered by the processor.
    """
    seam = seam_of(device)

    def on_device(start: int, size: int) -> Fetched:
        return seam.fetch(_of_group(network, seen[start : start + size], size, seam.device))

    def on_cpu(start: int, stop: int) -> NDArray[np.float32]:
        return hit_probability(copy.deepcopy(network).cpu(), seen[start:stop])

    size = max(1, _TILES_AT_ONCE[seam.device.type] // seen.shape[1])
    batches = Batches(size=size, forget=seam.forget)
    with torch.inference_mode():
        return assembled(batches.run(len(seen), on_device=on_device, on_cpu=on_cpu), len(seen))


def _of_group(
    network: HitNetwork, seen: NDArray[np.floating], size: int, device: torch.device
) -> torch.Tensor:
    """Hit probability of some events, filled up with blank ones."""
    group = np.zeros((size, *seen.shape[1:]), np.float32)
    group[: len(seen)] = seen
    outputs: torch.Tensor = network(torch.from_numpy(group).to(device))
    return outputs.softmax(dim=1)[:, 1].contiguous()
