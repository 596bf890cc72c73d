"""The search for candidates by torch, many tiles at a time: on a graphics card, or to be compared.

It asks the same of pixels as `sfxreduce.scorers.cnn.patches.candidates`, whose compiled kernels
look at one tile after the other; only roundings differ. What is asked of every pixel is done to
whole pictures; what is asked of candidates has a row for each of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from sfxreduce.scorers.cnn.patches.candidates import PATCH, CandidateFinder, Candidates

if TYPE_CHECKING:
    from sfxreduce.scorers.cnn.patches._candidates import Rules

__all__ = ["DeviceFinder"]

_CELL = 16
_CLIP_SIGMA, _CLIP_PASSES = 3.0, 3
_CORE = 2
_LARGEST = torch.finfo(torch.float32).max
_TILES_AT_ONCE = 64  # some 100 bytes a pixel are needed; chosen, not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFinder:
    """The search of a `CandidateFinder` on a device.

    Parameters
    ----------
    finder : CandidateFinder
        Settings of the search.
    device : str
        "cpu", "cuda" or "cuda:N".
    """

    finder: CandidateFinder
    device: str

    @property
    def most_of_tile(self) -> int:
        """Most candidates of a tile. See `CandidateFinder.most_of_tile`."""
        return self.finder.most_of_tile

    def __call__(
        self,
        pixels: NDArray[np.generic],
        good: NDArray[np.bool_],
        *,
        adu_per_photon: float = math.nan,
    ) -> Candidates:
        """Find the candidates of some events. See `CandidateFinder`."""
        gain = self.finder.gain(adu_per_photon)
        rules = self.finder.rules(gain)
        tiles = pixels.reshape(-1, *pixels.shape[-2:])
        found = []
        with torch.inference_mode():
            usable = torch.from_numpy(np.ascontiguousarray(good)).to(self.device)
            # No tiles at all are one part, so that there is something to join.
            for start in range(0, max(len(tiles), 1), _TILES_AT_ONCE):
                part = _sent(tiles[start : start + _TILES_AT_ONCE], self.device)
                of_window = torch.arange(start, start + len(part), device=self.device) % len(good)
                found.append(_searched(part, usable[of_window], rules, start).on_host())
        joined = [np.concatenate(column) for column in zip(*found, strict=True)]
        tile, y, x, scale, prominence, sigma, patch = joined
        return Candidates(
            tile=tile.astype(np.int32),
            y=y.astype(np.int16),
            x=x.astype(np.int16),
            scale=scale.astype(np.uint8),
            prominence=prominence.astype(np.float32),
            noise_photons=(sigma / gain).astype(np.float32),
            patch=patch.astype(np.float16),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _FoundOnSheets:
    """Candidates, shape (candidate, ...), ordered by tile, the most prominent first."""

    tile: Tensor
    y: Tensor
    x: Tensor
    scale: Tensor
    prominence: Tensor
    sigma: Tensor
    patch: Tensor

    @property
    def columns(self) -> tuple[Tensor, ...]:
        return self.tile, self.y, self.x, self.scale, self.prominence, self.sigma, self.patch

    def on_host(self) -> list[NDArray[np.generic]]:
        return [column.cpu().numpy() for column in self.columns]

    @classmethod
    def joined(cls, parts: Sequence[_FoundOnSheets]) -> _FoundOnSheets:
        """Candidates of several scales: those of a tile together, in the order of the parts."""
        columns = [torch.cat(column) for column in zip(*(p.columns for p in parts), strict=True)]
        order = torch.argsort(columns[0], stable=True)
        names = ("tile", "y", "x", "scale", "prominence", "sigma", "patch")
        return cls(**{name: c[order] for name, c in zip(names, columns, strict=True)})


def _sent(tiles: NDArray[np.generic], device: str) -> Tensor:
    """Pixels on the device, in single precision: as few bytes as they have travel there."""
    native = np.ascontiguousarray(tiles, tiles.dtype.newbyteorder("="))
    if native.dtype.kind == "u" and native.itemsize > 1:  # torch knows few operations on these
        there = torch.from_numpy(native.view(f"i{native.itemsize}")).to(device)
        values = there.double()
        return torch.where(there < 0, values + 2.0 ** (8 * native.itemsize), values).float()
    return torch.from_numpy(native).to(device).float()


def _searched(tiles: Tensor, good: Tensor, rules: Rules, first: int) -> _FoundOnSheets:
    """Candidates of tiles on their pixels, and on their bins."""
    nothing = torch.full_like(tiles, -math.inf)
    sheet = torch.where(good & ~tiles.isnan(), tiles, nothing)
    parts = [_on_sheet(sheet, rules, scale=1)]
    if rules.coarse > 1:
        parts.append(_on_sheet(_bins(sheet, rules.coarse), rules, scale=rules.coarse))
    found = _FoundOnSheets.joined(parts)
    found.tile.add_(first)
    return found


def _bins(sheet: Tensor, side: int) -> Tensor:
    """Squares of pixels added up; of one with bad pixels, what it would have without."""
    n_tiles, n_y, n_x = sheet.shape[0], sheet.shape[1] // side, sheet.shape[2] // side
    squares = sheet[:, : n_y * side, : n_x * side].reshape(n_tiles, n_y, side, n_x, side)
    there = squares.isfinite()
    n = there.sum(dim=(2, 4))
    total = torch.where(there, squares, 0).double().sum(dim=(2, 4))
    guess = (total * (side * side) / n.clamp(min=1)).round()
    whole = n == side * side
    value = torch.where(whole, total, guess).float()
    return torch.where(2 * n < side * side, torch.full_like(value, -math.inf), value)


def _on_sheet(sheet: Tensor, rules: Rules, *, scale: int) -> _FoundOnSheets:
    """Candidates of the sheets of some tiles, the most prominent of each first."""
    mean, sigma = _cells(sheet, rules.floor)
    tile, y, x = _highest(sheet, mean, sigma)
    cell = (tile, y // _CELL, x // _CELL)
    m, s = mean[cell], sigma[cell]
    margin = max(rules.radius, PATCH // 2)
    framed = pad(sheet, (margin,) * 4, value=-math.inf)
    around = _boxes(framed, tile, y + margin, x + margin, 1)
    rough = _prominence(around, m, s).float()
    order = torch.argsort(rough, descending=True, stable=True)
    order = order[rough[order] >= 0.9 * rules.least_prominence]
    order = _first_of_each(tile, order, 2 * rules.most_per_tile)
    tile, y, x, m, s, around = (of[order] for of in (tile, y, x, m, s, around))
    m, s = _surroundings(_boxes(framed, tile, y + margin, x + margin, rules.radius), m, s, rules)
    prominence = _prominence(around, m, s)
    kept = torch.nonzero(prominence >= rules.least_prominence)[:, 0]
    kept = _first_of_each(tile, kept, rules.most_per_tile)
    tile, y, x, m, s, prominence = (of[kept] for of in (tile, y, x, m, s, prominence))
    patch = _boxes(framed, tile, y + margin, x + margin, PATCH // 2)
    there = patch.isfinite()
    units = (torch.where(there, patch, 0).double() - m[:, None, None]) / s[:, None, None]
    return _FoundOnSheets(
        tile=tile,
        y=y * scale + (scale // 2 if scale > 1 else 0),
        x=x * scale + (scale // 2 if scale > 1 else 0),
        scale=torch.full_like(tile, scale),
        prominence=prominence,
        sigma=s,
        patch=torch.where(there, units.clamp(rules.lowest, rules.highest), 0).half(),
    )


def _cells(sheet: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Mean and sigma of every cell by iterative clipping, shape (tile, row of cells, cell)."""
    n_tiles, n_y, n_x = sheet.shape
    rows, columns = -(-n_y // _CELL), -(-n_x // _CELL)
    whole = pad(sheet, (0, columns * _CELL - n_x, 0, rows * _CELL - n_y), value=-math.inf)
    value = whole.reshape(n_tiles, rows, _CELL, columns, _CELL).transpose(2, 3).flatten(3)
    mean = value.new_zeros(value.shape[:3], dtype=torch.float64)
    sigma, limit = torch.full_like(mean, math.inf), torch.full_like(mean, _LARGEST)
    for k in range(_CLIP_PASSES):
        within = (value <= limit[..., None]) & (value > -math.inf)
        n = within.sum(dim=-1)
        off = torch.where(within, value, 0).double() - mean[..., None] * within
        centre = off.sum(dim=-1) / n
        spread = (off.square().sum(dim=-1) / n - centre.square()).clamp(min=0).sqrt()
        enough = n >= (_CELL if k == 0 else 1)
        mean = torch.where(enough, mean + centre, mean)
        sigma = torch.where(enough, spread.clamp(min=floor), sigma)
        limit = torch.where(enough, (mean + _CLIP_SIGMA * sigma).float().double(), -math.inf)
        limit = limit.clamp(max=_LARGEST)
    return mean.float(), sigma.float()


def _highest(sheet: Tensor, mean: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tile, y and x of pixels above the cell and above their neighbours; of equals the first."""
    n_y, n_x = sheet.shape[1:]
    clear = (mean.double() + 1.5 * sigma.double()).float()
    clear = clear.repeat_interleave(_CELL, 1).repeat_interleave(_CELL, 2)[:, :n_y, :n_x]
    framed = pad(sheet, (1,) * 4, value=-math.inf)

    def beside(dy: int, dx: int) -> Tensor:
        return framed[:, 1 + dy : 1 + dy + n_y, 1 + dx : 1 + dx + n_x]

    highest = (sheet > clear) & sheet.isfinite()
    for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, -1)):
        highest &= sheet > beside(dy, dx)
    for dy, dx in ((0, 1), (1, -1), (1, 0), (1, 1)):
        highest &= sheet >= beside(dy, dx)
    tile, y, x = torch.nonzero(highest, as_tuple=True)
    return tile, y, x


def _boxes(framed: Tensor, tile: Tensor, y: Tensor, x: Tensor, radius: int) -> Tensor:
    """Squares around pixels of sheets with a margin, shape (candidate, side, side)."""
    offset = torch.arange(-radius, radius + 1, device=framed.device)
    rows, columns = y[:, None] + offset, x[:, None] + offset
    return framed[tile[:, None, None], rows[:, :, None], columns[:, None, :]]


def _prominence(around: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """How far pixels, or the 3 x 3 around them, stand out, in units of sigma."""
    m, s = mean.double(), sigma.double()
    there = around.isfinite()
    off = torch.where(there, around, 0).double() - m[:, None, None] * there
    alone = (around[:, 1, 1].double() - m) / s
    return torch.maximum(alone, off.sum(dim=(1, 2)) / (there.sum(dim=(1, 2)).sqrt() * s))


def _surroundings(
    box: Tensor, cell_mean: Tensor, cell_sigma: Tensor, rules: Rules
) -> tuple[Tensor, Tensor]:
    """Mean and sigma around candidates, without their own pixels and those that stand out."""
    m, s = cell_mean.double(), cell_sigma.double()
    use = box.isfinite() & (box.double() <= (m + 4.0 * s)[:, None, None])
    core = slice(rules.radius - _CORE, rules.radius + _CORE + 1)
    use[:, core, core] = False
    n = use.sum(dim=(1, 2))
    off = torch.where(use, box, 0).double() - m[:, None, None] * use
    centre = off.sum(dim=(1, 2)) / n
    variance = (off.square().sum(dim=(1, 2)) / n - centre.square()).clamp(min=0)
    few = n < 2 * _CELL
    return (
        torch.where(few, m, m + centre),
        torch.where(few, s, variance.sqrt().clamp(min=rules.floor)),
    )


def _first_of_each(tile: Tensor, order: Tensor, most: int) -> Tensor:
    """Some rows, those of a tile together, and of each tile only the first ones in their order."""
    order = order[torch.argsort(tile[order], stable=True)]
    tile = tile[order]
    begins = torch.searchsorted(tile, tile, right=False)
    return order[torch.arange(len(order), device=order.device) - begins < most]
