"""The hits of a reduced store for CrystFEL: CXI with peak lists, geometry, event list."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.cluster.pool import Progress, Rescue, halves_of, silent, tracked
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.io.writers.cxi_content import CxiContent, PeakTable
from sfxreduce.io.writers.cxi_process import write_cxi_in_subprocess
from sfxreduce.io.writers.geom import write_event_list, write_geometry
from sfxreduce.pipeline.stages.settings import Outputs
from sfxreduce.run.run import FrameSource
from sfxreduce.scorers.peaks.finder import PeakFinder, Peaks

__all__ = ["PeakJob", "export_crystfel", "find_peaks", "peak_table"]

EVENTS_PER_TASK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakJob:
    """Events whose peaks are to be found.

    Parameters
    ----------
    start, stop : int
        Positions of the first event and of the one after the last.
    """

    source: FrameSource
    finder: PeakFinder
    start: int
    stop: int


def export_crystfel(
    store: Path,
    outputs: Outputs,
    *,
    columns: xr.Dataset,
    staged: Mapping[Path, Path],
    pool: Pool,
    progress: Progress = silent,
) -> None:
    """Write the frames of a reduced store as CXI, with a geometry and an event list beside it.

    Parameters
    ----------
    store : Path
        Of the reduced store; it need not be published yet.
    outputs : Outputs
        With the path under which CrystFEL will open the file.
    columns : Dataset
        Per-event columns of the store.
    staged : mapping of Path to Path
        Where to write what will be published under `Outputs.crystfel`.
    pool : Pool
        Finds the peaks.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    source = ZarrFrames(path=str(store))
    n_events = source.n_events
    jobs = [
        PeakJob(
            source=source,
            finder=PeakFinder(),
            start=start,
            stop=min(start + EVENTS_PER_TASK, n_events),
        )
        for start in range(0, n_events, EVENTS_PER_TASK)
    ]
    work = pool.map("peaks", find_peaks, jobs, rescue=_RESCUE)
    found = dict(tracked(work, stage="peaks", total=len(jobs), progress=progress))
    peaks = peak_table([peaks for number in sorted(found) for peaks in found[number]])
    cxi, event_list, *geometries = outputs.crystfel
    content = CxiContent(
        source=source,
        columns=columns,
        peaks=peaks,
        cxi_filter=outputs.cxi_filter,
        cxi_layout=outputs.cxi_layout,
    )
    write_cxi_in_subprocess(staged[cxi], content)
    energies = columns["photon_energy_ev"].values
    known = energies[np.isfinite(energies)]
    # With an energy for every event CrystFEL takes each one's own; otherwise one for all.
    common = float(np.median(known)) if 0 < known.size < energies.size else math.nan
    for geometry in geometries:
        data = "slab" if content.modules else "data"
        write_geometry(staged[geometry], source.detector, photon_energy_ev=common, data=data)
    write_event_list(staged[event_list], cxi, n_events)


def find_peaks(job: PeakJob) -> list[Peaks]:
    """Peaks of each event; none where an event cannot be read."""
    detector = job.source.detector
    good, radius = detector.good(), detector.radius()
    found = []
    for event in range(job.start, job.stop):
        reading = job.source.read([event])
        # What cannot be read has no good pixel, and so no peak.
        seen = good & ~reading.missing.get(0, np.full_like(good, bool(reading.lost[0])))
        found.append(
            job.finder.find(reading.pixels[0], seen, radius, adu_per_photon=detector.adu_per_photon)
        )
    return found


def peak_table(events: Sequence[Peaks]) -> PeakTable:
    """Put the peaks of one event after those of the other.

    Examples
    --------
    >>> peak_table([]).count.shape
    (0,)
    """

    def joined(name: str, dtype: type[np.generic]) -> NDArray[Any]:
        parts = [np.asarray(getattr(peaks, name), dtype) for peaks in events]
        return np.concatenate([np.zeros(0, dtype), *parts])

    return PeakTable(
        count=np.array([len(peaks) for peaks in events], np.int32),
        panel=joined("panel", np.int32),
        y=joined("y", np.float32),
        x=joined("x", np.float32),
        intensity=joined("intensity", np.float32),
        max_intensity=joined("max_intensity", np.float32),
        snr=joined("snr", np.float32),
        n_pixels=joined("n_pixels", np.int32),
    )


def _halves(job: PeakJob) -> list[PeakJob]:
    parts = halves_of(range(job.start, job.stop))
    return [replace(job, start=part.start, stop=part.stop) for part in parts]


def _lost(job: PeakJob) -> list[Peaks]:
    """No peaks, of an event that ends whatever looks for them."""
    blank = np.zeros(job.source.detector.frame_shape, np.uint8)
    return [job.finder.find(blank, blank.astype(np.bool_), blank.astype(np.float64))]


def _joined(_: PeakJob, parts: Sequence[list[Peaks]]) -> list[Peaks]:
    return list(chain.from_iterable(parts))


_RESCUE = Rescue(attempt=find_peaks, halves=_halves, lost=_lost, joined=_joined)
