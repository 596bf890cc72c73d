"""Calibration of small pictures: what hits and blanks score where there are fewer tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.decisions.drift import usual_shape
from sfxreduce.decisions.threshold import Promise, binomial_threshold, share_upper
from sfxreduce.scorers.calibration.record import level_rule
from sfxreduce.scorers.cnn.model import CALIBRATION, Model
from sfxreduce.simulate.truth import HIT_PEAKS
from sfxreduce.train.patches.calibrate import SIZES, groups_of
from sfxreduce.train.patches.left_out import threshold_of_run
from sfxreduce.train.patches.simulated import Material

__all__ = ["OfSize", "judge_sizes", "table_of_sizes", "with_sizes"]

_MOST_TILES = 25
"""Of a frame, the tiles nearest to the middle are cut into pictures: no more show enough peaks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfSize:
    """How pictures of some tiles fared, each experiment judged by what was learned elsewhere.

    Parameters
    ----------
    hits, lost : int
        Pictures with 10 or more true peaks on them, and those of them below the threshold.
    blanks, rejected : int
        Pictures without a crystal, and those of them below the threshold.
    """

    tiles: int
    hits: int
    lost: int
    blanks: int
    rejected: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pictures:
    """Scores of an experiment's pictures of one size."""

    hits: NDArray[np.float32]
    blanks: NDArray[np.float32]
    raw: NDArray[np.float32]


def with_sizes(
    model: Model, material: Sequence[Material], evidence: Mapping[str, NDArray[np.float64]]
) -> Model:
    """Put the calibration of small pictures into a model.

    Parameters
    ----------
    evidence : mapping of str to ndarray
        By experiment, shape (event, tile): of networks that have not learned from it.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for size in SIZES:
        parts = [_pictures(model, one, evidence[one.name], size) for one in material]
        rule = level_rule([part.raw for part in parts])
        moves = [rule.move(part.raw) for part in parts]
        hits = [rule.reduced(part.hits, by) for part, by in zip(parts, moves, strict=True)]
        blanks = [rule.reduced(part.blanks, by) for part, by in zip(parts, moves, strict=True)]
        stored: dict[str, NDArray[Any]] = {
            "hit_scores": np.concatenate(hits),
            "hit_most": np.concatenate(hits),
            "hit_groups": groups_of(hits),
            "blank_scores": np.concatenate(blanks),
            "blank_groups": groups_of(blanks),
            "usual_shape": np.array([usual_shape(hits, blanks)], np.float32),
            "level": np.array([rule.lowest, rule.highest], np.float64),
        }
        arrays |= {f"{CALIBRATION}of_{size}.{name}": array for name, array in stored.items()}
    return replace(model, weights={**model.weights, **arrays})


def judge_sizes(
    models: Mapping[str, Model],
    material: Sequence[Material],
    evidence: Mapping[str, NDArray[np.float64]],
) -> tuple[OfSize, ...]:
    """Judge pictures of each size of every experiment by the model that has not seen it.

    Parameters
    ----------
    models : mapping of str to Model
        By the experiment it has not seen.
    evidence : mapping of str to ndarray
        By experiment, shape (event, tile).
    """
    judged = []
    for size in SIZES:
        counts = np.zeros(4, np.int64)
        for one in material:
            others = [other for other in material if other is not one]
            model = with_sizes(models[one.name], others, evidence).of_size(size)
            own = _pictures(model, one, evidence[one.name], size)
            chosen = binomial_threshold(
                model.hit_scores, promise=Promise(), groups=model.hit_groups
            )
            value = threshold_of_run(model, own.raw, promised=max(chosen.value, 0.0))
            low = [int(np.sum(scores < value)) for scores in (own.hits, own.blanks)]
            counts += np.array([own.hits.size, low[0], own.blanks.size, low[1]], np.int64)
        hits, lost, blanks, rejected = counts.tolist()
        judged.append(OfSize(tiles=size, hits=hits, lost=lost, blanks=blanks, rejected=rejected))
    return tuple(judged)


def table_of_sizes(judged: Sequence[OfSize]) -> str:
    """Table in Markdown: one size a line."""
    rows = [
        f"| {one.tiles} | {one.hits} | {one.lost} | "
        f"{share_upper(one.lost, one.hits, confidence=0.95):.2%} | {one.blanks} | "
        f"{one.rejected / one.blanks:.3f} |"
        for one in judged
    ]
    head = (
        "Small pictures: tiles of the same frames, each experiment judged by a network and a\n"
        f"threshold that have not seen it. Hits have {HIT_PEAKS} or more true peaks on these "
        "tiles;\npictures of one frame are not independent, which the bound takes them to be.\n\n"
        "| tiles | hits | lost | loss below | blanks | specificity |\n|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(rows)


def _pictures(model: Model, one: Material, evidence: NDArray[np.float64], size: int) -> _Pictures:
    """Scores of pictures cut out of an experiment's frames, tiles next to one another in order."""
    pooling, hits, blanks, raw = model.config.pooling, [], [], []
    most = min(_MOST_TILES, evidence.shape[1])
    for first in range(0, most - size + 1, size):
        own = slice(first, first + size)
        score = pooling.probability(pooling.pooled(evidence[:, own], n_tiles=size))
        raw.append(score)
        enough = one.peaks_of_tiles[:, own].sum(axis=1) >= HIT_PEAKS
        hits.append(score[enough & one.has_crystal])
        blanks.append(score[one.is_blank])
    return _Pictures(
        hits=np.concatenate(hits), blanks=np.concatenate(blanks), raw=np.concatenate(raw)
    )
