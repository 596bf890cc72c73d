"""What a run holds, without reading its frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfxreduce.errors import SchemaError, VerificationError
from sfxreduce.io.files.journal import read_journal
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import ZarrFrames, read_manifest, read_table
from sfxreduce.io.store.manifest import Manifest
from sfxreduce.io.store.names import CONDITIONS_GROUP, LEDGER_GROUP
from sfxreduce.io.writers.publish import JOURNAL, moves_under_way
from sfxreduce.io.writers.resume import unfinished_folder
from sfxreduce.run.run import Run

__all__ = ["Description", "UnfinishedFacts", "describe_run", "describe_unfinished", "info_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """Facts about a run, as ``sfxreduce info`` shows them.

    Parameters
    ----------
    kind : str
        "run store", "reduced run store", or the kind of foreign file.
    frame_shape : tuple of int
        (y, x) or (panel, y, x).
    tile : tuple of int or None
        (y, x) of the stored tiles, None if frames are stored otherwise.
    distance_m, photon_energy_ev : float or None
        Detector distance in metres; median photon energy in electronvolt.
    bytes : int
        On disk.
    columns, truth : tuple of str
        Names of the per-event columns and of what is known of the events.
    hits, undecided, rejected : int or None
        Of the source's events; only a reduced store has them.
    source, scorer, threshold : str, str and float, or None
        Where a reduced store came from, and how its events were judged.
    adu_per_photon, background_adu : float or None
        Gain and background that were measured on the source before its events were scored.
    hot_pixels, noisy_pixels : int or None
        Pixels that were found to be bright, or to scatter too far, in the same frames.
    complete : bool or None
        Whether a reduced store has a valid manifest.
    warnings : tuple of str or None
        What is missing of its files, and what else to know of them; None if there is nothing.
    """

    kind: str
    experiment: str
    run: str
    events: int
    frame_shape: tuple[int, ...]
    dtype: str
    tile: tuple[int, int] | None
    events_per_shard: int | None
    masked_pixels: int
    distance_m: float | None
    photon_energy_ev: float | None
    bytes: int
    columns: tuple[str, ...]
    truth: tuple[str, ...]
    hits: int | None = None
    undecided: int | None = None
    rejected: int | None = None
    source: str | None = None
    scorer: str | None = None
    threshold: float | None = None
    adu_per_photon: float | None = None
    background_adu: float | None = None
    hot_pixels: int | None = None
    noisy_pixels: int | None = None
    complete: bool | None = None
    warnings: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return asdict(self)


def info_run(
    path: Path,
    *,
    data_path: str = "",
    roots: Sequence[Path] = (),
    untrusted: bool = False,
    source: str = "",
) -> Description | UnfinishedFacts:
    """Describe what lies at a path, or how far an output is that will appear there.

    Parameters
    ----------
    path : Path
        Run store, reduced store, CXI or HDF5 file.
    data_path, roots, untrusted, source
        See `sfxreduce.io.open.open_run`.

    Raises
    ------
    RunNotFound
        If nothing lies at the path, and nothing was begun there.
    SfxReduceError
        If it cannot be opened.
    """
    unfinished = None if path.exists() else describe_unfinished(path)
    if unfinished is not None:
        return unfinished
    run = open_run(path, data_path=data_path, roots=roots, untrusted=untrusted, source=source)
    return describe_run(run)


def describe_run(run: Run) -> Description:
    """Describe an opened run."""
    source, detector = run.source, run.detector
    layout = source.layout if isinstance(source, ZarrFrames) else None
    # Of the plain table: making Datasets takes longer than all else that is described.
    energies = np.asarray(run.table["photon_energy_ev"].values, np.float64)
    known = energies[np.isfinite(energies)]
    manifest, complete = _manifest(run)
    judged: dict[str, Any] = (
        {}
        if manifest is None
        else {
            "hits": manifest.hits,
            "undecided": manifest.undecided,
            "rejected": manifest.rejected,
            "source": manifest.source,
            "scorer": manifest.scorer,
            "threshold": manifest.threshold,
        }
    )
    return Description(
        kind=_kind(run),
        experiment=run.experiment,
        run=run.name,
        events=run.n_events,
        frame_shape=detector.frame_shape,
        dtype=str(np.dtype(source.dtype)),
        tile=layout.tile if layout else None,
        events_per_shard=layout.events_per_shard if layout else None,
        masked_pixels=int(np.count_nonzero(detector.mask)),
        distance_m=None if math.isnan(detector.distance_m) else detector.distance_m,
        photon_energy_ev=float(np.median(known)) if known.size else None,
        bytes=source.n_bytes,
        columns=tuple(sorted(map(str, run.table))),
        truth=() if run.known is None else tuple(sorted(map(str, run.known))),
        complete=complete,
        warnings=run.warnings or None,
        **judged,
        **_conditions(run),
    )


def _kind(run: Run) -> str:
    if not isinstance(run.source, ZarrFrames):
        return f"{Path(run.path).suffix.lstrip('.').upper()} file"
    judged = (run.source.folder / LEDGER_GROUP).exists()
    return "reduced run store" if judged else "run store"


def _folder(run: Run) -> Path:
    """Where a store is read."""
    return run.source.folder if isinstance(run.source, ZarrFrames) else Path(run.path)


def _manifest(run: Run) -> tuple[Manifest | None, bool | None]:
    """Manifest of a reduced store, and whether it is valid; nothing for other runs."""
    if _kind(run) != "reduced run store":
        return None, None
    try:
        return read_manifest(_folder(run)), True
    except VerificationError:
        return None, False


def _conditions(run: Run) -> dict[str, Any]:
    """What was measured on the source of a reduced store; nothing if nothing was or can be read."""
    path = _folder(run)
    if _kind(run) != "reduced run store" or not (path / CONDITIONS_GROUP).exists():
        return {}
    try:
        table = read_table(path, CONDITIONS_GROUP)
    except SchemaError:
        return {}
    return {
        "adu_per_photon": table.attrs.get("adu_per_photon"),
        "background_adu": table.attrs.get("background_adu"),
        "hot_pixels": table.sizes.get("hot"),
        "noisy_pixels": table.sizes.get("noisy"),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedFacts:
    """What is there of an output that is not finished.

    Parameters
    ----------
    pins : mapping
        Everything the output depends on.
    scored : int
        Parts of the run that were scored.
    shards : int
        Shards that were written and acknowledged.
    bytes : int
        Of these shards.
    appearing : bool
        Whether all of it was complete and only its appearing was cut off.
    """

    folder: Path
    pins: Mapping[str, Any]
    scored: int
    shards: int
    bytes: int
    appearing: bool

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object, as ``sfxreduce info`` prints it."""
        return {
            "kind": "unfinished output; the same command goes on with it",
            "complete": False,
            "folder": str(self.folder),
            "batches_scored": self.scored,
            "shards_written": self.shards,
            "bytes": self.bytes,
            **self.pins,
        }


def describe_unfinished(store: Path) -> UnfinishedFacts | None:
    """Say what is there of an output that is not finished; None if nothing is.

    Raises
    ------
    VerificationError
        If its journal was changed.
    SourceError
        If it cannot be read.
    """
    folder = unfinished_folder(store)
    if folder is None:
        return None
    scored, sizes, entries = set(), {}, read_journal(folder / JOURNAL)
    for done in (done for entry in entries for done in entry.body.get("done", ())):
        if "shard" in done:
            sizes[done["shard"]["path"]] = int(done["shard"]["size"])
        elif done["note"][0] == "score":
            scored.add(done["note"][1])
    return UnfinishedFacts(
        folder=folder,
        pins=entries[0].body.get("begin", {}) if entries else {},
        scored=len(scored),
        shards=len(sizes),
        bytes=sum(sizes.values()),
        appearing=bool(moves_under_way(entries)),
    )
