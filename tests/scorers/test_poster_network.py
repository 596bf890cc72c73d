"""The network is the poster's, layer by layer."""

from __future__ import annotations

import math

import torch
from torch import nn

from sfxreduce.scorers.cnn.poster.network import TILE_SHAPE, HitNetwork


def _shapes_of(network: HitNetwork) -> list[tuple[str, tuple[int, ...]]]:
    """What each layer of the trunk puts out for one tile."""
    shapes = []
    x = torch.zeros(1, 1, *TILE_SHAPE)
    for layer in network.trunk:
        x = layer(x)
        shapes.append((type(layer).__name__, tuple(x.shape[1:])))
    return shapes


def test_every_layer_has_the_size_the_poster_prints() -> None:
    assert _shapes_of(HitNetwork()) == [
        ("Conv2d", (4, 344, 344)),
        ("MaxPool2d", (4, 68, 68)),
        ("ReLU", (4, 68, 68)),
        ("Conv2d", (4, 62, 62)),
        ("MaxPool2d", (4, 12, 12)),
        ("ReLU", (4, 12, 12)),
        ("Flatten", (576,)),
        ("Linear", (576,)),
        ("ReLU", (576,)),
        ("Linear", (16,)),
        ("ReLU", (16,)),
        ("Linear", (2,)),
    ]


def test_one_event_costs_26_5_million_multiply_adds() -> None:
    network = HitNetwork()
    count = 0
    for layer, (_, shape) in zip(network.trunk, _shapes_of(network), strict=True):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            count += math.prod(shape) * layer.weight[0].numel()
    assert count == 26_548_576


def test_the_parameters_are_those_of_the_layers() -> None:
    convolutions = 4 * (49 + 1) + 4 * (4 * 49 + 1)
    connected = 576 * (576 + 1) + 16 * (576 + 1) + 2 * (16 + 1)
    n_parameters = sum(p.numel() for p in HitNetwork().parameters())
    assert n_parameters == convolutions + connected


def test_pooling_before_relu_gives_the_posters_numbers() -> None:
    torch.manual_seed(0)
    network = HitNetwork()
    layers = list(network.trunk)
    printed = nn.Sequential(
        *(layers[i] for i in (0, 2, 1, 3, 5, 4)), *layers[6:]
    )  # convolution, ReLU, pooling
    tiles = torch.randn(3, 1, *TILE_SHAPE)
    with torch.inference_mode():
        torch.testing.assert_close(network(tiles), printed(tiles))


def test_the_loudest_tile_speaks_for_the_event() -> None:
    torch.manual_seed(1)
    network = HitNetwork()
    tiles = 3 * torch.randn(2, 4, *TILE_SHAPE)
    with torch.inference_mode():
        together = network(tiles)
        alone = torch.stack([network(tiles[:, [i]]) for i in range(4)], dim=1)
    evidence = alone[..., 1] - alone[..., 0]
    torch.testing.assert_close(together[:, 1] - together[:, 0], evidence.max(dim=1).values)
