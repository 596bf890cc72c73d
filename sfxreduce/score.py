"""A score for every event, lazily and block by block."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import dask.array as da
import numpy as np
from dask.base import tokenize
from numpy.typing import NDArray

from sfxreduce.condition import inspect_pixels
from sfxreduce.decide import Reason
from sfxreduce.drift import Reference
from sfxreduce.errors import RunNotFound, SchemaError, SourceError
from sfxreduce.geometry import Detector, Window
from sfxreduce.level import LevelRule
from sfxreduce.measured import Measured
from sfxreduce.parts import inspect_parts, parts_of
from sfxreduce.run import FrameSource, Run, block_sizes

__all__ = ["EVENTS_PER_BATCH", "SCORE_DTYPE", "Classifier", "Scorer", "score"]

EVENTS_PER_BATCH = 64
"""Events of one scoring task: large enough that a task's own cost is a few per cent of it."""

SCORE_DTYPE = np.dtype([("score", "<f4"), ("reason", "<u4"), ("class", "u1")])
"""One row per event: the scorer's value, `Reason` bits, and the class if the scorer tells one."""


SOURCE_LOST = (RunNotFound, SchemaError, SourceError)
"""What a source raises that was there when the run was opened and can no longer be read."""


class Scorer(Protocol):
    """Turns pixels into one number per event; higher means more like a hit.

    A scorer is small when pickled: it names its model by path, and each worker loads it once.
    """

    @property
    def name(self) -> str:
        """What it is called in reports: "cnn", "peaks"."""
        ...

    @property
    def settings(self) -> str:
        """How it is set, in words, for reports and manifests."""
        ...

    @property
    def threshold(self) -> float:
        """Smallest score of a hit unless another is asked for."""
        ...

    @property
    def model_sha256(self) -> str | None:
        """Of the model's weights; None for a scorer without a model."""
        ...

    @property
    def hit_scores(self) -> NDArray[np.float32]:
        """Scores of labelled hits it has not learned from, shape (hit,); none if it has none."""
        ...

    @property
    def hit_groups(self) -> NDArray[np.int32]:
        """Experiment of each of these hits, shape (hit,)."""
        ...

    @property
    def hit(self) -> str:
        """What those hits are, in words: "an event with ..."."""
        ...

    @property
    def reference(self) -> Reference | None:
        """What it was calibrated on, as far as that is known; None for a scorer without a model."""
        ...

    @property
    def measured(self) -> Measured:
        """What is known of it beside its threshold, for reports."""
        ...

    @property
    def level(self) -> LevelRule:
        """How its threshold follows the level of a run's own scores."""
        ...

    @property
    def adapts(self) -> bool:
        """Whether the run's gain and hot pixels are to be measured for it before scoring."""
        ...

    @property
    def needs_gpu(self) -> bool:
        """Whether it can only run on a worker with a GPU."""
        ...

    def window(self, detector: Detector) -> Window | None:
        """Pixels it wants to see; None for whole source frames."""
        ...

    def __call__(self, pixels: NDArray[np.generic], detector: Detector) -> NDArray[np.float32]:
        """Score events.

        Parameters
        ----------
        pixels : ndarray
            Shape (event, tile, row, column) of the window, or (event, frame axes), in ADU.
        detector : Detector

        Returns
        -------
        ndarray of float32
            Shape (event,).
        """
        ...


@runtime_checkable
class Classifier(Protocol):
    """A scorer that also tells what kind of event it is. Classes are told, never used to drop."""

    def classify(
        self, pixels: NDArray[np.generic], detector: Detector
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Score events, and tell the class of each; 0 where it is not known."""
        ...


def score(run: Run, scorer: Scorer, *, batch: int = EVENTS_PER_BATCH) -> da.Array:
    """Scores of all events of a run, lazily: one task per batch of consecutive events.

    A task reads its own events' window and returns scores only, so that no pixels travel between
    workers. Batches depend on the event's position alone: any pool gives the same numbers.

    Parameters
    ----------
    run : Run
    scorer : Scorer
    batch : int
        Events of one task.

    Returns
    -------
    dask.array.Array
        Shape (event,), dtype `SCORE_DTYPE`. The score is NaN where an event could not be read.
    """
    scores: da.Array = da.map_blocks(
        _score_block,
        source=run.source,
        scorer=scorer,
        batch=batch,
        n_events=run.n_events,
        chunks=(block_sizes(run.n_events, batch),),
        dtype=SCORE_DTYPE,
        meta=np.empty(0, SCORE_DTYPE),
        name=f"score-{tokenize(run.source, scorer, batch)}",
    )
    return scores


def _score_block(
    *, source: FrameSource, scorer: Scorer, batch: int, n_events: int, block_id: tuple[int]
) -> NDArray[np.void]:
    """Read one batch of events, look at its pixels, score what can be scored."""
    start = block_id[0] * batch
    events = range(start, min(start + batch, n_events))
    rows = np.zeros(len(events), SCORE_DTYPE)
    rows["score"] = np.nan
    # The run was whole when it was opened. A source that is gone now costs the scores of its
    # events, not the run: they are kept as undecided.
    rows["reason"] = Reason.FILE_UNREADABLE
    try:
        detector = source.detector
    except SOURCE_LOST:
        return rows
    window = scorer.window(detector)
    try:
        reading = source.read(events, window)
    except SOURCE_LOST:
        return rows
    rows["reason"] = reading.reasons
    readable = np.flatnonzero(reading.reasons == 0)
    if readable.size:
        pixels = reading.pixels if readable.size == len(rows) else reading.pixels[readable]
        good = detector.good() if window is None else window.good(detector)
        rows["reason"][readable] |= inspect_pixels(
            pixels, good, saturation_adu=detector.saturation_adu
        ) | inspect_parts(
            pixels, parts_of(detector, window), saturation_adu=detector.saturation_adu
        )
        if isinstance(scorer, Classifier):
            rows["score"][readable], rows["class"][readable] = scorer.classify(pixels, detector)
        else:
            rows["score"][readable] = scorer(pixels, detector)
    return rows
