"""Rotations of a point group and reflections that a lattice centring forbids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sfxreduce._numba import compiled
from sfxreduce.errors import UsageError

__all__ = ["CENTRINGS", "POINT_GROUPS", "is_absent", "rotations"]

_TWO_B = ((-1, 0, 0), (0, 1, 0), (0, 0, -1))
_TWO_C = ((-1, 0, 0), (0, -1, 0), (0, 0, 1))
_TWO_AB = ((0, 1, 0), (1, 0, 0), (0, 0, -1))
_THREE_C = ((0, -1, 0), (1, -1, 0), (0, 0, 1))
_THREE_ABC = ((0, 0, 1), (1, 0, 0), (0, 1, 0))
_FOUR_C = ((0, -1, 0), (1, 0, 0), (0, 0, 1))
_SIX_C = ((1, -1, 0), (1, 0, 0), (0, 0, 1))

_GENERATORS: dict[str, tuple[tuple[tuple[int, int, int], ...], ...]] = {
    "1": (),
    "2": (_TWO_B,),
    "222": (_TWO_B, _TWO_C),
    "4": (_FOUR_C,),
    "422": (_FOUR_C, _TWO_B),
    "3": (_THREE_C,),
    "321": (_THREE_C, _TWO_AB),
    "6": (_SIX_C,),
    "622": (_SIX_C, _TWO_AB),
    "23": (_TWO_C, _THREE_ABC),
    "432": (_FOUR_C, _THREE_ABC),
}
POINT_GROUPS = tuple(_GENERATORS)
"""Chiral point groups, all that a protein crystal can have; 3 and 321 on hexagonal axes."""

CENTRINGS = {"P": 1, "A": 2, "C": 2, "I": 2, "F": 4, "R": 3}
"""Lattice points per cell of each centring; R on hexagonal axes, obverse setting."""


def rotations(point_group: str) -> NDArray[np.int64]:
    """Rotations of a point group, on the crystal's own axes.

    Parameters
    ----------
    point_group : str
        One of `POINT_GROUPS`.

    Returns
    -------
    ndarray of int64
        Shape (rotation, 3, 3); Miller indices are row vectors, ``h @ rotation``.

    Raises
    ------
    UsageError
        If the point group is not known.

    Examples
    --------
    >>> len(rotations("422")), len(rotations("23"))
    (8, 12)
    """
    if point_group not in _GENERATORS:
        raise UsageError(
            f"point group '{point_group}' is not known; expected one of {POINT_GROUPS}"
        )
    generators = [np.array(g, np.int64) for g in _GENERATORS[point_group]]
    group = [np.eye(3, dtype=np.int64)]
    # Every element is reached by multiplying elements found so far by a generator.
    for element in group:
        for generator in generators:
            product = element @ generator
            if not any(np.array_equal(product, known) for known in group):
                group.append(product)
    return np.stack(group)


@compiled
def is_absent(h: int, k: int, l: int, centring: int) -> bool:  # noqa: E741 - Miller indices
    """Whether the centring forbids a reflection; `centring` is the code point of its letter."""
    if centring == 73:  # I
        return (h + k + l) % 2 != 0
    if centring == 67:  # C
        return (h + k) % 2 != 0
    if centring == 65:  # A
        return (k + l) % 2 != 0
    if centring == 70:  # F
        return (h + k) % 2 != 0 or (k + l) % 2 != 0
    if centring == 82:  # R
        return (-h + k + l) % 3 != 0
    return False
