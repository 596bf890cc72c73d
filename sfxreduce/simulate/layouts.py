"""Where the panels of a camera stand."""

from __future__ import annotations

import math

from sfxreduce.run.detector import Panel
from sfxreduce.simulate.random import key_of, normal_block

__all__ = ["agipd_1m", "cspad", "jungfrau_4m"]

_CSPAD_PAIRS = (
    (25.0, 20.0, False),
    (25.0, 450.0, True),
    (430.0, 450.0, False),
    (440.0, 20.0, True),
)
"""(x, y) in pixels of the four pairs of sensors of a quadrant, and whether they stand upright."""


_AGIPD_QUADRANTS = (
    ((-525.0, 625.0), (1.0, -1.0)),
    ((-550.0, -10.0), (1.0, -1.0)),
    ((520.0, -160.0), (-1.0, 1.0)),
    ((542.5, 475.0), (-1.0, 1.0)),
)
"""(x, y) in pixels of the first corner of each quadrant of an AGIPD, and the signs of x and y along
which its modules are read: slow pixels along x, fast ones along y."""


def agipd_1m() -> tuple[Panel, ...]:
    """Sixteen modules of 512 x 128 pixels in four quadrants around a hole, as on an AGIPD 1M.

    The modules of a quadrant lie one below the other, 29 pixels apart; the left half is read from
    the top, the right half, turned by half a turn, from the bottom. The gaps between the chips of
    a module, two pixels each, are left out.
    """
    panels = []
    for quadrant, ((x, y), (along_x, along_y)) in enumerate(_AGIPD_QUADRANTS):
        for module in range(4):
            corner = (x, y - module * (128.0 + 29.0))
            name = f"q{quadrant}m{module}"
            panels.append(Panel(name=name, corner=corner, fast=(0.0, along_y), slow=(along_x, 0.0)))
    return tuple(panels)


def jungfrau_4m() -> tuple[Panel, ...]:
    """Eight modules of 512 x 1024 pixels in two columns around a central hole, as on a JUNGFRAU 4M.

    Modules are 36 rows and 8 columns of pixels apart; the upper and lower half are moved apart
    sideways, which leaves the hole for the beam.
    """
    panels = []
    for index in range(8):
        column, row = index % 2, index // 2
        shift = 34.0 if row < 2 else -34.0
        x = (column - 1) * 1024.0 + (4.0 if column else -4.0) + shift
        y = (row - 2) * (512.0 + 36.0) + 18.0
        panels.append(_turned(f"m{index}", (x, y), _tilt("jungfrau", index, 0.05)))
    return tuple(panels)


def cspad() -> tuple[Panel, ...]:
    """Thirty-two sensors of 185 x 388 pixels in four quadrants around a hole, as on a CSPAD.

    Each quadrant has eight sensors, pairs lying on their side; quadrants turn by a quarter. Every
    sensor sits up to some tenths of a degree askew.
    """
    panels = []
    for quadrant in range(4):
        turn = math.pi / 2.0 * quadrant
        for sensor in range(8):
            pair, second = divmod(sensor, 2)
            x, y, upright = _CSPAD_PAIRS[pair]
            x, y = (x + 212.0 * second, y) if upright else (x, y + 212.0 * second)
            angle = turn + (math.pi / 2.0 if upright else 0.0)
            corner = (x + 185.0, y) if upright else (x, y)
            c, s = math.cos(turn), math.sin(turn)
            turned = (corner[0] * c - corner[1] * s, corner[0] * s + corner[1] * c)
            tilt = _tilt("cspad", quadrant * 8 + sensor, 0.25)
            panels.append(_turned(f"q{quadrant}a{sensor}", turned, angle + tilt))
    return tuple(panels)


def _tilt(name: str, index: int, degrees: float) -> float:
    """Mounting error of a panel in radians."""
    return math.radians(degrees) * float(normal_block(key_of("tilt", name, index), 1)[0])


def _turned(name: str, corner: tuple[float, float], angle: float) -> Panel:
    """Panel whose fast axis points at an angle from x."""
    c, s = math.cos(angle), math.sin(angle)
    return Panel(name=name, corner=corner, fast=(c, s), slow=(-s, c))
