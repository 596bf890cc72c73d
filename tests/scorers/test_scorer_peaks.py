"""The peak count as a scorer."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sfxreduce.errors import SchemaError, UsageError
from sfxreduce.run.detector import Detector, Panel, PixelFlag
from sfxreduce.scorers.peaks.finder import MIN_PEAKS, PeakFinder, PeakScorer
from sfxreduce.scorers.protocol import needs_gpu

if TYPE_CHECKING:
    from sfxreduce.scorers.protocol import Scorer


def two_panels() -> Detector:
    """Two panels side by side around the beam, of the same detector at every call."""
    panels = (
        Panel(name="left", corner=(-52.0, -30.0)),
        Panel(name="right", corner=(2.0, 30.0), fast=(0.0, -1.0), slow=(1.0, 0.0)),
    )
    return Detector(
        name="pair", panel_shape=(60, 50), panels=panels, stacked=True, adu_per_photon=20.0
    )


def frames_with(
    peaks: list[int], shape: tuple[int, ...]
) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    """Events with a given number of peaks each, on the first panel where there are panels."""
    rng = np.random.default_rng(1)
    frames = (20 * rng.poisson(2, (len(peaks), *shape))).astype(np.int16)
    for frame, n_peaks in zip(frames, peaks, strict=True):
        panel = frame.reshape(-1, *shape[-2:])[0]
        for peak in range(n_peaks):
            panel[5 + 10 * (peak // 4), 5 + 10 * (peak % 4)] += 1000
    return frames


def test_the_score_is_the_number_of_peaks() -> None:
    detector = Detector.centred("camera", (60, 50), adu_per_photon=20.0)
    scores = PeakScorer()(frames_with([0, 3, 16], (60, 50)), detector)
    assert scores.dtype == np.float32
    assert scores.tolist() == [0, 3, 16]


def test_panels_are_searched_like_frames() -> None:
    detector = two_panels()
    scores = PeakScorer()(frames_with([0, 7], detector.frame_shape), detector)
    assert scores.tolist() == [0, 7]


def test_the_mask_of_the_detector_is_heeded() -> None:
    detector = two_panels()
    mask = np.zeros(detector.frame_shape, np.uint32)
    mask[0] = PixelFlag.HOT
    scores = PeakScorer()(frames_with([7], detector.frame_shape), detector.with_mask(mask))
    assert scores.tolist() == [0]


@pytest.mark.parametrize("flag", [PixelFlag.BAD, PixelFlag.GAP])
def test_frames_that_show_too_little_have_no_count(flag: PixelFlag) -> None:
    """A mask the other way round left a few pixels without a peak, and every event was rejected."""
    detector = two_panels()
    frames = frames_with([0, 7], detector.frame_shape)
    mask = np.full(detector.frame_shape, flag, np.uint32)
    assert np.isnan(PeakScorer()(frames, detector.with_mask(mask))).all()
    mask = mask.copy()
    mask[0] = 0
    assert PeakScorer()(frames, detector.with_mask(mask)).tolist() == [0, 7]
    mask = mask.copy()
    mask[0, 50:] = PixelFlag.BAD
    scores = PeakScorer()(frames, detector.with_mask(mask))
    # Gaps were never there to be seen; bad pixels were.
    assert scores.tolist() == [0, 7] if flag is PixelFlag.GAP else np.isnan(scores).all()


def test_the_gain_of_the_detector_is_heeded() -> None:
    rng = np.random.default_rng(2)
    frames = np.rint(20 * rng.poisson(0.003, (1, 200, 200)) + rng.normal(0, 2, (1, 200, 200)))
    known = Detector.centred("camera", (200, 200), adu_per_photon=20.0)
    unknown = Detector.centred("camera", (200, 200))
    assert PeakScorer()(frames.astype(np.int16), known).tolist() == [0]
    assert PeakScorer()(frames.astype(np.int16), unknown)[0] > MIN_PEAKS


def test_a_pickled_scorer_scores_alike_on_a_pickled_detector() -> None:
    detector, scorer = two_panels(), PeakScorer(PeakFinder(min_snr=7.0), min_peaks=15)
    frames = frames_with([4, 9], detector.frame_shape)
    again: PeakScorer = pickle.loads(pickle.dumps(scorer))
    assert again == scorer
    moved: Detector = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(again(frames, moved), scorer(frames, detector))


def test_whole_frames_are_asked_for_and_no_model_or_gpu() -> None:
    scorer: Scorer = PeakScorer()
    assert scorer.window(two_panels()) is None
    assert (scorer.name, needs_gpu(scorer)) == ("peaks", False)
    known = scorer.calibration
    assert (known.model_sha256, known.threshold) == (None, MIN_PEAKS)


def test_the_settings_name_every_setting_of_the_finder() -> None:
    settings = PeakScorer(PeakFinder(min_snr=6.0, min_pixels=2)).settings
    assert settings == (
        "min_snr 6, min_pixels 2, max_pixels 200, min_adc 0, local_radius 3, max_peaks 2048"
    )


def test_frames_of_another_detector_are_refused() -> None:
    with pytest.raises(SchemaError, match=r"found \(60, 50\), \(2, 60, 50\)"):
        PeakScorer()(frames_with([1], (60, 50)), two_panels())


def test_a_threshold_that_keeps_everything_is_refused() -> None:
    with pytest.raises(UsageError, match="--min-peaks of at least 1, found 0"):
        PeakScorer(min_peaks=0)
