"""Where the results of a filter run go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sfxreduce.io.writers.cxi_content import check_cxi_filter
from sfxreduce.io.writers.publish import check_outputs
from sfxreduce.io.writers.resume import appearing, sweep_finished
from sfxreduce.pipeline.stages.export import crystfel_paths
from sfxreduce.run.run import Run

__all__ = ["Outputs"]


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
