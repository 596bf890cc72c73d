"""A network becomes a model: its pooling, its level and its threshold, from scored experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.decisions.drift import FEWEST_PEAKS, usual_shape
from sfxreduce.decisions.threshold import Promise, binomial_threshold
from sfxreduce.quality.frame_statistics import envelope_of
from sfxreduce.run.window import TileChoice
from sfxreduce.scorers.calibration.probability import calibrate_probability
from sfxreduce.scorers.calibration.record import FirstLook, LevelRule, level_rule
from sfxreduce.scorers.cnn.model import CALIBRATION, Model, ModelConfig, Provenance, TrainingRun
from sfxreduce.scorers.cnn.patches.network import PatchNetwork
from sfxreduce.scorers.cnn.patches.pooling import Pooling
from sfxreduce.simulate.experiments import EXPERIMENTS
from sfxreduce.simulate.truth import HIT_PEAKS
from sfxreduce.train.patches.looks import ExpectedPeaks, first_look_through
from sfxreduce.train.patches.simulated import FINDER, SEED, Material
from sfxreduce.train.patches.train import PATCHES

__all__ = ["HIT", "SIZES", "calibrated", "counted_tiles", "groups_of"]

SIZES = (1, 2, 4, 6, 9, 16)
"""Tiles of the pictures that are calibrated beside the window itself; others take the nearest."""

_ENDS, _WIDER = (0.005, 0.995), 1.25  # chosen, not measured

HIT = f"a crystal with {HIT_PEAKS} or more true peaks of signal to noise 5 on the frame"


def calibrated(
    network: PatchNetwork,
    material: Sequence[Material],
    evidence: Mapping[str, ExpectedPeaks],
    *,
    window: TileChoice,
) -> Model:
    """A network with a threshold that keeps the promise on every experiment of the material.

    Parameters
    ----------
    material : sequence of Material
        Experiments whose hits the threshold rests on.
    evidence : mapping of str to ExpectedPeaks
        By experiment: of networks that have not learned from it.
    window : TileChoice
        Through which the evidence was seen.
    """
    hits = [evidence[one.name].whole[one.is_hit] for one in material]
    blanks = [evidence[one.name].whole[one.is_blank] for one in material]
    pooling = _fitted(Pooling(), np.concatenate(blanks), np.concatenate(hits))
    rule, seen, most = _levelled(pooling, evidence, [one.name for one in material])
    hit_scores = [seen[one.name][one.is_hit] for one in material]
    hit_most = [most[one.name][one.is_hit] for one in material]
    blank_scores = [most[one.name][one.is_blank] for one in material]
    groups = groups_of(hits)
    chosen = binomial_threshold(np.concatenate(hit_scores), promise=Promise(), groups=groups)
    recorded = {
        name: np.where(most[name] < chosen.value, most[name], scores)
        for name, scores in seen.items()
    }
    envelope = envelope_of(np.concatenate([one.statistics for one in material]))
    stored: dict[str, NDArray[Any]] = {
        "hit_scores": np.concatenate(hit_scores),
        "hit_groups": groups,
        "hit_most": np.concatenate(hit_most),
        "blank_scores": np.concatenate(blank_scores),
        "blank_groups": groups_of(blank_scores),
        "usual_shape": np.array([usual_shape(hit_most, blank_scores)], np.float32),
        "envelope": envelope.astype(np.float32),
        "probability": _probability_knots(material, recorded),
        "peaks": _range_of_peaks(material, window),
    }
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    config = ModelConfig(
        architecture="patches",
        window=window,
        candidates=FINDER,
        threshold=max(chosen.value, 0.0),
        hit=HIT,
        pooling=pooling,
        level=rule,
        first_look=_first_look(material, window),
        covers=_covered(material, stored["peaks"], envelope),
        provenance=_provenance(material, chosen.sentence(hit=HIT)),
    )
    return Model(
        config=config,
        weights=weights | {f"{CALIBRATION}{name}": value for name, value in stored.items()},
    )


def _levelled(
    pooling: Pooling, evidence: Mapping[str, ExpectedPeaks], names: Sequence[str]
) -> tuple[LevelRule, dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """Rule of the level; scores, and the highest by the first tiles, less it, by experiment."""
    most = {name: evidence[name].most(pooling) for name in names}
    rule = level_rule(list(most.values()))
    moves = {name: rule.move(scores) for name, scores in most.items()}
    seen = {name: rule.reduced(evidence[name].score(pooling), moves[name]) for name in names}
    return rule, seen, {name: rule.reduced(most[name], moves[name]) for name in names}


def _probability_knots(
    material: Sequence[Material], recorded: Mapping[str, NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Knots of the curve from scores to probabilities, and the hit rate it was made at.

    Parameters
    ----------
    recorded : mapping of str to ndarray
        By experiment, scores as a ledger has them: of an event that its first tiles reject, the
        highest they allow.
    """
    shown = np.concatenate([one.has_crystal for one in material])
    known = calibrate_probability(np.concatenate(list(recorded.values())), shown)
    knots = [*zip(known.score, known.probability, strict=True), (known.hit_rate, 0.0)]
    return np.array(knots, np.float32)


def groups_of(parts: Sequence[NDArray[np.floating]]) -> NDArray[np.int32]:
    """Number of its part for each value, shape (value,)."""
    return np.repeat(np.arange(len(parts), dtype=np.int32), [part.size for part in parts])


def _covered(
    material: Sequence[Material], peaks: NDArray[np.float32], envelope: NDArray[np.float64]
) -> tuple[str, ...]:
    """What the experiments are like, a range in each."""
    known = [EXPERIMENTS[one.name] for one in material]
    gains = [one.camera.adu_per_photon for one in known]
    distances = [1e3 * one.distance_m for one in known]
    energies = [1e-3 * one.beam.photon_energy_ev for one in known]
    sizes = ", ".join(map(str, SIZES))
    (narrow, broad), (few, many) = peaks.tolist()
    light, noise = envelope[:2].clip(0.0).tolist()
    return (
        f"peaks with a standard deviation of {narrow:.2g} to {broad:.2g} pixels",
        f"{few:.0f} to {many:.0f} peaks on the tiles that are looked at first",
        f"pictures of {sizes} tiles of 350 x 350 pixels, of 25 and of more",
        f"gains of {min(gains):g} to {max(gains):g} ADU a photon",
        f"backgrounds of {light[0]:.2g} to {light[1]:.2g} photons a pixel, with a noise of "
        f"{noise[0]:.2g} to {noise[1]:.2g} photons",
        f"detectors {min(distances):.0f} to {max(distances):.0f} mm away, at "
        f"{min(energies):.2g} to {max(energies):.2g} keV",
    )


def counted_tiles(one: Material, window: TileChoice) -> NDArray[np.int64]:
    """Tiles of a picture by which peaks are counted and classes told: the first, or all."""
    look, columns = first_look_through(window), window.columns(one.detector)
    return columns if look is None else columns[: look.tiles]


def _first_look(material: Sequence[Material], window: TileChoice) -> FirstLook | None:
    """How the first tiles are judged, and the most peaks that blanks show there."""
    look = first_look_through(window)
    if look is None:
        return None
    counts = [
        one.judged.within(counted_tiles(one, window)).peaks.number[one.is_blank] for one in material
    ]
    return replace(look, most_peaks=int(np.concatenate(counts).max(initial=0)))


def _range_of_peaks(material: Sequence[Material], window: TileChoice) -> NDArray[np.float32]:
    """Width and number of the peaks of nearly all hits, by the conventional rule.

    A little wider than they were: what lies just outside is no other kind of run.
    """
    widths, numbers = [], []
    for one in material:
        counts = one.judged.within(counted_tiles(one, window)).peaks
        showing = one.is_hit & (counts.number >= FEWEST_PEAKS)
        widths.append(counts.width_px[showing])
        numbers.append(counts.number[showing])
    ends = np.stack([np.quantile(of, _ENDS) for of in (np.hstack(widths), np.hstack(numbers))])
    return np.asarray(ends * [1.0 / _WIDER, _WIDER], np.float32)


def _provenance(material: Sequence[Material], threshold: str) -> Provenance:
    return Provenance(
        recipe=asdict(PATCHES),
        seed=SEED,
        labels="every candidate is a Bragg peak or not by the simulator's truth",
        threshold=threshold
        + " Each of them was scored by a network that had not learned from its experiment",
        runs=tuple(
            TrainingRun(
                experiment=one.name,
                name=f"s{SEED}",
                role="training",
                events=one.learned[0].n_events,
                hits=int(one.is_hit.sum()),
                misses=int(one.is_blank.sum()),
                unlabelled=0,
            )
            for one in material
        ),
        versions={package: version(package) for package in ("numpy", "sfxreduce", "torch")},
    )


def _fitted(pooling: Pooling, blanks: NDArray[np.float64], hits: NDArray[np.float64]) -> Pooling:
    """Pooling whose probability is one half where as many blanks lie above as hits below."""
    both = np.sort(np.concatenate([blanks, hits]))
    wrong = [np.mean(hits < at) - np.mean(blanks >= at) for at in both]
    even = float(both[int(np.argmin(np.abs(wrong)))])
    spread = float(np.std(np.log(np.maximum(blanks, 0.01))))
    slope = 2.0 / max(spread, 0.1)
    return replace(pooling, slope=slope, offset=-slope * float(np.log(even)))
