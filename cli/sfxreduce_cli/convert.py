"""``sfxreduce convert``: a run in another format."""

from __future__ import annotations

import sfxreduce
from sfxreduce_cli.judging_options import (
    CxiFilter,
    CxiLayout,
    CxiPacking,
    CxiPanels,
    NxmxCodec,
    NxmxPacking,
    SensorLayer,
)
from sfxreduce_cli.options import (
    AsJson,
    InRuns,
    Out,
    Overwrite,
    PlacedOptions,
    PoolOptions,
    spread_options,
)
from sfxreduce_cli.output import print_converted

__all__ = ["convert"]


@spread_options
def convert(
    *,
    in_: InRuns,
    out: Out,
    inputs: PlacedOptions,
    cxi_filter: CxiPacking = CxiFilter.GZIP,
    cxi_layout: CxiPanels = CxiLayout.MODULES,
    nxmx_codec: NxmxPacking = NxmxCodec.GZIP,
    sensor: SensorLayer = "",
    overwrite: Overwrite = False,
    where: PoolOptions,
    as_json: AsJson = False,
) -> None:
    """Write a run in another format, bit for bit: run store (.zarr), CXI (.cxi) or NXmx (.nxs).

    Example: sfxreduce convert --in run.zarr --out run.cxi
    """
    run = inputs.opened(in_)
    packing = {
        "cxi_filter": cxi_filter.value,
        "cxi_layout": cxi_layout.value,
        "nxmx_codec": nxmx_codec.value,
        "sensor": sensor,
    }
    with where.opened() as work:
        summary = sfxreduce.convert_run(run, out=out, overwrite=overwrite, **packing, **work)
    print_converted(summary, as_json=as_json)
