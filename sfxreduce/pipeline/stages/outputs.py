"""Where the results of a filter run go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sfxreduce.errors import SourceError, UsageError
from sfxreduce.io.files.durable import disk_bytes
from sfxreduce.io.files.safe_read import source_pin
from sfxreduce.io.writers.publish import check_cxi_filter, check_outputs
from sfxreduce.io.writers.resume import Unfinished, appearing, sweep_finished, unfinished
from sfxreduce.pipeline.stages.reduced import Reduced
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.report.report import Storage
from sfxreduce.run.columns import plain_text
from sfxreduce.run.run import Run
from sfxreduce.scorers.protocol import calibration_of, needs_gpu

__all__ = ["Outputs", "crystfel_paths", "published_at_once", "storage_of"]


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
    overwrite : bool
        Replace what lies there.

    Raises
    ------
    UsageError
        If there is no such filter.
    """

    store: Path
    cxi: Path | None = None
    report: Path | None = None
    cxi_filter: str = "gzip"
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_cxi_filter(self.cxi_filter)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every single file that will appear beside the store."""
        crystfel = () if self.cxi is None else crystfel_paths(self.cxi)
        return (*crystfel, *((self.report,) if self.report else ()))

    def check(self, run: Run, *also_read: Path) -> None:
        """Refuse outputs that would touch the run, each other, or what is not ours to replace.

        Parameters
        ----------
        *also_read : Path
            What is read besides the run.

        Raises
        ------
        UsageError
            If outputs and inputs overlap.
        OutputExists
            If something lies there that may not be replaced.
        OutputError
            If a folder does not exist.
        """
        sweep_finished(self.store)
        check_outputs(
            stores=[self.store],
            files=self.files,
            inputs=[*run.inputs, *also_read],
            overwrite=self.overwrite,
            appearing=appearing(self.store),
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
    stem = cxi.stem if cxi.suffix in (".cxi", ".h5") else cxi.name
    return cxi, cxi.with_name(f"{stem}.geom"), cxi.with_name(f"{stem}.lst")


@contextmanager
def published_at_once(
    run: Run, settings: FilterSettings, outputs: Outputs, *, known: Reduced | None = None
) -> Iterator[Unfinished]:
    """Begin outputs, or go on with what is there of them; they appear when the block ends well.

    Parameters
    ----------
    known : Reduced, optional
        An earlier output of the run, from which scores and frames are taken.

    Raises
    ------
    RefusedError
        If an unfinished output is there that was begun with other settings.
    SourceError
        If the source changed meanwhile.
    OutputError
        If an output cannot be written.
    """
    pins = _pins(run, settings)
    if known is not None:
        pins["taken over from"] = known.stamp
    with unfinished(
        outputs.store, files=outputs.files, pins=pins, overwrite=outputs.overwrite
    ) as work:
        yield work
        _check_unchanged(run, work)


def _pins(run: Run, settings: FilterSettings) -> dict[str, Any]:
    """Everything that the bytes of an output depend on, by the name people know it by."""
    scorer = settings.scorer
    return {
        "version": version("sfxreduce"),
        "source": plain_text(run.path),
        "source files": source_pin(run.source.inputs),
        "scorer": scorer.name,
        "model": calibration_of(scorer).model_sha256,
        "settings": scorer.settings,
        "device": "GPU" if needs_gpu(scorer) else "CPU",
        "threshold": settings.threshold,
        "max-loss": settings.promise.max_loss,
        "confidence": settings.promise.confidence,
        "drift": settings.drift,
        "audit-share": settings.audit_share,
    }


def _check_unchanged(run: Run, work: Unfinished) -> None:
    """Refuse to publish what was read from files that somebody changed meanwhile."""
    if source_pin(run.source.inputs) != work.pins["source files"]:
        raise SourceError(
            f"{run.path}: its files changed while they were read; nothing was published, start "
            "again once the run is complete"
        )


def storage_of(run: Run, outputs: Outputs, work: Unfinished) -> Storage:
    """Bytes of the run and of its reduced store, and where the outputs will be."""
    store = outputs.store if work.published else work.hidden[outputs.store]
    return Storage(
        bytes_in=run.source.n_bytes,
        bytes_out=disk_bytes(store),
        out=outputs.store,
        cxi=outputs.cxi,
        report=outputs.report,
    )
