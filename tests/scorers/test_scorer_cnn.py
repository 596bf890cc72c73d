"""The scorer gives every event its own probability, and never one it did not earn."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.decisions.threshold import Promise
from sfxreduce.errors import ClusterError, ModelError, UsageError
from sfxreduce.pipeline.filter import plan_filter
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.run.detector import Detector, PixelFlag
from sfxreduce.run.run import Run
from sfxreduce.run.window import FULL, Window
from sfxreduce.scorers.cnn.folder import write_model
from sfxreduce.scorers.cnn.model import Model, ModelConfig
from sfxreduce.scorers.cnn.patches.network import PatchNetwork
from sfxreduce.scorers.cnn.poster.network import HitNetwork
from sfxreduce.scorers.cnn.scorer import CnnScorer, cuda_available
from sfxreduce.scorers.protocol import Scorer, needs_gpu

CAMERA = Detector.centred("camera", (350, 350), adu_per_photon=20.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights."""
    torch.manual_seed(0)
    weights = {name: value.numpy() for name, value in HitNetwork().state_dict().items()}
    path = tmp_path_factory.mktemp("models") / "random"
    write_model(path, Model(config=ModelConfig(threshold=0.25), weights=weights))
    return path


def _events(n: int) -> NDArray[np.int16]:
    rng = np.random.default_rng(1)
    pixels = 20 * rng.poisson(3.0, (n, 1, 350, 350))
    pixels[::2, :, rng.integers(0, 350, 40), rng.integers(0, 350, 40)] += 2000
    return pixels.astype(np.int16)


def test_scores_are_probabilities_and_know_their_model(folder: Path) -> None:
    scorer: Scorer = CnnScorer(folder)
    score = scorer(_events(5), CAMERA)
    assert score.dtype == np.float32
    assert score.shape == (5,)
    assert ((score >= 0) & (score <= 1)).all()
    assert len(set(score.tolist())) == 5
    assert (scorer.name, scorer.calibration.threshold) == ("cnn", 0.25)
    assert len(scorer.calibration.model_sha256 or "") == 64
    assert "poster" in scorer.settings


def test_only_a_scorer_on_a_gpu_asks_for_one(folder: Path) -> None:
    assert not needs_gpu(CnnScorer(folder))
    assert needs_gpu(CnnScorer(folder, device="cuda:1"))


def test_an_events_score_does_not_depend_on_its_neighbours(folder: Path) -> None:
    scorer = CnnScorer(folder)
    pixels = _events(11)
    together = scorer(pixels, CAMERA)
    alone = np.concatenate([scorer(pixels[i : i + 1], CAMERA) for i in range(11)])
    np.testing.assert_array_equal(together, alone)


def test_the_window_is_the_central_tile(folder: Path) -> None:
    window = CnnScorer(folder).window(Detector.centred("camera", (1750, 1750)))
    assert (window.origins, window.tile_shape) == (((700, 700),), (350, 350))


def test_no_events_give_no_scores(folder: Path) -> None:
    assert CnnScorer(folder)(_events(0), CAMERA).shape == (0,)


def test_a_pickled_scorer_is_small_and_scores_alike(folder: Path) -> None:
    scorer = CnnScorer(folder)
    data = pickle.dumps(scorer)
    assert len(data) < 1000
    pixels = _events(3)
    np.testing.assert_array_equal(pickle.loads(data)(pixels, CAMERA), scorer(pixels, CAMERA))


def test_what_is_mostly_masked_gets_no_score(folder: Path) -> None:
    mask = np.zeros((350, 350), np.uint32)
    mask[:200] = PixelFlag.GAP
    assert np.isnan(CnnScorer(folder)(_events(2), CAMERA.with_mask(mask))).all()


def test_pixels_of_another_window_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"expected pixels of shape .* found \(2, 350, 350\)"):
        CnnScorer(folder)(_events(2)[:, 0], CAMERA)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    weights = {"trunk.0.weight": np.zeros((4, 1, 3, 3), np.float32)}
    write_model(tmp_path / "odd", Model(config=ModelConfig(), weights=weights))
    with pytest.raises(ModelError, match=r"'trunk\.0\.weight', .* another shape"):
        CnnScorer(tmp_path / "odd")(_events(1), CAMERA)


def test_a_folder_without_a_model_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a model folder"):
        CnnScorer(tmp_path)


def test_an_unknown_device_is_refused(folder: Path) -> None:
    with pytest.raises(ClusterError, match="expected cpu, cuda"):
        CnnScorer(folder, device="abacus")(_events(1), CAMERA)


@pytest.mark.skipif(cuda_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_said(folder: Path) -> None:
    with pytest.raises(ClusterError, match="--device cpu"):
        CnnScorer(folder, device="cuda")(_events(1), CAMERA)


@pytest.mark.skipif(not cuda_available(), reason="no CUDA device")
def test_a_gpu_agrees_with_the_cpu(folder: Path) -> None:
    pixels = _events(7)
    np.testing.assert_allclose(
        CnnScorer(folder, device="cuda")(pixels, CAMERA),
        CnnScorer(folder)(pixels, CAMERA),
        atol=1e-3,
    )


def test_a_model_that_was_replaced_is_read_again(tmp_path: Path, folder: Path) -> None:
    torch.manual_seed(5)
    weights = {name: value.numpy() for name, value in HitNetwork().state_dict().items()}
    other = Model(config=ModelConfig(), weights=weights)
    path = tmp_path / "model"
    write_model(path, other)
    scorer = CnnScorer(path)
    first = scorer.calibration.model_sha256
    write_model(
        path,
        Model(config=ModelConfig(), weights=weights | {"trunk.11.bias": np.ones(2, np.float32)}),
        overwrite=True,
    )
    assert scorer.calibration.model_sha256 != first


def test_naming_a_scorer_does_not_load_torch() -> None:
    code = "import sys, sfxreduce.scorers.cnn.scorer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patch network with random weights, and hits its threshold rests on."""
    torch.manual_seed(0)
    weights = {name: value.numpy() for name, value in PatchNetwork().state_dict().items()}
    weights["calibration.hit_scores"] = np.linspace(0.5, 0.9, 400, dtype=np.float32)
    config = ModelConfig(architecture="patches", window=FULL, threshold=0.5)
    path = tmp_path_factory.mktemp("models") / "patches"
    write_model(path, Model(config=config, weights=weights))
    return path


WIDE = Detector.centred("wide", (700, 350), adu_per_photon=20.0)


def _wide(n: int) -> NDArray[np.int16]:
    return np.concatenate([_events(n)] * len(Window.tiled(WIDE).origins), axis=1)


def test_patches_are_scored_event_by_event(patches: Path) -> None:
    scorer: Scorer = CnnScorer(patches)
    pixels = _wide(5)
    together = scorer(pixels, WIDE)
    alone = np.concatenate([scorer(pixels[i : i + 1], WIDE) for i in range(5)])
    np.testing.assert_array_equal(together, alone)
    assert together.dtype == np.float32
    assert ((together >= 0) & (together <= 1)).all()
    assert scorer(_wide(0), WIDE).shape == (0,)
    assert scorer.calibration.needs_conditions
    centre = CnnScorer(patches, looks_at="centre")
    # A threshold of another window would lose hits that this one hardly shows.
    assert centre.calibration.hit_scores.size == 0
    assert (centre.calibration.threshold, scorer.calibration.threshold) == (0.0, 0.5)


def test_the_window_can_be_chosen_and_an_unknown_one_is_refused(
    patches: Path, folder: Path
) -> None:
    assert len(CnnScorer(patches).window(WIDE).origins) == 3
    assert len(CnnScorer(patches, looks_at="centre").window(WIDE).origins) == 1
    assert len(CnnScorer(folder, looks_at="full").window(WIDE).origins) == 3
    with pytest.raises(UsageError, match="--window all: expected auto, centre or full"):
        CnnScorer(folder, looks_at="all")


def test_of_several_tiles_the_loudest_speaks(folder: Path) -> None:
    tall = Detector.centred("tall", (1050, 350), adu_per_photon=20.0)
    rng = np.random.default_rng(1)
    tiles = rng.poisson(40, (70, 3, 350, 350)).astype(np.int16)
    tiles += rng.integers(0, 500, tiles.shape, np.int16) * (rng.random(tiles.shape) < 0.001)
    alone = [CnnScorer(folder)(tiles[:, [tile]], tall) for tile in range(3)]
    together = CnnScorer(folder, looks_at="full")(tiles, tall)
    np.testing.assert_allclose(together, np.max(alone, axis=0), rtol=1e-5)


def test_the_threshold_keeps_the_promise_or_keeps_everything(
    patches: Path, run: Run, serial: Pool
) -> None:
    scorer = CnnScorer(patches)
    kept = plan_filter(run, FilterSettings(scorer=scorer), pool=serial).method
    assert kept.threshold == pytest.approx(0.5)
    assert kept.claim is not None
    assert kept.claim.certified
    assert kept.claim.loss_upper < 0.01
    # The model stores nothing that a run could be compared with.
    assert not kept.claims["certified"]
    assert kept.claims["assurance"]["loss_upper"] is None
    assert (kept.window_tiles, kept.tiles_total) == (1, 1)
    strict = plan_filter(
        run, FilterSettings(scorer=scorer, promise=Promise(max_loss=0.001)), pool=serial
    )
    assert strict.method.threshold == 0.0
    assert not strict.method.claims["certified"]
    assert strict.reduction.kept.size == run.n_events
    given = plan_filter(run, FilterSettings(scorer=scorer, threshold=0.7), pool=serial).method
    assert not given.claims["certified"]
    assert given.claims["assurance"]["reasons"] == [
        "the threshold was given: leave out '--threshold'"
    ]
    assert given.claim is not None
    assert given.claim.loss_upper > 0.4


def test_a_machine_without_a_driver_is_told_without_torch() -> None:
    program = (
        "import sys; import sfxreduce; from sfxreduce.scorers.cnn import scorer; "
        "scorer._DRIVERS = (); print(sfxreduce.cuda_available(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr
