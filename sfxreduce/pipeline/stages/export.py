"""The hits of a reduced store for other programs: CXI for CrystFEL, NXmx for DIALS."""

from __future__ import annotations

import math
import os
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
from sfxreduce.io.writers.geom import write_event_list, write_geometry
from sfxreduce.io.writers.nxmx_content import NxmxContent
from sfxreduce.pipeline.stages.settings import Outputs
from sfxreduce.run.run import FrameSource
from sfxreduce.scorers.peaks.finder import PeakFinder, Peaks

__all__ = ["PeakJob", "export_hits", "find_peaks", "peak_table"]

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


def export_hits(
    store: Path,
    outputs: Outputs,
    *,
    columns: xr.Dataset,
    staged: Mapping[Path, Path],
    pool: Pool,
    progress: Progress = silent,
) -> None:
    """Write the frames of a reduced store in the forms that were asked for.

    Parameters
    ----------
    store : Path
        Of the reduced store; it need not be published yet.
    outputs : Outputs
        With the paths under which programs will open the files.
    columns : Dataset
        Per-event columns of the store.
    staged : mapping of Path to Path
        Where to write what will be published under `Outputs.files`.
    pool : Pool
        Finds the peaks.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    source = ZarrFrames(path=str(store))
    link = None
    if outputs.cxi is not None:
        peaks = _peaks_of(source, pool=pool, progress=progress)
        content = CxiContent(
            source=source,
            columns=columns,
            peaks=peaks,
            cxi_filter=outputs.cxi_filter,
            cxi_layout=outputs.cxi_layout,
        )
        _write_for_crystfel(content, outputs, staged)
        link = content.slab_path
    if outputs.nxmx is not None:
        _write_for_dials(source, outputs, columns=columns, link=link, staged=staged)


def _peaks_of(source: FrameSource, *, pool: Pool, progress: Progress) -> PeakTable:
    """Peaks of every event."""
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
    return peak_table([peaks for number in sorted(found) for peaks in found[number]])


def _write_for_crystfel(content: CxiContent, outputs: Outputs, staged: Mapping[Path, Path]) -> None:
    """Write the CXI file, with a geometry and an event list beside it."""
    # 0.1 s with h5py, for runs that are exported.
    from sfxreduce.io.writers.cxi_process import write_cxi_in_subprocess

    cxi, event_list, *geometries = outputs.crystfel
    write_cxi_in_subprocess(staged[cxi], content)
    energies = content.columns["photon_energy_ev"].values
    known = energies[np.isfinite(energies)]
    # With an energy for every event CrystFEL takes each one's own; otherwise one for all.
    common = float(np.median(known)) if 0 < known.size < energies.size else math.nan
    detector = content.source.detector
    for geometry in geometries:
        data = content.slab_path.rsplit("/", 1)[-1]
        write_geometry(staged[geometry], detector, photon_energy_ev=common, data=data)
    write_event_list(staged[event_list], cxi, content.source.n_events)


def _write_for_dials(
    source: FrameSource,
    outputs: Outputs,
    *,
    columns: xr.Dataset,
    link: str | None,
    staged: Mapping[Path, Path],
) -> None:
    """Write the NXmx file, with a link to the frames of the CXI file if there is one."""
    from sfxreduce.io.writers.cxi_process import write_nxmx_in_subprocess  # as above

    nxmx, cxi = outputs.nxmx, outputs.cxi
    if nxmx is None:
        return
    linked = None
    if cxi is not None and link is not None:
        # Under the names that both will have, so that they can be moved together.
        beside = os.path.relpath(cxi.parent.resolve() / cxi.name, nxmx.parent.resolve())
        linked = (beside, link)
    content = NxmxContent(
        source=source,
        columns=columns,
        layer=outputs.layer_of(source.detector),
        codec=outputs.nxmx_codec,
        link=linked,
    )
    write_nxmx_in_subprocess(staged[nxmx], content)


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
