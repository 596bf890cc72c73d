"""What an output remembers of how its events were judged."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cluster import IN_PROCESS, Pool
from sfxreduce.cluster.pool import Progress, silent
from sfxreduce.decisions.decide import Decisions
from sfxreduce.decisions.ledger import read_ledger
from sfxreduce.errors import RefusedError, VerificationError
from sfxreduce.io.readers.zarr.run import open_table, read_manifest
from sfxreduce.io.store.manifest import Manifest, manifest_to_json
from sfxreduce.io.store.names import CONDITIONS_GROUP, LEDGER_GROUP
from sfxreduce.pipeline.stages.batch import SCORE_DTYPE
from sfxreduce.pipeline.stages.score import SEEN_ON_PIXELS
from sfxreduce.pipeline.stages.settings import network_on
from sfxreduce.pipeline.verify.output import verify_run
from sfxreduce.quality.conditions import Conditions, conditions_of_table
from sfxreduce.run.columns import plain_text
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.scorers.peaks.finder import PeakFinder, PeakScorer
from sfxreduce.scorers.protocol import Scorer, calibration_of

__all__ = ["Reduced", "read_reduced"]

_CAME_LATER = (
    Reason.AUDIT_SAMPLE
    | Reason.UNLIKE_CALIBRATION
    | Reason.UNSTABLE_READ
    | Reason.PEAK_COUNT
    | Reason.CHANGED
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reduced:
    """A reduced store that was found whole.

    Parameters
    ----------
    path : Path
        Absolute.
    decisions : Decisions
        Of every event of its source.
    """

    path: Path
    manifest: Manifest
    decisions: Decisions

    @property
    def unstable(self) -> NDArray[np.int64]:
        """Positions of the events that came out differently when they were read again."""
        found = self.decisions.reason & np.uint32(Reason.UNSTABLE_READ | Reason.CHANGED)
        return np.flatnonzero(found).astype(np.int64)

    @property
    def stamp(self) -> str:
        """Hash of its manifest, which tells one state of the output from another."""
        return str(manifest_to_json(self.manifest)["sha256"])

    def rows(self) -> NDArray[np.void]:
        """Scores as the scorer gave them, before anything else was made of them.

        Returns
        -------
        ndarray
            Shape (event,), dtype `sfxreduce.pipeline.stages.batch.SCORE_DTYPE`.
        """
        known = self.decisions
        rows = np.zeros(known.score.size, SCORE_DTYPE)
        scored = np.isfinite(known.score)
        rows["score"], rows["first"], rows["bound"] = known.score, known.first, known.bound
        rows["reason"] = known.reason & np.where(
            scored, np.uint32(SEEN_ON_PIXELS), ~np.uint32(_CAME_LATER)
        )
        rows["tiles"] = 0 if known.tiles is None else known.tiles
        rows["class"] = 0 if known.event_class is None else known.event_class
        rows["peaks"], rows["width_px"] = known.peaks, known.peak_width_px
        return rows

    def conditions(self) -> Conditions | None:
        """What its source said about its detector; None if that is not stored, or not all of it."""
        if not (self.path / CONDITIONS_GROUP).exists():
            return None
        return conditions_of_table(open_table(self.path, CONDITIONS_GROUP))

    def scorer(
        self, *, model: Path | None = None, device: str = "auto", pool: Pool = IN_PROCESS
    ) -> Scorer:
        """Return the scorer that judged its events, set as it was.

        Parameters
        ----------
        model : Path, optional
            Folder of the model; the shipped one if not given.
        device : str
            "auto", "cpu", "cuda" or "cuda:N"; see `network_on`.
        pool : Pool
            Where the network is to run.

        Raises
        ------
        RefusedError
            If the events were judged by another model, or by a scorer that is not known.
        """
        if self.manifest.scorer == "peaks":
            scorer: Scorer = _peak_scorer(self.manifest.settings)
        elif self.manifest.scorer == "cnn":
            scorer = self._network(model, device, pool)
        else:
            raise RefusedError(
                f"{self.path}: judged by '{self.manifest.scorer}', which this version does not "
                "know; filter the run again"
            )
        self.check_scorer(scorer)
        return scorer

    def _network(self, model: Path | None, device: str, pool: Pool) -> Scorer:
        """Network with the window that its settings name; any other if none of them does."""
        scorers = [
            network_on(pool, model=model, device=device, looks_at=window)
            for window in ("auto", "centre", "full")
        ]
        return next((s for s in scorers if _has_settings(self.manifest, s)), scorers[0])

    def check(self, run: Run, scorer: Scorer) -> None:
        """Refuse a run that is not its source, and a scorer that did not judge it.

        Raises
        ------
        RefusedError
            If either differs.
        """
        self.check_source(run)
        self.check_scorer(scorer)

    def check_scorer(self, scorer: Scorer) -> None:
        """Refuse a scorer that is not the one by which events were judged.

        Raises
        ------
        RefusedError
            If its name, its model or its settings differ.
        """
        was, model_sha256 = self.manifest, calibration_of(scorer).model_sha256
        if scorer.name != was.scorer or model_sha256 != was.model_sha256:
            raise RefusedError(
                f"{self.path}: judged by '{was.scorer}', model {was.model_sha256}, found "
                f"'{scorer.name}', model {model_sha256}; pass --model with the folder of "
                "the former, or filter the run again"
            )
        if not _has_settings(was, scorer):
            raise RefusedError(
                f"{self.path}: judged with '{was.settings}', found '{scorer.settings}'; filter "
                "the run again"
            )

    def check_source(self, run: Run) -> None:
        """Refuse a run that is not the source of the output, or is no longer as it was.

        Raises
        ------
        RefusedError
            If its path, its size, its number of events, or where they come from differ.
        """
        was = self.manifest
        facts = {
            "events": (was.source_events, run.n_events),
            "bytes": (was.source_bytes, run.source.n_bytes),
            "path": (was.source, plain_text(run.path)),
        }
        for name, (expected, found) in facts.items():
            if expected != found and not (name == "path" and _same_place(was.source, run.path)):
                raise RefusedError(
                    f"{self.path}: its source had the {name} {expected}, found {found}; give the "
                    "run it was made from, or filter this one"
                )
        table = open_table(self.path, LEDGER_GROUP)
        for name in ("source_file", "source_event"):
            if name in table and list(table[name].values) != list(run.columns[name].values):
                raise RefusedError(
                    f"{self.path}: the column {name} of its source was another than that of "
                    f"{run.path}; give the run it was made from, or filter this one"
                )


def read_reduced(path: Path, *, pool: Pool = IN_PROCESS, progress: Progress = silent) -> Reduced:
    """Open an output after every byte of it was compared with its checksum.

    Raises
    ------
    RunNotFound
        If nothing lies at the path.
    VerificationError
        If it is not as it was written.
    """
    found = verify_run(path, pool=pool, progress=progress)
    if not found.ok:
        raise VerificationError(found.problems[0])
    path = path.absolute()
    return Reduced(
        path=path,
        manifest=read_manifest(path),
        decisions=read_ledger(open_table(path, LEDGER_GROUP), where=str(path)),
    )


def _has_settings(manifest: Manifest, scorer: Scorer) -> bool:
    """Whether settings in words are those of a scorer; what a run said for itself may follow."""
    return f"{manifest.settings}, ".startswith(f"{scorer.settings}, ")


def _peak_scorer(settings: str) -> PeakScorer:
    """Peak count with settings as it words them."""
    usual = PeakFinder()
    known = {field.name: type(getattr(usual, field.name)) for field in fields(usual)}
    try:
        words = dict(item.split(" ") for item in settings.split(", "))
        return PeakScorer(PeakFinder(**{name: known[name](words[name]) for name in known}))
    except (KeyError, ValueError) as error:
        raise RefusedError(
            f"settings of the peak finder: expected {', '.join(known)}, found '{settings}'; filter "
            "the run again"
        ) from error


def _same_place(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
