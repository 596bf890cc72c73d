"""A model folder holds the model whole, or says in one line what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from sfxreduce.errors import ModelError, OutputExists
from sfxreduce.scorers.cnn.folder import default_model, read_model, write_model
from sfxreduce.scorers.cnn.model import CALIBRATION, Model, ModelConfig, Provenance, TrainingRun

FILES = ("README.md", "config.json", "model.safetensors")


def _model(seed: int = 0) -> Model:
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(size=(3, 2)).astype(np.float32) for name in ("b", "a", "c")}
    run = TrainingRun(
        experiment="e", name="r1", role="training", events=9, hits=2, misses=3, unlabelled=4
    )
    config = ModelConfig(
        threshold=0.25,
        provenance=Provenance(recipe={"name": "poster", "batch": 100}, seed=7, runs=(run,)),
    )
    return Model(config=config, weights=weights, card="# A model\n")


def test_a_model_comes_back_as_it_was_written(tmp_path: Path) -> None:
    model = _model()
    write_model(tmp_path / "model", model)
    again = read_model(tmp_path / "model")
    assert again.config == model.config
    assert again.card == model.card
    assert again.sha256 == model.sha256
    for name, array in model.weights.items():
        np.testing.assert_array_equal(again.weights[name], array)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = _model()
    turned = Model(
        config=model.config, weights=dict(reversed(list(model.weights.items()))), card=model.card
    )
    write_model(tmp_path / "one", model)
    write_model(tmp_path / "two", turned)
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == list(FILES)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_an_existing_folder_stays_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_model(path, _model(0))
    with pytest.raises(OutputExists, match="--overwrite"):
        write_model(path, _model(1))
    assert read_model(path).sha256 == _model(0).sha256
    write_model(path, _model(1), overwrite=True)
    assert read_model(path).sha256 == _model(1).sha256
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_is_no_model_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").touch()
    with pytest.raises(OutputExists, match="another --out"):
        write_model(tmp_path / "data", _model(), overwrite=True)
    assert (tmp_path / "data" / "precious").exists()


def _rewrite(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        document = json.loads((folder / "config.json").read_text())
        change(document)
        (folder / "config.json").write_text(json.dumps(document))

    return damage


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: (p / "model.safetensors").unlink(), "no readable model.safetensors"),
        (lambda p: (p / "config.json").unlink(), "no readable config.json"),
        (lambda p: (p / "config.json").write_text("{"), "expected JSON"),
        (lambda p: (p / "config.json").write_text("[]"), "expected schema 5"),
        (lambda p: (p / "model.safetensors").write_bytes(save({})), "expected sha256"),
        (_rewrite(lambda d: d.update(schema=9)), "expected schema 5"),
        (_rewrite(lambda d: d["config"].pop("threshold")), "threshold"),
        (_rewrite(lambda d: d["config"].update(treshold=1)), "treshold"),
        (_rewrite(lambda d: d["config"].update(threshold=7.0)), "between 0 and 1"),
        (_rewrite(lambda d: d["config"].update(window="grid")), "'window': .* 'grid'"),
        (_rewrite(lambda d: d["config"].update(normalisation=3)), "not the configuration"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(
    tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    write_model(tmp_path / "model", _model())
    damage(tmp_path / "model")
    with pytest.raises(ModelError, match=says) as caught:
        read_model(tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "model") in str(caught.value)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0,), (4, 2)])
def test_weights_of_classes_of_another_shape_are_refused(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    # Empty ones ended in a traceback once the first event was scored.
    whole = read_model(default_model())
    weights = {**whole.weights, f"{CALIBRATION}class_weight": np.zeros(shape, np.float32)}
    write_model(tmp_path / "model", replace(whole, weights=weights))
    with pytest.raises(ModelError, match="expected weights of 4 features for 3 classes"):
        read_model(tmp_path / "model")
