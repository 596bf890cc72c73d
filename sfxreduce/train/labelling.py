"""What the events of a run are held to be: by their peak counts, or by what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cluster import IN_PROCESS, Pool
from sfxreduce.cluster.pool import Progress, silent
from sfxreduce.errors import LabelError
from sfxreduce.io.label_table import write_labels
from sfxreduce.pipeline.stages.score import safe_scores
from sfxreduce.run.labels import Label, Labels, label_counts
from sfxreduce.run.run import Run
from sfxreduce.scorers.peaks.finder import MIN_PEAKS, PeakFinder, PeakScorer
from sfxreduce.train.quartiles import quartile_labels

__all__ = [
    "MISS_AT_MOST",
    "LabelledRun",
    "Labelling",
    "PeakLabelling",
    "QuartileLabelling",
    "TruthLabelling",
    "label_run",
    "true_hits",
    "true_kinds",
    "true_peaks",
]

MISS_AT_MOST = 2
"""Most peaks of a miss. Noise puts 0.3 false peaks on a frame of 16 million pixels
(docs/explanation/peak-finder.md), so that 4 in 1,000 blanks have more."""

_HIT_KINDS = ("hit", "weak", "multi")


class Labelling(Protocol):
    """Tells the events of a run into hits, misses, and those left open."""

    @property
    def sentence(self) -> str:
        """The rule in one sentence, for model cards."""
        ...

    def __call__(self, run: Run, *, pool: Pool, progress: Progress) -> Labels:
        """Label every event of a run."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakLabelling:
    """The peak finder's own rule: many peaks make a hit, as for `PeakScorer`, and few a miss.

    Peaks are counted on whole frames, whatever the model looks at: a hit stays a hit where the
    model's window does not show it.

    Parameters
    ----------
    miss_at_most : int
        Most peaks of a miss.
    min_peaks : int
        Fewest peaks of a hit.

    Raises
    ------
    UsageError
        If an event could be both.
    """

    finder: PeakFinder = field(default_factory=PeakFinder)
    miss_at_most: int = MISS_AT_MOST
    min_peaks: int = MIN_PEAKS

    def __post_init__(self) -> None:
        label_counts([], miss_at_most=self.miss_at_most, hit_at_least=self.min_peaks)

    @property
    def sentence(self) -> str:
        """The rule in one sentence."""
        return (
            f"misses have at most {self.miss_at_most} peaks, hits at least {self.min_peaks}, "
            f"counted by {self.finder} on whole frames of each run; what lies between is left out"
        )

    def __call__(self, run: Run, *, pool: Pool, progress: Progress) -> Labels:
        """Label every event of a run; one that cannot be read or trusted is left open."""
        counts = _counts(run, self.finder, pool=pool, progress=progress)
        return label_counts(counts, miss_at_most=self.miss_at_most, hit_at_least=self.min_peaks)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuartileLabelling:
    """The poster's rule: the quarter of a run with most peaks are hits, that with fewest misses.

    It is for runs of which at least a quarter are hits.
    """

    finder: PeakFinder = field(default_factory=PeakFinder)

    @property
    def sentence(self) -> str:
        """The rule in one sentence."""
        return (
            "misses have at most the lower quartile of peaks, hits at least the upper quartile, "
            f"counted by {self.finder} on whole frames of each run; the middle is left out"
        )

    def __call__(self, run: Run, *, pool: Pool, progress: Progress) -> Labels:
        """Label every event of a run; one that cannot be read or trusted is left open.

        Raises
        ------
        LabelError
            If the counts do not tell hits from misses.
        """
        counts = _counts(run, self.finder, pool=pool, progress=progress)
        try:
            return quartile_labels(counts)
        except LabelError as error:
            raise LabelError(f"{run.path}: {error}") from error


def _counts(run: Run, finder: PeakFinder, *, pool: Pool, progress: Progress) -> NDArray[np.float32]:
    """Peaks of every event on the whole frame; NaN where an event cannot be trusted."""
    scorer = PeakScorer(finder)
    return safe_scores(run, scorer, pool=pool, progress=progress, stage="count peaks")


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthLabelling:
    """Simulated runs know better than any peak finder what their events are.

    Parameters
    ----------
    least_peaks : int
        Events with a crystal but fewer true peaks on the frame are left open: nothing on them
        tells them from a miss.
    """

    least_peaks: int = 3

    @property
    def sentence(self) -> str:
        """The rule in one sentence."""
        return (
            f"hits have a crystal and at least {self.least_peaks} true peaks of signal to noise 5 "
            "on the frame, misses have no crystal, both by the simulator's truth; crystals with "
            "fewer peaks are left out"
        )

    def __call__(self, run: Run, *, pool: Pool, progress: Progress) -> Labels:  # noqa: ARG002
        """Label every event of a run.

        Raises
        ------
        LabelError
            If the run does not come with its truth.
        """
        is_hit = true_hits(run)
        if is_hit is None or run.truth is None or "n_peaks" not in run.truth:
            raise LabelError(
                f"{run.path}: expected a truth with kinds and 'n_peaks', found none; "
                "label this run by its peak counts"
            )
        shown = run.truth.n_peaks.values >= self.least_peaks
        label = np.select([is_hit & shown, ~is_hit], [Label.HIT, Label.MISS], Label.MAYBE)
        return Labels(label=label.astype(np.int8), miss_at_most=0, hit_at_least=self.least_peaks)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledRun:
    """The labels of a run, and where they are from.

    Parameters
    ----------
    rule : str
        How events were labelled, in one sentence.
    """

    labels: Labels
    source: str
    rule: str

    def to_json(self) -> dict[str, Any]:
        """Return the counts, source and rule as a JSON object."""
        return {
            "events": self.labels.label.size,
            "hits": self.labels.count(Label.HIT),
            "misses": self.labels.count(Label.MISS),
            "maybe": self.labels.count(Label.MAYBE),
            "source": self.source,
            "rule": self.rule,
        }


def label_run(
    run: Run,
    labelling: Labelling,
    *,
    source: str,
    out: Path | None = None,
    overwrite: bool = False,
    pool: Pool = IN_PROCESS,
    progress: Progress = silent,
) -> LabelledRun:
    """Label every event of a run: hit, miss, or maybe where it cannot be told.

    Parameters
    ----------
    source : str
        Where the labels are from: "peaks", "quartiles", "truth", "stream" or "csv".
    out : Path, optional
        CSV file to write.

    Raises
    ------
    LabelError
        If the events cannot be told into hits and misses.
    OutputError
        If the file is there already, or cannot be written.
    """
    labels = labelling(run, pool=pool, progress=progress)
    if out is not None:
        write_labels(out, labels.label, run=run, source=source, overwrite=overwrite)
    return LabelledRun(labels=labels, source=source, rule=labelling.sentence)


def true_kinds(run: Run) -> NDArray[np.str_] | None:
    """Kind of every event of a run by its truth: "hit", "blank", ...; None if it is not known."""
    if run.truth is None or "kind" not in run.truth:
        return None
    kind = run.truth.kind
    if kind.dtype.kind not in "iu":
        return np.array([k.decode() if isinstance(k, bytes) else str(k) for k in kind.values])
    names = np.array(str(kind.attrs["flag_meanings"]).split())
    values = np.asarray(kind.attrs.get("flag_values", np.arange(len(names))))
    order = np.argsort(values)
    found: NDArray[np.str_] = names[order[np.searchsorted(values, kind.values, sorter=order)]]
    return found


def true_peaks(run: Run) -> NDArray[np.integer] | None:
    """Number of true peaks of signal to noise 5 on every frame; None if it is not known."""
    for name in ("n_peaks", "n_peaks_snr5"):
        if run.truth is not None and name in run.truth:
            return np.asarray(run.truth[name].values)
    return None


def true_hits(run: Run) -> NDArray[np.bool_] | None:
    """Whether every event of a run has at least one crystal; None if it is not known."""
    if run.truth is not None and "n_crystals" in run.truth:
        return np.asarray(run.truth.n_crystals.values > 0)
    kinds = true_kinds(run)
    return None if kinds is None else np.isin(kinds, _HIT_KINDS)
