"""``sfxreduce review`` and ``view``: events of a run in a browser, to label or to look at."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfxreduce.audit.labels import EventLabel, labels_to_csv
from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.errors import LabelError, RunNotFound, UsageError, VerificationError
from sfxreduce.io.files.durable import output_errors, write_file
from sfxreduce.io.files.journal import alone
from sfxreduce.io.readers.zarr.run import open_table
from sfxreduce.io.store.names import MANIFEST_GROUP
from sfxreduce.io.writers.publish import check_outputs
from sfxreduce.pipeline.audit import read_draw, read_labels
from sfxreduce.pipeline.why import JudgedEvents, read_judged
from sfxreduce.report.live.frames import Frames, resolution_rings
from sfxreduce.report.live.guard import GuardedPages
from sfxreduce.report.live.review_page import Album, review_page
from sfxreduce.report.live.serve import serve_until_interrupted
from sfxreduce.report.report import counted, short_path
from sfxreduce.run.labels import Label
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.scorers.peaks.finder import MIN_PEAKS

__all__ = ["LabelBook", "events_to_review", "review_run", "view_run"]

MOST_LISTED = 200
"""Events of a list: half an hour of looking."""

DRAWN = "drawn for an audit"


def review_run(
    store: Path,
    run: Run,
    *,
    out: Path | None = None,
    draw: Path | None = None,
    by: str = "",
    port: int = 0,
    ready: Callable[[str], None],
) -> LabelBook:
    """Serve a page to label the events of a filter run that deserve a look, until Ctrl-C.

    Parameters
    ----------
    store : Path
        The reduced store.
    run : Run
        The source that was filtered.
    out : Path, optional
        CSV file of the labels, replaced with every label; labels that it already holds are kept.
        Beside the store if not given: ``hits.labels.csv`` for ``hits.zarr``.
    draw : Path, optional
        What ``audit draw`` wrote: its events come first, and nothing is told of one before it has
        its label.
    by : str
        Who labels; the user's name if not given.
    port : int
        Of 127.0.0.1; 0 for one that is free.
    ready : callable
        Called with the address of the page, once it is there.

    Raises
    ------
    VerificationError
        If the run is not the one that was filtered, or the draw not of it.
    LabelError
        If the file holds something else than labels.
    OutputError
        If the file cannot be written, or another program is labelling into it.
    """
    judged = _judged(store, run)
    path = out or store.with_name(f"{store.stem}.labels.csv")
    check_outputs(files=[path], inputs=[store, *run.inputs], overwrite=True)
    with ExitStack() as stack:
        book = stack.enter_context(LabelBook.opened(path, by=by or _user()))
        album = _album(
            stack,
            run,
            title=f"review of {store.name}",
            lists=_lists(judged, draw),
            explain=lambda event: judged.explain(event).sentences,
            book=book,
            blind=frozenset([DRAWN]),
        )
        serve_until_interrupted(GuardedPages("/review", review_page(album)), port=port, ready=ready)
    return book


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        raise UsageError("review: this user has no name here; pass --by NAME") from error


def _judged(store: Path, run: Run) -> JudgedEvents:
    """Ledger of a store that was made from this run."""
    if not store.exists():
        raise RunNotFound(f"{store}: no such folder; check the path given to --in")
    judged = read_judged(store)
    n_events = judged.decisions.score.size
    if n_events != run.n_events:
        raise VerificationError(
            f"{run.path}: has {counted(run.n_events, 'event')}, but {store} was made from "
            f"{n_events}; is it the run that was filtered?"
        )
    return judged


def view_run(run: Run, *, event: int = 0, port: int = 0, ready: Callable[[str], None]) -> None:
    """Serve a page that shows the events of a run one by one, until Ctrl-C.

    Parameters
    ----------
    run : Run
        Any run; of a reduced store, the page says why each event was kept.
    event : int
        To begin with.
    port, ready
        As of `review_run`.

    Raises
    ------
    UsageError
        If the run has no such event.
    """
    if not 0 <= event < max(run.n_events, 1):
        raise UsageError(
            f"{run.path}: event {event}: expected a position from 0 to {run.n_events - 1}"
        )
    with ExitStack() as stack:
        album = _album(
            stack,
            run,
            title=Path(run.path).name,
            lists={"all events": np.arange(run.n_events)},
            explain=_described(run),
            first=event,
        )
        serve_until_interrupted(GuardedPages("/view", review_page(album)), port=port, ready=ready)


def events_to_review(decisions: Decisions, *, threshold: float) -> Mapping[str, NDArray[np.int64]]:
    """Events worth a look, by why, those that tell most first.

    Parameters
    ----------
    threshold : float
        Smallest score of a hit.

    Returns
    -------
    mapping of str to ndarray of int64
        Positions in the run: on either side of the threshold; on which network and peak finder
        disagree; undecided; and those of the random sample of rejects that the store keeps.

    Examples
    --------
    >>> from sfxreduce.decisions.decide import decide
    >>> made = decide(np.float32([0.9, 0.1, 0.4, np.nan]), np.zeros(4, np.uint32), threshold=0.5)
    >>> {name: events.tolist() for name, events in events_to_review(made, threshold=0.5).items()}
    {'near the threshold': [2, 0, 1], 'disagreeing': [], 'undecided': [3], 'audit sample': []}
    """
    score, peaks = decisions.score.astype(np.float64), decisions.peaks
    known = np.flatnonzero(np.isfinite(score))
    # By rank, not by distance: probabilities crowd at both ends.
    order = known[np.argsort(score[known], kind="stable")]
    limit = int(np.searchsorted(score[order], threshold))
    below, above = order[:limit][::-1], order[limit:]
    near = [event for pair in zip(below, above, strict=False) for event in pair]
    longer = max(below, above, key=len)
    near += longer[min(below.size, above.size) :].tolist()
    many, few = peaks >= MIN_PEAKS, (peaks >= 0) & (peaks < MIN_PEAKS)
    is_hit = decisions.decision == Decision.HIT
    differ = np.flatnonzero((many & ~is_hit & (score < threshold)) | (few & is_hit))
    differ = differ[np.argsort(-np.abs(peaks[differ] - MIN_PEAKS), kind="stable")]
    undecided = np.flatnonzero(decisions.decision == Decision.UNDECIDED)
    found = {
        "near the threshold": np.array(near, np.int64),
        "disagreeing": differ,
        "undecided": undecided,
        "audit sample": decisions.sample,
    }
    # What ended a worker would end this process as well.
    lost = (decisions.reason & np.uint32(Reason.WORKER_LOST)) != 0
    return {
        name: np.asarray(events[~lost[events]][:MOST_LISTED], np.int64)
        for name, events in found.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelBook:
    """Labels in a file that is whole after every one of them, whatever happens.

    It is the form of ``audit label``: source_index, label and by, one row an event, the last label
    of an event in place of its earlier ones. Open it with `opened`.

    Parameters
    ----------
    by : str
        Who gives labels.
    entries : dict of int to EventLabel
        By their events.
    """

    path: Path
    by: str
    entries: dict[int, EventLabel] = field(default_factory=dict)

    @classmethod
    def opened(cls, path: Path, *, by: str) -> _Opened:
        """Open a file of labels, or begin one, as a context: nobody else may add to it meanwhile.

        Raises
        ------
        LabelError
            If it holds something else.
        OutputError
            If another program is labelling into it, or it cannot be written.
        """
        return _Opened(path, by)

    def label_of(self, event: int) -> Label | None:
        """Label of an event; None if it has none."""
        entry = self.entries.get(event)
        return None if entry is None else entry.label

    @property
    def counts(self) -> dict[str, int]:
        """Number of events by their label."""
        given = [entry.label for entry in self.entries.values()]
        return {label.name.lower(): given.count(label) for label in reversed(Label)}

    def give(self, event: int, label: Label) -> None:
        """Label an event, and bring the file to the disk; once this returns, the label counts.

        Raises
        ------
        OutputError
            If it cannot be written: then it holds what it held before.
        """
        entry = EventLabel(source_index=event, label=label, by=self.by)
        entries = {**self.entries, event: entry}
        with output_errors(self.path):
            write_file(self.path, labels_to_csv(entries.values()).encode())
        self.entries[event] = entry


class _Opened:
    """Holds the lock of a file of labels; see `LabelBook.opened`."""

    def __init__(self, path: Path, by: str) -> None:
        self._path, self._by = path, by
        # Beside the file, which is replaced with every label.
        self._lock = path.with_name(f".{path.name}.lock")
        self._stack = ExitStack()

    def __enter__(self) -> LabelBook:
        while not self._is_held():
            pass  # whoever held it removed the file meanwhile, so that others would make a new one
        try:
            known = _known_labels(self._path) if self._path.exists() else ()
        except BaseException:
            self.__exit__()
            raise
        return LabelBook(
            path=self._path, by=self._by, entries={one.source_index: one for one in known}
        )

    def _is_held(self) -> bool:
        """Take the lock; whether it is the one that everybody sees."""
        with ExitStack() as stack:
            mine = os.fstat(stack.enter_context(alone(self._lock, mode=0o600)))
            with suppress(FileNotFoundError):
                if os.path.samestat(mine, self._lock.lstat()):
                    self._stack = stack.pop_all()
                    return True
        return False

    def __exit__(self, *_: object) -> None:
        self._lock.unlink(missing_ok=True)
        self._stack.close()


def _known_labels(path: Path) -> tuple[EventLabel, ...]:
    """Labels of a file that is gone on with; one with more in it would lose that."""
    known = read_labels(path)
    columns = labels_to_csv(()).strip()
    found = path.read_text("utf-8").partition("\n")[0].strip()
    if found != columns:
        raise LabelError(
            f"{path}: expected the columns {columns} and no others, found {found[:80]}; give "
            "another file to --out"
        )
    return known


def _album(
    stack: ExitStack,
    run: Run,
    *,
    title: str,
    lists: Mapping[str, NDArray[np.int64]],
    explain: Callable[[int], tuple[str, ...]],
    book: LabelBook | None = None,
    blind: frozenset[str] = frozenset(),
    first: int = 0,
) -> Album:
    frames = Frames(run)
    stack.callback(frames.close)
    energies = run.columns["photon_energy_ev"].values
    known = energies[np.isfinite(energies)]
    return Album(
        title=title,
        lists=lists,
        frames=frames,
        rings=resolution_rings(run.detector, float(np.median(known)) if known.size else np.nan),
        explain=explain,
        label_of=(lambda _: None) if book is None else book.label_of,
        give=None if book is None else book.give,
        blind=blind,
        first=first,
    )


def _lists(judged: JudgedEvents, draw: Path | None) -> Mapping[str, NDArray[np.int64]]:
    """Events to review, those of a draw first."""
    lists = events_to_review(judged.decisions, threshold=judged.manifest.threshold)
    if draw is None:
        return lists
    return {DRAWN: _drawn(draw, judged.decisions.score.size), **lists}


def _drawn(draw: Path, n_events: int) -> NDArray[np.int64]:
    """Events of a draw, in the order drawn: an audit may stop at any of them."""
    drawing = read_draw(draw)
    if drawing.rejected + drawing.kept != n_events:
        raise VerificationError(
            f"{draw}: drawn from {counted(drawing.rejected + drawing.kept, 'event')}, but the run "
            f"has {n_events}; is it a draw of this run?"
        )
    return np.array([*drawing.from_rejected, *drawing.from_kept], np.int64)


def _described(run: Run) -> Callable[[int], tuple[str, ...]]:
    """What is said of an event: where it is from, or of a reduced store why it was kept."""
    path, judged = Path(run.path), None
    if (path / MANIFEST_GROUP).is_dir():
        judged = read_judged(path)
        source = open_table(path)["source_index"].values
    names, files = run.columns["event_id"].values, run.columns["source_file"].values
    places = run.columns["source_event"].values

    def describe(event: int) -> tuple[str, ...]:
        if isinstance(judged, JudgedEvents):
            return judged.explain(int(source[event])).sentences
        origin = [f"{files[event]} //{int(places[event])}"] if files[event] else []
        return (f"{short_path(run.path)}, event_id {names[event]}", *origin)

    return describe
