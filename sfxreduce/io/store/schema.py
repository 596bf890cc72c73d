"""What a run store says about itself: names, versions, and the detector as plain JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SchemaError
from sfxreduce.run.detector import Detector, Panel

__all__ = [
    "AUDIT_GROUP",
    "CONDITIONS_GROUP",
    "LEDGER_GROUP",
    "MANIFEST_GROUP",
    "SCHEMA",
    "SCHEMA_VERSION",
    "detector_from_json",
    "detector_to_json",
    "illegal_value",
]

SCHEMA = "sfxreduce.run"

SCHEMA_VERSION = 1
AUDIT_GROUP = "audit"
CONDITIONS_GROUP = "conditions"
LEDGER_GROUP = "ledger"
MANIFEST_GROUP = "manifest"

_NUMBERS = ("pixel_size_m", "distance_m", "adu_per_photon", "saturation_adu")


def detector_to_json(detector: Detector) -> dict[str, Any]:
    """Detector without its mask, as JSON; what is unknown is null."""
    numbers = {name: getattr(detector, name) for name in _NUMBERS}
    return {
        "name": detector.name,
        "stacked": detector.stacked,
        "panel_shape": list(detector.panel_shape),
        **{name: None if math.isnan(value) else value for name, value in numbers.items()},
        "panels": [
            {
                "name": panel.name,
                "corner": list(panel.corner),
                "fast": list(panel.fast),
                "slow": list(panel.slow),
            }
            for panel in detector.panels
        ],
    }


def detector_from_json(
    facts: Mapping[str, Any], *, mask: NDArray[np.uint32], where: str
) -> Detector:
    """Detector as `detector_to_json` wrote it.

    Parameters
    ----------
    facts : mapping
    mask : ndarray of uint32
        In the shape of a frame.
    where : str
        Path of the store, for the message.

    Raises
    ------
    SchemaError
        If a fact is missing or of the wrong kind.
    """
    try:
        panels = tuple(
            Panel(
                name=str(panel["name"]),
                corner=_pair(panel["corner"]),
                fast=_pair(panel["fast"]),
                slow=_pair(panel["slow"]),
            )
            for panel in facts["panels"]
        )
        n_y, n_x = (int(n) for n in facts["panel_shape"])
        numbers = {
            name: math.nan if facts[name] is None else float(facts[name]) for name in _NUMBERS
        }
        name, stacked = str(facts["name"]), bool(facts["stacked"])
    except (KeyError, TypeError, ValueError) as error:
        raise SchemaError(
            f"{where}: the attribute 'detector' lacks or garbles {error}; "
            "was the store made by 'sfxreduce ingest'?"
        ) from error
    return Detector(
        name=name,
        panel_shape=(n_y, n_x),
        panels=panels,
        stacked=stacked,
        mask=mask,
        **numbers,
    )


def illegal_value(dtype: np.dtype[np.generic]) -> int | float:
    """Value that no detector delivers: what a hole in ``frames`` reads as.

    Examples
    --------
    >>> illegal_value(np.dtype("int16")), illegal_value(np.dtype("uint16"))
    (-32768, 65535)
    """
    if dtype.kind not in "iu":
        return math.nan
    limits = np.iinfo(dtype.str)
    return int(limits.min if dtype.kind == "i" else limits.max)


def _pair(value: Any) -> tuple[float, float]:
    x, y = value
    return float(x), float(y)
