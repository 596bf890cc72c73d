"""Which events are unlike all that a model was calibrated on, by what stands out of them.

The network is asked about candidates alone. What it says means little if the candidates come from
something that no calibrated frame shows: stripes, blocks with another offset, noise that is none.
A few traits of an event's candidates, found without the network's help, tell such events: their
Mahalanobis distance from calibrated events is larger than that of nearly all of these. The traits
are the same to the last bit whatever computes the network, and whatever is scored beside the event.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfxreduce._numba import compiled
from sfxreduce.errors import ModelError
from sfxreduce.run.reasons import Reason
from sfxreduce.run.window import Window
from sfxreduce.scorers.cnn.patches.candidates import PATCH, CandidateFinder, Candidates

__all__ = ["TRAITS", "Trait", "Usual", "doubts_of", "event_traits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trait:
    """Something that candidates of an event show.

    Parameters
    ----------
    slack : float
        A difference of no consequence.
    """

    name: str
    slack: float


TRAITS = (
    Trait(name="lack of candidates where it is not dark", slack=0.05),
    Trait(name="roughness around the candidates", slack=0.02),
    Trait(name="likeness of pixels beside one another", slack=0.02),
    Trait(name="likeness of pixels above one another", slack=0.02),
    Trait(name="candidates in the same row", slack=0.05),
    Trait(name="candidates in the same column", slack=0.05),
    Trait(name="candidates on the same ring", slack=0.05),
)
"""What `event_traits` measures, in its order.

Chosen out of fourteen (docs/explanation/network.md); each slack was chosen, not measured. None of
them grows with the level of the background, the gain or the number of peaks, which differ from
experiment to experiment. The last six are logarithms or shares, as the tails of what they are made
of are heavy.
"""

# Noise of nothing but single photons: so dark a frame lacks candidates for good reasons.
_DARK_PHOTONS = CandidateFinder().floor_photons
# Chosen with the frames in view that docs/explanation/network.md lists: no blind test.
_USUAL_IN_TILE = 4
_FEWEST = 32
_SHARE_LOOKED_AT = 4
_MOST_SIGMA = 3.0
_RING_PX = 8
# Rows and columns of a patch, on each side, that lie beyond the peak in its middle.
_RIM = 2
_N_AROUND = PATCH**2 - (PATCH - 2 * _RIM) ** 2


def event_traits(found: Candidates, window: Window, *, n_events: int) -> NDArray[np.float64]:
    """Measure `TRAITS` of events.

    Parameters
    ----------
    found : Candidates
        With their patches.
    window : Window
        That they were found in.

    Returns
    -------
    ndarray of float64
        Shape (event, trait); NaN where there are too few candidates to tell.

    Examples
    --------
    >>> from sfxreduce.run.detector import Detector
    >>> window = Window.tiled(Detector.centred("camera", (350, 350)))
    >>> flat = np.random.default_rng(0).poisson(5, (1, 1, 350, 350))
    >>> flat[0, 0, ::20] += 20
    >>> found = CandidateFinder(most_per_tile=99)(
    ...     flat, np.ones((1, 350, 350), bool), adu_per_photon=1.0
    ... )
    >>> traits = event_traits(found, window, n_events=1)[0]
    >>> TRAITS[int(traits.argmax())].name
    'candidates in the same row'
    """
    n_tiles = len(window.origins)
    event, tile = np.divmod(found.tile.astype(np.int64), n_tiles)
    origins = np.array(window.origins)
    at = origins[tile] + np.stack([found.y, found.x], axis=1)
    middle = origins[0] + np.array(window.tile_shape) / 2
    ring = (np.hypot(*(at - middle).T) / _RING_PX).astype(np.int64)
    places = (*(at - origins.min(axis=0)).T, ring)
    traits = np.full((n_events, len(TRAITS)), np.nan)
    starts = np.searchsorted(event, np.arange(n_events + 1))
    for number, (first, last) in enumerate(pairwise(starts)):
        own = slice(first, last)
        if last > first:
            noise = found.noise_photons[own]
            traits[number, 0] = _lack(noise, n_tiles)
        if last - first >= _FEWEST:
            traits[number, 1:4] = _texture(found.patch[own][_faintest(found.prominence[own])])
            traits[number, 4:] = [_together(place[own]) for place in places]
    return traits


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Usual:
    """Traits of calibrated events, and how far from them an event may be.

    Parameters
    ----------
    mean : ndarray of float64
        Shape (trait,).
    whitening : ndarray of float64
        Shape (trait, trait): an event's difference from the mean times this has the length of its
        Mahalanobis distance. The inverse of a Cholesky factor of the covariance, transposed.
    limit : float
        Largest distance of a usual event.

    Raises
    ------
    ModelError
        If a shape is another, or a number is not finite.

    Examples
    --------
    >>> n = len(TRAITS)
    >>> usual = Usual(mean=np.zeros(n), whitening=np.eye(n), limit=3.0)
    >>> usual.distance(np.eye(n)[:2] * [[4.0], [np.nan]]).tolist()
    [4.0, 0.0]
    """

    mean: NDArray[np.float64]
    whitening: NDArray[np.float64]
    limit: float

    def __post_init__(self) -> None:
        n = len(TRAITS)
        found = (self.mean.shape, self.whitening.shape)
        finite = np.isfinite(self.mean).all() and np.isfinite(self.whitening).all()
        if found != ((n,), (n, n)) or not finite or not 0 < self.limit < math.inf:
            raise ModelError(
                f"model: expected what is usual as finite arrays of shapes {(n,)} and {(n, n)} and "
                f"a positive limit, found {found[0]}, {found[1]} and {self.limit:g}; copy the "
                "model again, or train it anew"
            )

    def distance(self, traits: ArrayLike) -> NDArray[np.float64]:
        """Mahalanobis distance of events from calibrated ones; what is NaN counts as usual.

        Parameters
        ----------
        traits : array_like
            Shape (event, trait).
        """
        apart = np.nan_to_num(np.asarray(traits, np.float64) - self.mean)
        # One event after the other: a product of matrices may sum in another order for more rows.
        away = (apart[:, :, np.newaxis] * self.whitening).sum(axis=1)
        distance: NDArray[np.float64] = np.sqrt(np.square(away).sum(axis=1))
        return distance

    def is_unlike(self, traits: ArrayLike) -> NDArray[np.bool_]:
        """Which events are farther away than the limit, shape (event,)."""
        unlike: NDArray[np.bool_] = self.distance(traits) > self.limit
        return unlike


def doubts_of(
    usual: Usual | None, found: Candidates, window: Window, *, n_events: int
) -> NDArray[np.uint32]:
    """`Reason.OUT_OF_DISTRIBUTION` for events unlike the calibrated ones, if these are known.

    Parameters
    ----------
    found : Candidates
        With their patches; those found on single pixels count.
    window : Window
        That they were found in.
    """
    if usual is None:
        return np.zeros(n_events, np.uint32)
    traits = event_traits(found.take(found.sharp), window, n_events=n_events)
    unlike = usual.is_unlike(traits)
    return np.where(unlike, np.uint32(Reason.OUT_OF_DISTRIBUTION), np.uint32(0))


def _lack(noise_photons: NDArray[np.floating], n_tiles: int) -> float:
    """How many candidates too few there are, as a logarithm; 0 if enough, or in the dark."""
    too_few = math.log(_USUAL_IN_TILE * n_tiles / noise_photons.size)
    light = math.log(max(_middle(noise_photons) / _DARK_PHOTONS, 1.0))
    return max(too_few, 0.0) * min(light, 1.0)


def _faintest(prominence: NDArray[np.floating]) -> NDArray[np.int64]:
    """Candidates that stand out the least: hardly ever peaks, even where a crystal shows many."""
    last = (prominence.size - 1) // _SHARE_LOOKED_AT
    return np.flatnonzero(prominence <= np.partition(prominence, last)[last])


def _texture(patch: NDArray[np.floating]) -> list[float]:
    """What is typical of the surroundings of candidates: roughness, likeness along x and y."""
    of_each = _textures(patch.astype(np.float32))
    rough, along_x, along_y = (_middle(of_each[:, column]) for column in range(3))
    return [math.log(max(rough, 1.0)), along_x, along_y]


@compiled
def _textures(patch: NDArray[np.float32]) -> NDArray[np.float64]:
    """Standard deviation around the middle of each patch, and how alike its neighbours are."""
    n, last = len(patch), PATCH - 1
    of_each = np.empty((n, 3), np.float64)
    for number in range(n):
        seen = np.empty((PATCH, PATCH), np.float64)
        total = square = 0.0
        for y in range(PATCH):
            for x in range(PATCH):
                value = min(max(np.float64(patch[number, y, x]), -_MOST_SIGMA), _MOST_SIGMA)
                seen[y, x] = value
                if y < _RIM or y > last - _RIM or x < _RIM or x > last - _RIM:
                    total += value
                    square += value * value
        mean, square = total / _N_AROUND, square / _N_AROUND
        along_x = along_y = 0.0
        for rim in range(_RIM):
            for i in range(last):
                for line in (rim, last - rim):
                    along_x += seen[line, i] * seen[line, i + 1]
                    along_y += seen[i, line] * seen[i + 1, line]
        # A tenth of sigma squared, so that patches of single photons are alike to nothing.
        scale = 2 * _RIM * last * (square + 0.1)
        of_each[number, 0] = math.sqrt(max(square - mean * mean, 0.0))
        of_each[number, 1] = along_x / scale
        of_each[number, 2] = along_y / scale
    return of_each


def _middle(values: NDArray[np.floating]) -> float:
    """The lower median: a fifth of the time of the usual one."""
    half = (values.size - 1) // 2
    return float(np.partition(values, half)[half])


def _together(place: NDArray[np.int64]) -> float:
    """How many others share a candidate's place, as a logarithm of the number if thrown at will."""
    of_place = np.bincount(place)
    others = float((of_place * (of_place - 1)).sum()) / place.size
    return math.log((others + 1.0) / (place.size / of_place.size + 1.0))
