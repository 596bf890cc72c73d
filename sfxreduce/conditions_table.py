"""What a run said about its detector, as a table that is stored with the output, and back."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from sfxreduce.background import Background
from sfxreduce.conditions import Conditions

__all__ = ["conditions_of_table", "conditions_table"]


def conditions_table(found: Conditions) -> xr.Dataset:
    """Conditions of a run as a table.

    Parameters
    ----------
    found : Conditions

    Returns
    -------
    Dataset
        ``hot_index`` on dimension ``hot``, ``noisy_index`` on ``noisy`` and ``empty_index`` on
        ``empty`` (int64), ``ring_radius_px`` and ``ring_background_adu`` on ``ring`` (float64).
        The numbers of the whole frame are attributes, None where they are unknown.

    Examples
    --------
    >>> conditions_table(Conditions(frames=24)).attrs["frames"]
    24
    """
    background = found.background
    place = "flat position in a source frame"
    numbers = {
        "adu_per_photon": found.adu_per_photon,
        "background_adu": background.adu,
        "background_photons": found.background_photons,
    }
    return xr.Dataset(
        {
            "hot_index": (
                "hot",
                found.hot_index,
                {"long_name": f"pixels that are always bright: {place}", "units": "1"},
            ),
            "noisy_index": (
                "noisy",
                found.noisy_index,
                {"long_name": f"pixels that scatter too far: {place}", "units": "1"},
            ),
            "empty_index": (
                "empty",
                found.empty_index,
                {"long_name": f"pixels without a sensor: {place}", "units": "1"},
            ),
            "ring_radius_px": (
                "ring",
                background.ring_radius_px,
                {"long_name": "distance of the ring from the beam", "units": "pixel"},
            ),
            "ring_background_adu": (
                "ring",
                background.ring_adu,
                {"long_name": "background in the ring, peaks left out", "units": "ADU"},
            ),
        },
        attrs={
            **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
            "frames": found.frames,
        },
    )


def conditions_of_table(table: xr.Dataset) -> Conditions | None:
    """Conditions as `conditions_table` put them down; None from a table that lacks any of them.

    Parameters
    ----------
    table : Dataset

    Examples
    --------
    >>> found = Conditions(adu_per_photon=20.0, hot=np.arange(2).tobytes(), frames=24)
    >>> conditions_of_table(conditions_table(found)) == found
    True
    """
    pixels = ("hot_index", "noisy_index", "empty_index")
    rings = ("ring_radius_px", "ring_background_adu")
    if not ({*pixels, *rings} <= set(table) and "frames" in table.attrs):
        return None
    hot, noisy, empty = (table[name].values.astype(np.int64).tobytes() for name in pixels)
    radii, levels = (table[name].values.astype(np.float64).tobytes() for name in rings)
    gain, level = (
        math.nan if table.attrs.get(name) is None else float(table.attrs[name])
        for name in ("adu_per_photon", "background_adu")
    )
    return Conditions(
        adu_per_photon=gain,
        hot=hot,
        noisy=noisy,
        empty=empty,
        background=Background(adu=level, radii=radii, rings=levels),
        frames=int(table.attrs["frames"]),
    )
