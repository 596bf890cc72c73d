"""What a user chose for one filter run: how events are judged, and where the results go."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from dask.base import tokenize

from sfxreduce.audit.sample import AUDIT_SHARE, check_share
from sfxreduce.cluster import Pool
from sfxreduce.cluster.pool import Needs
from sfxreduce.decisions.method import MAX_BLANKS_KEPT, threshold_rule
from sfxreduce.decisions.threshold import Promise
from sfxreduce.errors import OutputExists, UnfinishedRun, UsageError
from sfxreduce.io.files.being_written import being_written
from sfxreduce.io.files.durable import disk_bytes
from sfxreduce.io.files.safe_read import content_pin
from sfxreduce.io.store.names import LEDGER_GROUP
from sfxreduce.io.writers.nxmx_content import (
    SensorLayer,
    check_nxmx_codec,
    modules_of,
    parse_sensor,
)
from sfxreduce.io.writers.publish import check_cxi_filter, check_cxi_layout, check_outputs
from sfxreduce.io.writers.resume import Unfinished, appearing
from sfxreduce.report.report import Storage
from sfxreduce.run.columns import plain_text
from sfxreduce.run.detector import Detector
from sfxreduce.run.run import Run, changed_at, missing_tail_of
from sfxreduce.scorers.cnn.folder import default_model
from sfxreduce.scorers.cnn.scorer import CnnScorer
from sfxreduce.scorers.peaks.finder import MIN_PEAKS
from sfxreduce.scorers.protocol import Scorer, needs_gpu

__all__ = [
    "FilterSettings",
    "Outputs",
    "as_it_is",
    "crystfel_paths",
    "needs_of",
    "network_on",
    "outputs_at",
    "pinned",
    "storage_of",
]

TASK_MODULES = (
    "sfxreduce.pipeline.stages.batch",
    "sfxreduce.io.writers.shards",
)
"""What tasks of a filter run load, besides source and scorer."""

TASK_BYTES = 96 << 20
"""What a task takes besides its frames: pixels that are looked at together, twice, and tiles."""

FRAMES_AT_ONCE = 4
"""Whole frames, decoded, that a task may hold at a time at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterSettings:
    """What the decisions on a run depend on besides the run itself.

    Parameters
    ----------
    scorer : Scorer
        What gives an event its number; the network that comes with the package, on CPU, if not
        given.
    threshold : float, optional
        Smallest score of a hit; the scorer's own if not given. It voids the promise.
    promise : Promise
        What share of the hits may be lost, with what confidence.
    drift : bool
        Whether to compare the run with what the scorer was calibrated on; the promise needs it.
    keep_from_peaks : int
        Peaks of an event that is kept whatever it scores, if the run's blanks have clearly fewer;
        0 keeps none, and voids the promise.
    max_blanks_kept : float
        Share of the blanks that may be kept for a lower threshold than the promised one, where the
        run's own scores show a gap.
    audit_share : float
        Share of the rejected events that is kept beside the hits, drawn at random.
    incomplete : bool
        Take a run that looks unfinished as it is; the output says so.
    settle_seconds : float
        A run of which a file changed less than this long ago looks unfinished; 0 for none.

    Raises
    ------
    UsageError
        If the threshold is not finite, a share not one of 0 to 1, or the peaks are negative.

    Examples
    --------
    >>> from sfxreduce.scorers.peaks.finder import PeakScorer
    >>> FilterSettings(scorer=PeakScorer(min_peaks=10)).promise.max_loss
    0.01
    """

    scorer: Scorer = field(default_factory=lambda: CnnScorer(default_model()))
    threshold: float | None = None
    promise: Promise = field(default_factory=Promise)
    drift: bool = True
    keep_from_peaks: int = MIN_PEAKS
    max_blanks_kept: float = MAX_BLANKS_KEPT
    audit_share: float = AUDIT_SHARE
    incomplete: bool = False
    settle_seconds: float = 0.0

    def __post_init__(self) -> None:
        check_share(self.audit_share)
        given = self.threshold
        if given is not None and not abs(given) <= float(np.finfo(np.float32).max):
            raise UsageError(f"expected --threshold to be a finite number, found {given}")
        if self.keep_from_peaks < 0:
            raise UsageError(f"--keep-from-peaks: expected 0 or more, found {self.keep_from_peaks}")
        if not 0.0 <= self.max_blanks_kept <= 1.0:
            raise UsageError(
                f"--max-blanks-kept: expected a share from 0 to 1, found {self.max_blanks_kept}"
            )

    def hit_from(self, detector: Detector) -> float:
        """Smallest score of a hit, as far as that is known before an event is scored.

        Raises
        ------
        UsageError
            If nothing says it.
        """
        rule = threshold_rule(
            self.scorer, threshold=self.threshold, promise=self.promise, detector=detector
        )
        return rule.value

    @property
    def against_promise(self) -> tuple[str, ...]:
        """What was chosen that withholds the promise, in words."""
        chosen = {
            "the threshold was given: leave out '--threshold'": self.threshold is not None,
            "the run was not checked: leave out '--drift off'": not self.drift,
            "events with many peaks are not kept: leave out '--keep-from-peaks 0'": (
                self.keep_from_peaks == 0
            ),
        }
        return tuple(reason for reason, is_so in chosen.items() if is_so)


def network_on(
    pool: Pool, *, model: Path | str | None = None, device: str = "auto", looks_at: str = "auto"
) -> CnnScorer:
    """Return a network that runs on what the workers of a pool have.

    Parameters
    ----------
    model : Path or str, optional
        Model folder; the one that comes with the package if not given.
    device : str
        "auto" for the workers' GPU where any of them offers one, "cpu" or "cuda".
    looks_at : str
        See `sfxreduce.scorers.cnn.scorer.CnnScorer`.

    Raises
    ------
    ModelError
        If the folder holds no model this version can use.

    Examples
    --------
    >>> from sfxreduce.cluster import IN_PROCESS
    >>> network_on(IN_PROCESS).device
    'cpu'
    """
    if device == "auto":
        device = "cuda" if pool.has_gpu else "cpu"
    return CnnScorer(model or default_model(), device=device, looks_at=looks_at)


def needs_of(run: Run, scorer: Scorer, folder: Path | None) -> Needs:
    """Say what workers have to see and to hold to judge a run, and to write in a folder."""
    frame_bytes = math.prod(run.detector.frame_shape) * np.dtype(run.source.dtype).itemsize
    model = getattr(scorer, "model", None)
    # Those of others may lie in no module that a worker could load by its name.
    theirs = {type(scorer).__module__, type(run.source).__module__}
    ours = sorted(name for name in theirs if name.startswith("sfxreduce."))
    return Needs(
        inputs=run.source.inputs,
        folder=folder,
        model=model if isinstance(model, Path) else None,
        modules=(*TASK_MODULES, *ours, *(["torch"] if needs_gpu(scorer) else [])),
        memory_bytes=TASK_BYTES + FRAMES_AT_ONCE * frame_bytes,
    )


def as_it_is(run: Run, *, incomplete: bool, settle_seconds: float = 0.0) -> Run:
    """Refuse a run that looks as if it was still being written, or write down that it does.

    Parameters
    ----------
    incomplete, settle_seconds
        See `FilterSettings`.

    Returns
    -------
    Run
        The same; its `incomplete` has the signs.

    Raises
    ------
    UnfinishedRun
        If it does, and is not to be taken as it is.
    """
    tail = missing_tail_of(run.source)
    signs = [f"TAIL_MISSING: {tail}"] if tail else []
    if settle_seconds > 0 or any(path.is_file() for path in run.source.inputs):
        signs += being_written(
            run.source.inputs,
            settle_seconds=settle_seconds,
            changed_at=changed_at(run.source) if settle_seconds > 0 else 0.0,
        )
    if not signs:
        return run
    if not incomplete:
        raise UnfinishedRun(plain_text(run.path), signs)
    return replace(run, columns=run.columns.assign_attrs(incomplete=signs))


def pinned(value: object, name: str = "", *, by_content: bool) -> dict[str, Any]:
    """Every field of a value, and of the values in it, as plain JSON by its dotted name.

    What is no plain number or text stands there as a hash. A value that no other process would hash
    alike never equals itself: what depends on it is done again.

    Parameters
    ----------
    name : str
        Of the value itself.
    by_content : bool
        Whether a path stands for the bytes of the files there, or for itself.

    Examples
    --------
    >>> from sfxreduce.decisions.threshold import Promise
    >>> pinned(Promise(max_loss=0.02), "promise", by_content=True)
    {'promise': 'Promise', 'promise.max-loss': 0.02, 'promise.confidence': 0.95}
    """
    if is_dataclass(value):
        pins: dict[str, Any] = {name: type(value).__qualname__} if name else {}
        for part in fields(value):
            dotted = f"{name}.{part.name}".lstrip(".").replace("_", "-")
            pins |= pinned(getattr(value, part.name), dotted, by_content=by_content)
        return pins
    if isinstance(value, Path):
        return {name: content_pin(value) if by_content and value.exists() else str(value)}
    plain = value is None or isinstance(value, str | bool | int | float)
    if plain and not (isinstance(value, float) and not math.isfinite(value)):
        return {name: value}
    return {name: tokenize(value)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Where the results of a filter run go.

    Parameters
    ----------
    store : Path
        Reduced run store.
    cxi : Path, optional
        The same hits for CrystFEL; a geometry and an event list are written beside it.
    report : Path, optional
        One HTML page.
    cxi_filter : str
        How the frames of `cxi` are packed: ``gzip``, which every HDF5 library unpacks, or
        ``blosc``, for which stored tiles are copied.
    cxi_layout : str
        How its panels are stored: ``modules``, an axis of their own as the specification has it, or
        ``slab``, one below the other.
    cxi_without_geometry : bool
        Write no geometry beside it, which needs a gain, a distance and more.
    nxmx : Path, optional
        The same hits for DIALS: a file that links to the frames of `cxi`, or holds them itself if
        there is none.
    nxmx_codec : str
        How it packs frames that it holds itself: ``gzip`` or ``bslz4``.
    sensor : str
        What the detector's sensors are made of, "Si:320um"; by default the detector's name says it.
    overwrite : bool
        Replace what lies there.
    command : str
        What was typed for it, as the page shows it.
    options : mapping
        Options that decide on events, each with its ``value`` and the ``origin`` of that; they go
        into the manifest, and nothing depends on them.

    Raises
    ------
    UsageError
        If there is no such filter, layout, codec or sensor, or CrystFEL's event list cannot hold
        the path of `cxi`.
    """

    store: Path
    cxi: Path | None = None
    report: Path | None = None
    cxi_filter: str = "gzip"
    cxi_layout: str = "modules"
    cxi_without_geometry: bool = False
    nxmx: Path | None = None
    nxmx_codec: str = "gzip"
    sensor: str = ""
    overwrite: bool = False
    command: str = ""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_cxi_filter(self.cxi_filter)
        check_cxi_layout(self.cxi_layout)
        if self.cxi is not None:
            crystfel_paths(self.cxi)
        if self.nxmx is not None:
            check_nxmx_codec(self.nxmx_codec)
        if self.sensor:
            parse_sensor(self.sensor, detector="")

    @property
    def crystfel(self) -> tuple[Path, ...]:
        """CXI file and event list, and the geometry if there will be one; none without a CXI."""
        if self.cxi is None:
            return ()
        frames, geometry, event_list = crystfel_paths(self.cxi)
        return (frames, event_list, *(() if self.cxi_without_geometry else (geometry,)))

    @property
    def needs_plugin(self) -> bool:
        """Whether programs need a filter of hdf5plugin to read CXI or NXmx file."""
        if self.cxi is not None:
            return self.cxi_filter != "gzip"
        return self.nxmx is not None and self.nxmx_codec != "gzip"

    @property
    def files(self) -> tuple[Path, ...]:
        """Every single file that will appear beside the store."""
        beside = (self.nxmx, self.report)
        return (*self.crystfel, *(path for path in beside if path is not None))

    def layer_of(self, detector: Detector) -> SensorLayer:
        """What the sensors of a detector are made of, by option or name."""
        return parse_sensor(self.sensor, detector=detector.name)

    def check_places(self, *inputs: Path) -> None:
        """Refuse outputs that would touch an input, each other, or what is not ours to replace.

        Raises
        ------
        UsageError
            If outputs and inputs overlap.
        OutputExists
            If something lies there that may not be replaced.
        OutputError
            If a folder does not exist.
        """
        # A run of its own may be the only one of its kind; what came of a run can be made again.
        if self.overwrite and self.store.is_dir() and not (self.store / LEDGER_GROUP).is_dir():
            raise OutputExists(
                f"{self.store}: has no ledger, so it is no output of 'filter' and is not replaced; "
                "choose another path, or move it away first"
            )
        check_outputs(
            stores=[self.store],
            files=self.files,
            inputs=inputs,
            overwrite=self.overwrite,
            appearing=appearing(self.store),
        )

    def check(self, run: Run, *also_read: Path) -> None:
        """Refuse outputs that would touch the run, each other, or what is not ours to replace.

        Parameters
        ----------
        *also_read : Path
            What is read besides the run.

        Raises
        ------
        UsageError
            If outputs and inputs overlap, or CrystFEL or DIALS would refuse the geometry.
        OutputExists
            If something lies there that may not be replaced.
        OutputError
            If a folder does not exist.
        """
        self.check_places(*run.inputs, *also_read)
        if self.cxi is not None and not self.cxi_without_geometry:
            check_geometry(run, "--cxi: CrystFEL", ", or --cxi-without-geometry")
        if self.nxmx is not None:
            check_geometry(run, "--nxmx: DIALS")
            self.layer_of(run.detector)
            modules_of(run.detector)


def outputs_at(place: Outputs | Path | str) -> Outputs:
    """Outputs as they are given, or a reduced store alone at a path.

    Examples
    --------
    >>> outputs_at("hits.zarr").store.name
    'hits.zarr'
    """
    return place if isinstance(place, Outputs) else Outputs(store=Path(place))


def check_geometry(run: Run, reader: str, instead: str = "") -> None:
    """Refuse a file that would lack what its reader needs; nothing is scored yet.

    Parameters
    ----------
    reader : str
        The option, and the program that would refuse the file.
    instead : str
        What else can be done about it, as the end of a sentence.

    Raises
    ------
    UsageError
        If a number that is needed is not known.
    """
    detector, energies = run.detector, run.columns["photon_energy_ev"].values
    known = {
        "--distance-m": detector.distance_m,
        "--pixel-size-m": detector.pixel_size_m,
        "--adu-per-photon": detector.adu_per_photon,
        "--photon-energy-ev": 1.0 if np.isfinite(energies).any() else math.nan,
    }
    missing = [name for name, value in known.items() if not math.isfinite(value)]
    # Of a run without events no energy is known, and none is needed.
    if missing and run.n_events:
        raise UsageError(
            f"{reader} refuses a geometry without {' and '.join(missing)}, which neither "
            f"{run.path} nor a geometry file says; give {'it' if len(missing) == 1 else 'them'}, "
            f"{'' if instead else 'or '}a --geometry FILE{instead}"
        )


def crystfel_paths(cxi: Path) -> tuple[Path, Path, Path]:
    """Return the paths of the CXI file, its geometry and its event list.

    Raises
    ------
    UsageError
        If the path has no name.

    Examples
    --------
    >>> [path.name for path in crystfel_paths(Path("hits.cxi"))]
    ['hits.cxi', 'hits.geom', 'hits.lst']
    """
    if not cxi.name:
        raise UsageError(f"'{cxi}': expected the name of a CXI file, found none")
    if len(f"{cxi}.".splitlines()) > 1:
        raise UsageError(
            f"--cxi: expected a path that fits on a line of CrystFEL's event list, found "
            f"{str(cxi)!a}; choose a name without line breaks"
        )
    stem = cxi.stem if cxi.suffix in (".cxi", ".h5") else cxi.name
    return cxi, cxi.with_name(f"{stem}.geom"), cxi.with_name(f"{stem}.lst")


def storage_of(run: Run, outputs: Outputs, work: Unfinished) -> Storage:
    """Bytes of the run and of its reduced store, and where the outputs will be."""
    store = outputs.store if work.published else work.hidden[outputs.store]
    return Storage(
        source=plain_text(run.path),
        bytes_in=run.source.n_bytes,
        bytes_out=disk_bytes(store),
        out=outputs.store,
        cxi=outputs.cxi,
        nxmx=outputs.nxmx,
        dials_gain=run.detector.adu_per_photon if outputs.nxmx else None,
        report=outputs.report,
        plugin_path=_plugin_path() if outputs.needs_plugin else None,
        not_carried=run.not_carried,
        incomplete=run.incomplete,
    )


def _plugin_path() -> str:
    """Folder of the filters that other programs need to read a CXI or NXmx file."""
    import hdf5plugin  # 0.1 s with h5py, for runs that are exported

    return str(hdf5plugin.PLUGIN_PATH)
