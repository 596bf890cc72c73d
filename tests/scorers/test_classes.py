"""The class of an event is told beside its score, and changes nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.decisions.decide import decide
from sfxreduce.decisions.ledger import ledger_root, ledger_table, read_ledger
from sfxreduce.pipeline.filter import Outputs, filter_run
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import EventClass
from sfxreduce.run.window import Window
from sfxreduce.scorers.cnn.folder import default_model, read_model, write_model
from sfxreduce.scorers.cnn.patches.candidates import Candidates
from sfxreduce.scorers.cnn.patches.pooling import FEATURES, event_features
from sfxreduce.scorers.cnn.scorer import CnnScorer
from sfxreduce.simulate.run import simulate_run
from sfxreduce.simulate.truth import Kind
from sfxreduce.train.patches.classes import classes_of_kinds, confusion_of, fit_head


def _candidates(tile: list[int], y: list[int], x: list[int]) -> Candidates:
    n = len(tile)
    return Candidates(
        tile=np.array(tile, np.int32),
        y=np.array(y, np.int16),
        x=np.array(x, np.int16),
        scale=np.ones(n, np.uint8),
        prominence=np.full(n, 9.0, np.float32),
        noise_photons=np.ones(n, np.float32),
        patch=np.zeros((n, 9, 9), np.float16),
    )


WINDOW = Window.tiled(Detector.centred("camera", (1050, 1050)))


def test_a_streak_is_crowded_and_a_ring_is_a_ring() -> None:
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 40)
    places = {
        "streak": np.stack([rng.uniform(-9, 9, 40), np.arange(40) * 3.0], axis=1),
        "ring": 412 * np.stack([np.sin(angle), np.cos(angle)], axis=1),
        "crystal": rng.uniform(-500, 500, (40, 2)),
    }
    parts = [_at(at, event) for event, at in enumerate(places.values())]
    found = event_features(np.full(120, 5.0), _joined(parts), WINDOW, n_events=3)
    assert found.shape == (3, len(FEATURES))
    ring, crowding, sure, prominence = found.T
    assert ring[1] > 0.9 > 0.5 > ring[2]
    assert crowding[0] < -0.5 < crowding[2]
    assert sure.tolist() == [1.0] * 3
    np.testing.assert_allclose(prominence, np.log(9.0), rtol=1e-6)


def _at(places: NDArray[np.float64], event: int) -> Candidates:
    """Candidates at places in pixels from the middle of the picture."""
    row, column = (places + 525).astype(int).T
    tiles = [
        WINDOW.origins.index((r // 350 * 350, c // 350 * 350))
        for r, c in zip(row, column, strict=True)
    ]
    return _candidates(
        [event * len(WINDOW.origins) + tile for tile in tiles],
        (row % 350).tolist(),
        (column % 350).tolist(),
    )


def _joined(parts: list[Candidates]) -> Candidates:
    names = ("tile", "y", "x", "scale", "prominence", "noise_photons", "patch")
    return Candidates(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})


def test_an_event_without_candidates_has_features_too() -> None:
    found = event_features(np.zeros(0), _candidates([], [], []), WINDOW, n_events=3)
    assert np.isfinite(found).all()


def test_the_head_learns_classes_that_can_be_told_and_is_repeatable() -> None:
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(4, dtype=np.uint8), 50)
    features = rng.normal(size=(200, 7)) + 3 * np.eye(7)[classes]
    head = fit_head(features, classes)
    table = confusion_of(head, features, classes)
    assert table.sum() == 150
    assert np.diag(table).sum() > 120
    again = fit_head(features, classes)
    np.testing.assert_array_equal(head.weight, again.weight)


def test_every_kind_has_a_class() -> None:
    told = classes_of_kinds(np.array([kind.value for kind in Kind]))
    assert [EventClass(int(t)).name for t in told] == [
        "UNKNOWN", "SINGLE", "SINGLE", "MULTIPLE", "ARTEFACT",
    ]  # fmt: skip


def test_the_ledger_keeps_classes_and_its_hash_does_not_depend_on_them() -> None:
    made = decide(np.float32([0.9, 0.1, 0.4]), np.zeros(3, np.uint32), threshold=0.5)
    told = replace(made, event_class=np.array([1, 3, 2], np.uint8))
    table = ledger_table(told)
    assert table["class"].attrs["flag_meanings"] == "unknown single multiple artefact"
    np.testing.assert_array_equal(read_ledger(table, where="x").event_class, [1, 3, 2])
    older = read_ledger(table.drop_vars("class"), where="x")
    assert older.event_class is None
    assert ledger_root(made) == ledger_root(told) == ledger_root(older)


def test_the_shipped_model_tells_classes_and_drops_nothing_for_it(
    tmp_path: Path, serial: Pool
) -> None:
    run = simulate_run("lysozyme-8kev", n_events=6, hit_rate=0.7, seed=5)
    whole = read_model(default_model())
    bare = {name: w for name, w in whole.weights.items() if "class_" not in name}
    write_model(tmp_path / "bare", replace(whole, weights=bare))
    decided = {}
    for name, model in (("told", default_model()), ("bare", tmp_path / "bare")):
        store = tmp_path / f"{name}.zarr"
        filter_run(
            run,
            settings=FilterSettings(scorer=CnnScorer(model)),
            outputs=Outputs(store=store),
            pool=serial,
        )
        with xr.open_zarr(store, group="ledger", consolidated=False) as ledger:
            decided[name] = ledger.load()
    assert (decided["told"]["class"].values > 0).all()
    assert not decided["bare"]["class"].values.any()
    for column in ("score", "decision"):
        np.testing.assert_array_equal(decided["told"][column], decided["bare"][column])
