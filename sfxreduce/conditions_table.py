"""What a run said about its detector, as a table that is stored with the output."""

from __future__ import annotations

import math

import xarray as xr

from sfxreduce.conditions import Conditions

__all__ = ["conditions_table"]


def conditions_table(found: Conditions) -> xr.Dataset:
    """Conditions of a run as a table.

    Parameters
    ----------
    found : Conditions

    Returns
    -------
    Dataset
        ``hot_index`` on dimension ``hot`` and ``noisy_index`` on ``noisy`` (int64),
        ``ring_radius_px`` and ``ring_background_adu`` on ``ring`` (float64). The numbers of the
        whole frame are attributes, None where they are unknown.

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
