"""What a filter run kept, dropped and saved: numbers for machines, one page for people."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from sfxreduce.decisions.assurance import Assurance
from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.decisions.method import Method
from sfxreduce.io.chunks.blosc import DENSE_PACKING
from sfxreduce.io.chunks.shards import packed_bytes
from sfxreduce.io.files.durable import output_errors, write_file
from sfxreduce.report.figures import (
    Picture,
    assembled_png,
    chart,
    draw_calibration,
    draw_run,
    draw_scores,
    draw_windows,
    peaks_in_picture,
    readable,
)
from sfxreduce.run.columns import plain_text
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.run.show import html_table
from sfxreduce.scorers.peaks.finder import MIN_PEAKS

__all__ = [
    "Report",
    "Storage",
    "choose_events",
    "counted",
    "human_bytes",
    "render_html",
    "rounded",
    "short_path",
    "summarize",
    "write_page",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The numbers of one filter run. Counts are numbers of events, sizes are bytes on disk.

    Parameters
    ----------
    events : int
        Events of the source run: hits, undecided and rejected together.
    kept : int
        Hits and undecided events, as many as the output has frames.
    threshold : float
        Smallest score of a hit.
    model_sha256 : str or None
        Of the model's weights; None for a scorer without.
    bytes_in, bytes_out, bytes_saved : int
        Of the source, of the reduced store, and their difference.
    reduction_factor : float
        Bytes in over bytes out.
    source, out : str
        Paths of the run and of the reduced store.
    cxi, nxmx, report : str or None
        Paths of the other outputs, if they were asked for.
    dials_gain : float or None
        What DIALS takes as ``gain=`` for `nxmx`, in ADU per photon.
    max_loss, confidence : float
        What was asked of the threshold.
    certified : bool
        Whether that is promised for hits like those the scorer was calibrated on.
    assurance : mapping
        The promise, or what withholds it: a `sfxreduce.decisions.assurance.Assurance`.
    gap : mapping or None
        The run's own gap below the promised threshold, a `sfxreduce.decisions.method.Gap`.
    gap_reason : str or None
        Why there is none.
    first_look : mapping or None
        ``tiles`` that are looked at first, the ``share`` of the threshold that they have to reach,
        and the ``line`` that this makes; None where all tiles are looked at together.
    kept_for_peaks : int
        Undecided events that are kept for their number of peaks.
    window_tiles, tiles_total : int or None
        Tiles of the assembled picture that were looked at, and all there are; None for a scorer
        that looks at source frames.
    tiles_per_event : float or None
        Tiles that scores rest on, on average over the events that could be read: the others of an
        event are not looked at where the first ones decide. None for whole source frames.
    audit_sample : int
        Rejected events that are kept for an audit, beside the others and not counted as kept.
    geometry : str
        Whether the places of the panels are "given" or "assumed".
    changed : int
        Events whose pixels changed between scoring and copying; those kept are undecided.
    plugin_path : str or None
        Folder that readers of the CXI or NXmx file need in HDF5_PLUGIN_PATH; None if they need
        none.
    not_carried : tuple of str
        Per-event data of the source that no output has.
    incomplete : tuple of str
        "CODE: words" of each sign that the run was still being written; none of a whole one.
    next_command : str or None
        What to type next where nothing is promised.
    options : mapping
        Options that decided on events, each with its ``value`` and the ``origin`` of that.
    """

    events: int
    hits: int
    undecided: int
    rejected: int
    kept: int
    threshold: float
    scorer: str
    model_sha256: str | None
    bytes_in: int
    bytes_out: int
    bytes_saved: int
    reduction_factor: float
    wall_seconds: float
    source: str
    out: str
    cxi: str | None = None
    nxmx: str | None = None
    dials_gain: float | None = None
    report: str | None = None
    max_loss: float = 0.01
    confidence: float = 0.95
    certified: bool = False
    assurance: Mapping[str, Any] = field(default_factory=lambda: Assurance().to_json())
    gap: Mapping[str, Any] | None = None
    gap_reason: str | None = None
    first_look: Mapping[str, Any] | None = None
    kept_for_peaks: int = 0
    window_tiles: int | None = None
    tiles_total: int | None = None
    tiles_per_event: float | None = None
    audit_sample: int = 0
    geometry: str = "given"
    changed: int = 0
    plugin_path: str | None = None
    not_carried: tuple[str, ...] = ()
    incomplete: tuple[str, ...] = ()
    next_command: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """What became of the run, in one sentence."""
        return (
            f"Kept {self.kept:,} of {counted(self.events, 'event')}"
            f"{' of an incomplete run' if self.incomplete else ''}: "
            f"{human_bytes(self.bytes_in)} became {human_bytes(self.bytes_out)}"
        )

    @property
    def saving(self) -> str:
        """What was saved; an output may be the larger one."""
        if self.bytes_saved <= 0:
            return f"nothing: {human_bytes(-self.bytes_saved)} larger"
        return f"{human_bytes(self.bytes_saved)}, {self.reduction_factor:.3g} times smaller"

    @property
    def warning(self) -> str:
        """What stands above everything else: nothing is promised, and which checks do not pass."""
        checks = self.assurance["checks"]
        alarms = [name for name, one in checks.items() if one["ran"] and not one["passed"]]
        names = ", ".join(alarms).replace("_", " ")
        return f"No promise; alarm: {names}" if names else "No promise"

    @property
    def check_command(self) -> str:
        """What compares the output with its source."""
        words = ["--in", short_path(self.out), "--against", short_path(self.source)]
        return shlex.join(["sfxreduce", "verify", *words])

    @property
    def crystfel_command(self) -> str:
        """What indexes the hits by CrystFEL; empty without a CXI file or a geometry beside it."""
        if self.cxi is None:
            return ""
        paths = [Path(self.cxi).with_suffix(suffix) for suffix in (".geom", ".lst", ".stream")]
        geometry, events, stream = map(short_path, paths)
        if not paths[0].exists():
            return ""
        return shlex.join(["indexamajig", "-g", geometry, "-i", events, "-o", stream])

    @property
    def judged_by(self) -> str:
        """Scorer and threshold."""
        return f"{self.scorer}, threshold {readable(self.threshold)}"

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return asdict(self)

    def _repr_html_(self) -> str:
        facts: dict[str, object] = {
            "hits": f"{self.hits:,}",
            "undecided, kept": f"{self.undecided:,}",
            "rejected": f"{self.rejected:,}, {self.audit_sample:,} of them kept to audit",
            "scorer": self.judged_by,
            "saved": self.saving,
            "output": short_path(self.out),
        }
        facts |= {"next": self.next_command} if self.next_command else {}
        return html_table(self.verdict, facts, note=self.assurance["sentence"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """What was read and written."""

    source: str
    bytes_in: int
    bytes_out: int
    out: Path
    cxi: Path | None
    report: Path | None
    nxmx: Path | None = None
    dials_gain: float | None = None
    plugin_path: str | None = None
    not_carried: tuple[str, ...] = ()
    incomplete: tuple[str, ...] = ()


def summarize(
    decisions: Decisions,
    *,
    method: Method,
    storage: Storage,
    wall_seconds: float,
    geometry: str = "given",
    options: Mapping[str, Any] | None = None,
) -> Report:
    """Count events and bytes of a filter run.

    Parameters
    ----------
    wall_seconds : float
        From the first read until the outputs are ready to be published.
    geometry, options
        See `Report`.
    """
    hits = decisions.count(Decision.HIT)
    undecided = decisions.count(Decision.UNDECIDED)
    rejected = decisions.count(Decision.REJECT)
    return Report(
        events=decisions.score.size,
        hits=hits,
        undecided=undecided,
        rejected=rejected,
        kept=hits + undecided,
        threshold=method.threshold,
        scorer=method.scorer,
        model_sha256=method.model_sha256,
        bytes_in=storage.bytes_in,
        bytes_out=storage.bytes_out,
        bytes_saved=storage.bytes_in - storage.bytes_out,
        reduction_factor=storage.bytes_in / storage.bytes_out,
        wall_seconds=wall_seconds,
        source=storage.source,
        out=str(storage.out),
        cxi=str(storage.cxi) if storage.cxi else None,
        nxmx=str(storage.nxmx) if storage.nxmx else None,
        dials_gain=storage.dials_gain,
        report=str(storage.report) if storage.report else None,
        audit_sample=decisions.sample.size,
        tiles_per_event=decisions.tiles_per_event,
        geometry=geometry,
        changed=int(np.count_nonzero(decisions.reason & np.uint32(Reason.CHANGED))),
        plugin_path=storage.plugin_path,
        not_carried=storage.not_carried,
        options=options or {},
        incomplete=storage.incomplete,
        kept_for_peaks=int(np.count_nonzero(decisions.reason & np.uint32(Reason.PEAK_COUNT))),
        next_command=None
        if method.assurance.promised
        else _next_command(short_path(storage.out), rejected=rejected),
        **method.claims,
    )


def _next_command(out: str, *, rejected: int) -> str:
    """What helps where nothing is promised: a bound from labels, or the reasons one by one."""
    store = shlex.quote(out)
    if not rejected:
        table = shlex.quote(str(Path(out).with_suffix(".csv")))
        return f"sfxreduce ledger --in {store} --out {table}"
    return f'sfxreduce audit draw --in {store} --nonce "SIX THROWN DICE" --out draw.json'


def counted(number: int, noun: str) -> str:
    """Number of things, and their name in the plural where it belongs.

    Examples
    --------
    >>> counted(1, "event"), counted(1200, "event")
    ('1 event', '1,200 events')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def human_bytes(n_bytes: float) -> str:
    """Bytes in the unit a person would choose, powers of ten.

    Examples
    --------
    >>> human_bytes(1_234_000_000), human_bytes(512)
    ('1.23 GB', '512 B')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(n_bytes) < 1000 or unit == "TB":
            break
        n_bytes /= 1000
    return f"{n_bytes:.3g} {unit}" if abs(n_bytes) < 999.5 else f"{n_bytes:,.0f} {unit}"


def rounded(value: float, digits: int = 0) -> str:
    """Number with so many digits after the point, its thousands told apart, and no minus zero.

    Examples
    --------
    >>> rounded(-12345.678, 1), rounded(-0.4)
    ('-12,345.7', '0')
    """
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def short_path(path: str | Path) -> str:
    """Path as seen from the working directory, if it lies below it.

    Examples
    --------
    >>> short_path(Path.cwd() / "demo" / "run.zarr")
    'demo/run.zarr'
    """
    folder = Path.cwd()
    return str(Path(path).relative_to(folder) if folder in Path(path).parents else path)


SHOWN = {Decision.REJECT: 8, Decision.UNDECIDED: 4, Decision.HIT: 8}
"""Pictures of each decision: two rows on a desk, and still read and drawn in a second or two."""

DISAGREEING = 2
"""Pictures of each kind of event that network and peak finder judge differently."""

IN_POWDER = 24
"""Frames of a virtual powder pattern, as far as there are so many: rings show from about 20 on."""

PACKED = 4
"""Frames that are packed anew to learn what that would save."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """Events that the page shows, by where it shows them.

    Parameters
    ----------
    galleries : mapping of str to ndarray of int64
        Positions in the run, by the title above their pictures.
    disagreeing : mapping of str to ndarray of int64
        The same of events that network and peak finder judge differently.
    powders : mapping of str to ndarray of int64
        Events of each virtual powder pattern, by its title.
    packed : ndarray of int64
        Events that are packed anew.
    """

    galleries: Mapping[str, NDArray[np.int64]]
    disagreeing: Mapping[str, NDArray[np.int64]]
    powders: Mapping[str, NDArray[np.int64]]
    packed: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pictures:
    """What was drawn of the chosen events.

    Parameters
    ----------
    events : mapping of int to Picture
        Those that could be read.
    powders : mapping of str to tuple of str and int
        Picture as a data URI, and the number of frames in it.
    packed_bytes, packed_frames : int
        Bytes that so many frames take when they are packed anew.
    """

    events: Mapping[int, Picture]
    powders: Mapping[str, tuple[str, int]]
    packed_bytes: int
    packed_frames: int


def choose_events(decisions: Decisions, *, threshold: float) -> Choice:
    """Events worth a look.

    Of the rejected ones those nearest to the threshold, of the hits a row from weak to strong, of
    the undecided ones the first; and those on which network and peak finder differ most.
    """
    score = decisions.score
    # What ended a worker would end this process as well.
    harmless = (decisions.reason & np.uint32(Reason.WORKER_LOST)) == 0
    of = {d: np.flatnonzero((decisions.decision == d) & harmless) for d in Decision}
    rejected, hits = (
        of[d][np.argsort(score[of[d]], kind="stable")] for d in (Decision.REJECT, Decision.HIT)
    )
    counted_peaks = decisions.peaks >= 0
    few = counted_peaks & (decisions.peaks < MIN_PEAKS)
    strong = hits[few[hits]][::-1]
    low = np.flatnonzero((score < threshold) & (decisions.peaks >= MIN_PEAKS) & harmless)
    low = low[np.argsort(-decisions.peaks[low], kind="stable")]
    return Choice(
        galleries={
            "Rejected, nearest to the threshold": rejected[::-1][: SHOWN[Decision.REJECT]],
            "Undecided, kept": of[Decision.UNDECIDED][: SHOWN[Decision.UNDECIDED]],
            "Hits, from weak to strong": _spread(hits, SHOWN[Decision.HIT]),
        },
        disagreeing={
            f"Hits of the network with fewer than {MIN_PEAKS} peaks": strong[:DISAGREEING],
            f"Below the threshold with {MIN_PEAKS} peaks or more": low[:DISAGREEING],
        },
        powders={
            "hits": _spread(of[Decision.HIT], IN_POWDER),
            "rejected events": _spread(of[Decision.REJECT], IN_POWDER),
        },
        packed=_spread(np.flatnonzero(harmless), PACKED),
    )


def _spread(events: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    """So many of some events, evenly from first to last."""
    chosen = np.linspace(0, max(events.size - 1, 0), min(wanted, events.size))
    return np.asarray(events[chosen.astype(int)], np.int64)


def draw_pictures(run: Run, decisions: Decisions, choice: Choice) -> Pictures:
    """Read the chosen events once each, and draw them. Unreadable events are left out."""
    draw = _drawn_with(run, decisions)
    shown = {*map(int, np.concatenate([*choice.galleries.values(), *choice.disagreeing.values()]))}
    in_powder = {name: set(events.tolist()) for name, events in choice.powders.items()}
    to_pack = set(choice.packed.tolist())
    brightest: dict[str, NDArray[np.generic]] = {}
    n_frames = dict.fromkeys(in_powder, 0)
    pictures, packed = {}, []
    for event in sorted(shown.union(to_pack, *in_powder.values())):
        reading = run.source.read([event])
        if reading.reasons[0]:
            continue
        frame = reading.pixels[0]
        if event in shown:
            pictures[event] = draw(event, frame)
        if event in to_pack:
            packed.append(packed_bytes(frame))
        for name, events in in_powder.items():
            if event in events:
                brightest[name] = np.fmax(brightest.get(name, frame), frame)
                n_frames[name] += 1
    return Pictures(
        events=pictures,
        powders={
            name: (assembled_png(brightest[name], run.detector), n)
            for name, n in n_frames.items()
            if n
        },
        packed_bytes=sum(packed),
        packed_frames=len(packed),
    )


def _drawn_with(run: Run, decisions: Decisions) -> Callable[[int, NDArray[np.generic]], Picture]:
    """What draws an event of a run, with its peaks by the conventional rule."""
    detector = run.detector
    rows, columns = detector.assembly().shape

    def draw(event: int, frame: NDArray[np.generic]) -> Picture:
        return Picture(
            event=event,
            score=float(decisions.score[event]),
            decision=Decision(decisions.decision[event]),
            png=assembled_png(frame, detector),
            size=(columns, rows),
            peaks=peaks_in_picture(frame, detector),
        )

    return draw


def write_page(
    path: Path,
    report: Report,
    decisions: Decisions,
    *,
    run: Run,
    method: Method,
    command: str = "",
) -> None:
    """Write the report page, with pictures of events of the run.

    Parameters
    ----------
    command : str
        What was typed to make the output.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    choice = choose_events(decisions, threshold=report.threshold)
    pictures = draw_pictures(run, decisions, choice)
    page = render_html(
        report, decisions, method=method, choice=choice, pictures=pictures, command=command
    )
    with output_errors(path):
        write_file(path, plain_text(page).encode())


def render_html(
    report: Report,
    decisions: Decisions,
    *,
    method: Method,
    choice: Choice,
    pictures: Pictures,
    command: str = "",
) -> str:
    """One page, in one file, that a beamline scientist reads in a glance and can veto.

    What it promises is the report's `assurance`, as the terminal and the JSON have it.

    Returns
    -------
    str
        HTML that needs no network and no script.
    """
    environment = Environment(
        loader=PackageLoader("sfxreduce.report"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"bytes": human_bytes, "readable": readable, "counted": counted}

    def drawn(events: Mapping[str, NDArray[np.int64]]) -> list[tuple[str, list[Picture]]]:
        known = pictures.events
        return [
            (title, [known[event] for event in chosen.tolist() if event in known])
            for title, chosen in events.items()
        ]

    return environment.get_template("report.html").render(
        report=report,
        assurance=report.assurance,
        source=short_path(report.source),
        method=method,
        command=command,
        software=version("sfxreduce"),
        written=datetime.now().astimezone().isoformat(" ", "minutes"),
        charts=_charts(report, decisions, method),
        reasons=_reason_counts(decisions),
        galleries=drawn(choice.galleries),
        disagreeing=drawn(choice.disagreeing),
        agreement=_agreement(decisions, threshold=report.threshold),
        powders=pictures.powders,
        alternatives=_alternatives(report, decisions, pictures),
        min_peaks=MIN_PEAKS,
    )


def _charts(report: Report, decisions: Decisions, method: Method) -> dict[str, str]:
    """Charts of the run and of the model, those that there is something to draw for."""
    curves = method.curves
    charts = {}
    if decisions.score.size:
        charts["run"] = chart(
            partial(draw_run, decisions=decisions),
            name="run",
            alt=f"Hits along the run: {report.hits:,} of {counted(report.events, 'event')}, and "
            f"{report.undecided:,} undecided",
        )
        charts["scores"] = chart(
            partial(draw_scores, decisions=decisions, threshold=report.threshold),
            name="scores",
            alt=f"Histogram of the scores, threshold {readable(report.threshold)}",
        )
    if curves.loss:
        charts["windows"] = chart(
            partial(draw_windows, curve=curves.loss, chosen=curves.window),
            name="windows",
            alt="Hit loss against tiles scored",
        )
    if curves.reliability:
        charts["calibration"] = chart(
            partial(draw_calibration, bins=curves.reliability),
            name="calibration",
            alt="Calibrated probability against the share of hits observed",
        )
    return charts


def _agreement(decisions: Decisions, *, threshold: float) -> dict[str, tuple[int, int]] | None:
    """Events with enough peaks and with fewer, for scores above and below the threshold.

    None where peaks were not counted beside the score.
    """
    known = (decisions.peaks >= 0) & np.isfinite(decisions.score)
    if not known.any():
        return None
    many = decisions.peaks >= MIN_PEAKS
    sides = {
        "at or above the threshold": known & (decisions.score >= threshold),
        "below the threshold": known & (decisions.score < threshold),
    }
    return {
        name: (int(np.count_nonzero(side & many)), int(np.count_nonzero(side & ~many)))
        for name, side in sides.items()
    }


def _alternatives(
    report: Report, decisions: Decisions, pictures: Pictures
) -> list[tuple[str, float, str]]:
    """What other ways to reduce the run would leave on the disk: name, bytes, a remark."""
    each_in = report.bytes_in / max(report.events, 1)
    each_out = report.bytes_out / max(report.kept, 1)
    rows = [("this output", float(report.bytes_out), "")]
    if report.undecided and report.hits:
        remark = f"drops {counted(report.undecided, 'event')} that no score can be trusted for"
        rows.append(("hits alone", report.hits * each_out, remark))
    by_peaks = int(np.count_nonzero(decisions.peaks >= MIN_PEAKS))
    if by_peaks:
        few = (decisions.peaks >= 0) & (decisions.peaks < MIN_PEAKS)
        lost = int(np.count_nonzero(few & (decisions.decision == Decision.HIT)))
        remark = f"on the tiles scored; drops {counted(lost, 'hit')} of this output"
        rows.append((f"events with {MIN_PEAKS} peaks or more", by_peaks * each_in, remark))
    if pictures.packed_frames:
        remark = (
            f"{DENSE_PACKING.cname} level {DENSE_PACKING.clevel}; measured on "
            f"{counted(pictures.packed_frames, 'frame')}"
        )
        size = pictures.packed_bytes / pictures.packed_frames * report.events
        rows.append(("every event, packed more densely", size, remark))
    return [*rows, ("every event as it is", float(report.bytes_in), "")]


def _reason_counts(decisions: Decisions) -> list[tuple[str, int]]:
    """Count the events with each reason, those that occur."""
    counts = [
        (
            str(reason.name).lower().replace("_", " "),
            int(np.count_nonzero(decisions.reason & reason)),
        )
        for reason in Reason
        if reason is not Reason.AUDIT_SAMPLE  # there is nothing odd about it
    ]
    return [(name, n) for name, n in counts if n]
