"""Make the model that ships with the package, from simulated runs alone, and judge it.

All experiments of the simulator, whole frames, every candidate labelled by the simulator's truth.
For the judgement each experiment is left out in turn: a network that has learned from the others
scores it, and one threshold, chosen on the others, is applied to it. Candidates are kept in a
folder, so that an interrupted run goes on where it stopped.

Usage: python examples/make_default_model.py [--scale 0.05] [--out sfxreduce/models/default]
"""

from __future__ import annotations

import argparse
import pickle
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfxreduce.bounds import share_upper
from sfxreduce.calibrate import Promise, binomial_threshold
from sfxreduce.conditions import Conditioned, conditions_of_run
from sfxreduce.drift import envelope_of, frame_statistics, usual_shape
from sfxreduce.level import LevelRule, level_rule
from sfxreduce.run import Run
from sfxreduce.scorers.patches import PatchNetwork, patch_logits
from sfxreduce.scorers.pooling import Pooling
from sfxreduce.scorers.weights import (
    CALIBRATION,
    Model,
    ModelConfig,
    Provenance,
    TrainingRun,
    default_model,
    write_model,
)
from sfxreduce.simulate.experiments import EXPERIMENTS
from sfxreduce.simulate.run import simulated_run
from sfxreduce.train.card import model_card
from sfxreduce.train.patch_loop import PATCHES, train_patches
from sfxreduce.train.patch_set import PatchSet, read_patches

SEED = 20
HIT_PEAKS = 10
HIT = f"a crystal with {HIT_PEAKS} or more true peaks of signal to noise 5 on the frame"
LEARNED, DRAWN = 140, 700
LOOKED_AT = 64
JUDGED_HITS, JUDGED_WEAK, JUDGED_BLANKS = 80, 40, 80


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Material:
    """One experiment: sets to learn from, and a set to judge by with its truth."""

    name: str
    learned: tuple[PatchSet, ...]
    judged: PatchSet
    n_peaks: NDArray[np.int32]
    is_blank: NDArray[np.bool_]

    @property
    def is_hit(self) -> NDArray[np.bool_]:
        """Events with a crystal and enough true peaks."""
        return ~self.is_blank & (self.n_peaks >= HIT_PEAKS)

    def evidence(self, network: PatchNetwork, pooling: Pooling) -> NDArray[np.float64]:
        """Expected number of peaks of every judged event."""
        return pooling.evidence(
            patch_logits(network, self.judged.found),
            self.judged.found.tile,
            n_events=self.judged.n_events,
            n_tiles=self.judged.n_tiles,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the events")
    parser.add_argument("--out", type=Path, default=default_model())
    parser.add_argument("--work", type=Path, default=Path("build/candidates"))
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with ProcessPoolExecutor(options.processes) as pool:
        jobs = [(name, options.scale, options.work) for name in EXPERIMENTS]
        material = list(pool.map(gather, jobs))
        statistics = list(pool.map(look, jobs))
    table, evidence = leave_one_out(material)
    model = learn(material, evidence, np.concatenate(statistics))
    card = model_card(model.config, title="Shipped hit finder: whole frame")
    measured = f"## How well it does\n\n{table}\n\n## Where it fails"
    head, _, rest = card.partition("## How well it does")
    card = head + measured + rest.partition("## Where it fails")[2]
    write_model(options.out, replace(model, card=card), overwrite=True)
    print(card)
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes")


def gather(job: tuple[str, float, Path]) -> Material:
    """Candidates of one experiment, from the folder if they lie there."""
    name, scale, work = job
    path = work / f"{name}-{scale:g}.pickle"
    if not path.exists():
        material = simulate(name, scale)
        path.with_suffix(".partial").write_bytes(pickle.dumps(material))
        path.with_suffix(".partial").rename(path)
    loaded: Material = pickle.loads(path.read_bytes())
    return loaded


def look(job: tuple[str, float, Path]) -> NDArray[np.float64]:
    """Measure frames of one experiment for the envelope, or take them from the folder."""
    name, scale, work = job
    path = work / f"{name}-{scale:g}.npy"
    if not path.exists():
        run = as_seen(
            simulated_run(name, n_events=round(scale * LOOKED_AT), hit_rate=0.5, seed=SEED + 2)
        )
        rows = [
            frame_statistics(
                run.source.read([event]).pixels,
                run.detector.good(),
                adu_per_photon=run.detector.adu_per_photon,
                saturation_adu=run.detector.saturation_adu,
            )
            for event in range(run.n_events)
        ]
        np.save(path, np.concatenate(rows))
    measured: NDArray[np.float64] = np.load(path)
    return measured


def simulate(name: str, scale: float) -> Material:
    """Simulate an experiment and find its candidates."""
    finder = ModelConfig().candidates
    run = as_seen(simulated_run(name, n_events=round(scale * LEARNED), hit_rate=0.6, seed=SEED))
    learned = (
        read_patches(run, finder=finder),
        read_patches(run, finder=finder, vary_seed=SEED),
    )
    drawn = as_seen(
        simulated_run(name, n_events=round(scale * DRAWN), hit_rate=0.75, seed=SEED + 1)
    )
    truth = drawn.truth
    assert truth is not None
    crystal, peaks = truth.n_crystals.values > 0, truth.n_peaks.values
    hits = np.flatnonzero(crystal & (peaks >= HIT_PEAKS))
    weak = np.flatnonzero(crystal & (peaks >= 2) & (peaks < HIT_PEAKS))
    blanks = np.flatnonzero(~crystal)
    wanted = ((hits, JUDGED_HITS), (weak, JUDGED_WEAK), (blanks, JUDGED_BLANKS))
    events = np.sort(np.concatenate([kind[: max(round(scale * n), 4)] for kind, n in wanted]))
    return Material(
        name=name,
        learned=learned,
        judged=read_patches(drawn, finder=finder, events=events.tolist()),
        n_peaks=peaks[events],
        is_blank=~crystal[events],
    )


def as_seen(run: Run) -> Run:
    """The run with the hot pixels it shows itself, as a filter run sees it."""
    found = conditions_of_run(run)
    return replace(run, source=Conditioned(source=run.source, found=found))


def leave_one_out(material: list[Material]) -> tuple[str, dict[str, NDArray[np.float64]]]:
    """Table of every experiment judged by a network that has not learned from it."""
    pooling = ModelConfig().pooling
    evidence = {}
    for one in material:
        sets = [s for other in material if other is not one for s in other.learned]
        evidence[one.name] = one.evidence(train_patches(sets, seed=SEED), pooling)
        print(f"{one.name}: judged", flush=True)
    raw = {name: pooling.probability(of) for name, of in evidence.items()}
    rows = []
    for one in material:
        others = [other for other in material if other is not one]
        rule = level_rule([raw[other.name] for other in others])
        limit = limit_for([reduced(rule, raw[other.name])[other.is_hit] for other in others])
        score, hit = reduced(rule, raw[one.name]), one.is_hit
        weak = ~hit & ~one.is_blank & (one.n_peaks >= 5)
        lost = int(np.count_nonzero(score[hit] < limit))
        upper = share_upper(lost, int(hit.sum()), confidence=0.95)
        specific = np.mean(score[one.is_blank] < limit)
        rows.append(
            f"| {one.name} | {hit.sum()} | {lost} | {upper:.1%} | "
            f"{np.count_nonzero(score[weak] < limit)} of {weak.sum()} | {one.is_blank.sum()} | "
            f"{specific:.3f} |"
        )
    head = (
        "Every experiment judged by a network and a threshold that have not seen it. Hits have\n"
        f"{HIT_PEAKS} or more true peaks of signal to noise 5; the bound on their loss is "
        "one-sided, 95 %.\n\n"
        "| experiment left out | hits | lost | loss below | lost of 5 to 9 peaks | blanks | "
        "specificity |\n|---|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(rows), evidence


def reduced(rule: LevelRule, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores of an experiment less its own level."""
    return rule.reduced(scores, rule.move(scores))


def limit_for(hits: list[NDArray[np.float32]]) -> float:
    """One threshold that keeps the promise over the pooled hits, and in each experiment."""
    found = binomial_threshold(np.concatenate(hits), promise=Promise(), groups=groups_of(hits))
    return found.value


def groups_of(hits: Sequence[NDArray[np.floating]]) -> NDArray[np.int32]:
    """Number of the experiment of every hit."""
    return np.repeat(np.arange(len(hits), dtype=np.int32), [len(scores) for scores in hits])


def learn(
    material: list[Material],
    evidence: dict[str, NDArray[np.float64]],
    statistics: NDArray[np.float64],
) -> Model:
    """The model that ships: it learns from all experiments; its threshold rests on the left-out."""
    network = train_patches([s for one in material for s in one.learned], seed=SEED)
    hits = [evidence[one.name][one.is_hit] for one in material]
    blanks = [evidence[one.name][one.is_blank] for one in material]
    pooling = fitted(ModelConfig().pooling, np.concatenate(blanks), np.concatenate(hits))
    raw = {name: pooling.probability(of) for name, of in evidence.items()}
    rule = level_rule(list(raw.values()))
    seen_hits = [reduced(rule, raw[one.name])[one.is_hit] for one in material]
    seen_blanks = [reduced(rule, raw[one.name])[one.is_blank] for one in material]
    scores = np.concatenate(seen_hits)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    weights[f"{CALIBRATION}hit_scores"] = scores
    weights[f"{CALIBRATION}hit_groups"] = groups_of(hits)
    weights[f"{CALIBRATION}blank_scores"] = np.concatenate(seen_blanks)
    usual = usual_shape(seen_hits, seen_blanks)
    weights[f"{CALIBRATION}usual_shape"] = np.float32([usual])
    weights[f"{CALIBRATION}envelope"] = envelope_of(statistics).astype(np.float32)
    chosen = binomial_threshold(scores, promise=Promise(), groups=groups_of(hits))
    packages = ("numpy", "sfxreduce", "torch")
    config = ModelConfig(
        architecture="patches",
        window="full",
        threshold=max(chosen.value, 0.0),
        hit=HIT,
        pooling=pooling,
        level=rule,
        provenance=Provenance(
            recipe=PATCHES.to_json(),
            seed=SEED,
            labels="every candidate is a Bragg peak or not by the simulator's truth",
            threshold=chosen.sentence(hit=HIT)
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
            versions={package: version(package) for package in packages},
        ),
    )
    return Model(config=config, weights=weights)


def fitted(pooling: Pooling, blanks: NDArray[np.float64], hits: NDArray[np.float64]) -> Pooling:
    """Pooling whose probability is one half where as many blanks lie above as hits below."""
    both = np.sort(np.concatenate([blanks, hits]))
    wrong = [np.mean(hits < at) - np.mean(blanks >= at) for at in both]
    even = float(both[int(np.argmin(np.abs(wrong)))])
    spread = float(np.std(np.log(np.maximum(blanks, 0.01))))
    slope = 2.0 / max(spread, 0.1)
    return replace(pooling, slope=slope, offset=-slope * float(np.log(even)))


if __name__ == "__main__":
    main()
