"""Leave-one-out: nothing of the one left out is learned from, and nothing is made twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sfxreduce.cluster import SerialPool
from sfxreduce.errors import UsageError
from sfxreduce.scorers.cnn.folder import read_model
from sfxreduce.train.patches.cross_validate import Across
from sfxreduce.train.patches.crossval_job import crossval_models
from sfxreduce.train.patches.outliers import UNLIKE_HEAD, fit_usual
from sfxreduce.train.patches.refit import refit_usual
from sfxreduce.train.patches.simulated import stored_material

THREE = ("lysozyme-8kev", "photosystem-i-8kev", "pyp-cspad")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("across")


@pytest.fixture(scope="module")
def found(folder: Path) -> Across:
    return crossval_models(folder, experiments=THREE, scale=0.05, pool=SerialPool())


def test_each_model_has_learned_from_the_others_alone(found: Across, folder: Path) -> None:
    for name in THREE:
        model = read_model(folder / "without" / name)
        learned = {run.experiment for run in model.config.provenance.runs}
        assert learned == set(THREE) - {name}
        assert set(model.hit_groups.tolist()) == {0, 1}
        assert model.encoded == found.models[name].encoded
    shipped = read_model(folder / "model")
    assert {run.experiment for run in shipped.config.provenance.runs} == set(THREE)
    assert shipped.encoded == found.shipped.encoded
    assert found.tables in shipped.card


def test_every_judged_event_is_counted(found: Across, folder: Path) -> None:
    assert [one.experiment for one in found.judged] == list(THREE)
    for one in found.judged:
        material = stored_material(one.experiment, scale=0.05, folder=folder / "material")
        assert one.hits == material.is_hit.sum()
        assert one.blanks == material.is_blank.sum()
        assert 0 <= one.lost <= one.hits
    # So few hits promise nothing: then everything is kept, and the table says so.
    assert all(one.lost == one.rejected == 0 for one in found.judged)


def test_material_is_made_once_and_gives_the_same_again(found: Across, folder: Path) -> None:
    kept = sorted((folder / "material").iterdir())
    before = [path.stat().st_mtime_ns for path in kept]
    again = crossval_models(folder, experiments=THREE, scale=0.05, pool=SerialPool())
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert again.shipped.encoded == found.shipped.encoded


def test_what_is_usual_can_be_fitted_anew_and_comes_out_the_same(found: Across) -> None:
    shipped = found.shipped
    assert shipped.usual is not None
    assert set(found.traits) == set(THREE)
    again = refit_usual(shipped.without_usual(), scale=0.05, pool=SerialPool())
    assert again.encoded == shipped.encoded
    assert again.card == shipped.card
    assert again.card.count(UNLIKE_HEAD) == 1
    older = replace(shipped, card=shipped.card.replace("`out_of_distribution`", "`ood`"))
    assert refit_usual(older, scale=0.05, pool=SerialPool()).card == shipped.card
    for name, model in found.models.items():
        others = fit_usual([of for other, of in found.traits.items() if other != name])
        assert model.usual is not None
        assert model.usual.limit == np.float32(others.limit)


def test_damaged_material_is_made_again(found: Across, folder: Path) -> None:
    path = folder / "material" / "pyp-cspad-0.05.npz"
    whole = stored_material("pyp-cspad", scale=0.05, folder=folder / "material")
    path.write_bytes(path.read_bytes()[:5000])
    made = stored_material("pyp-cspad", scale=0.05, folder=folder / "material")
    np.testing.assert_array_equal(made.judged.found.patch, whole.judged.found.patch)
    np.testing.assert_array_equal(made.statistics, whole.statistics)


def test_two_experiments_are_too_few(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 3 experiments"):
        crossval_models(tmp_path, experiments=THREE[:2] * 2, pool=SerialPool())
    with pytest.raises(UsageError, match="is not known"):
        crossval_models(tmp_path, experiments=(*THREE, "nothing"), pool=SerialPool())
