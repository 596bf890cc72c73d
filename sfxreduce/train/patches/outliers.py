"""What is usual: statistics of the traits of calibrated events, and the limit of their distances.

The covariance is shrunk towards a multiple of the identity as in [1]_, and every trait is blurred
by its slack, so that one that never varies in simulation does not make an alarm of nothing. The
limit is a quantile over events of left-out experiments, each compared with the others alone:
the conformal one for finite samples [2]_, so that an event like these lies beyond it with a
probability of at most `MOST_UNLIKE`, provided that there are enough of them; with fewer, none of
them lies beyond it.

References
----------
.. [1] O. Ledoit, M. Wolf, A well-conditioned estimator for large-dimensional covariance matrices
   (2004). doi:10.1016/S0047-259X(03)00096-4
.. [2] J. Lei et al., Distribution-free predictive inference for regression (2018).
   doi:10.1080/01621459.2017.1307116
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import UsageError
from sfxreduce.scorers.cnn.model import USUAL, Model
from sfxreduce.scorers.cnn.patches.outliers import TRAITS, Usual

__all__ = [
    "MOST_UNLIKE",
    "UNLIKE_HEAD",
    "conformal_limit",
    "fit_usual",
    "shrunk_covariance",
    "table_of_unlike",
    "with_usual",
]

MOST_UNLIKE = 1e-3
"""Share of the calibrated events that may lie beyond the limit."""
UNLIKE_HEAD = "Events unlike all that was calibrated"
"""How the table begins."""


def fit_usual(traits: Sequence[NDArray[np.float64]], *, share: float = MOST_UNLIKE) -> Usual:
    """Fit what is usual to the events of some experiments; the same input gives the same numbers.

    Parameters
    ----------
    traits : sequence of ndarray
        One array of `sfxreduce.scorers.cnn.patches.outliers.event_traits` for each experiment.
    share : float
        Of the events that may lie beyond the limit.

    Raises
    ------
    UsageError
        If there are fewer than two experiments: nothing could be left out.
    """
    if len(traits) < 2:
        raise UsageError(
            f"what is usual: expected events of at least 2 experiments, found {len(traits)}; "
            "simulate more of them"
        )
    left_out = [
        _statistics(np.concatenate([other for other in traits if other is not one])).distance(one)
        for one in traits
    ]
    limit = conformal_limit(np.concatenate(left_out), share=share)
    return replace(_statistics(np.concatenate(traits)), limit=limit)


def conformal_limit(distances: NDArray[np.floating], *, share: float = MOST_UNLIKE) -> float:
    """Quantile of distances that a further one exceeds with a probability of at most `share`.

    The ``ceil((n + 1) (1 - share))``-th smallest of them; the largest if there are too few.

    Parameters
    ----------
    distances : ndarray
        Shape (event,).

    Examples
    --------
    >>> conformal_limit(np.arange(1.0, 100.0), share=0.1), conformal_limit(np.arange(1.0, 5.0))
    (90.0, 4.0)
    """
    rank = math.ceil((distances.size + 1) * (1.0 - share))
    return float(np.sort(distances)[min(rank, distances.size) - 1])


def shrunk_covariance(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """Covariance of rows with mean zero, shrunk towards a multiple of the identity [1]_.

    Parameters
    ----------
    centred : ndarray
        Shape (event, trait).

    References
    ----------
    .. [1] O. Ledoit, M. Wolf (2004). doi:10.1016/S0047-259X(03)00096-4

    Examples
    --------
    >>> few = np.array([[1.0, 2.0], [-1.0, -2.0]])
    >>> shrunk_covariance(few).tolist()
    [[1.0, 2.0], [2.0, 4.0]]
    >>> many = np.random.default_rng(0).normal(size=(9, 2))
    >>> bool(np.linalg.cond(shrunk_covariance(many)) < np.linalg.cond(many.T @ many))
    True
    """
    n, p = centred.shape
    sample = centred.T @ centred / n
    target = np.eye(p) * np.trace(sample) / p
    away = float(np.square(sample - target).sum())
    fourth = float(np.square(np.square(centred).sum(axis=1)).sum())
    noise = (fourth - n * float(np.square(sample).sum())) / n**2
    weight = min(max(noise / away, 0.0), 1.0) if away > 0 else 0.0
    shrunk: NDArray[np.float64] = weight * target + (1.0 - weight) * sample
    return shrunk


def with_usual(model: Model, usual: Usual, *, names: Sequence[str] = USUAL) -> Model:
    """The same model with what is usual.

    Parameters
    ----------
    names : sequence of str
        `USUAL`, or `USUAL_FIRST` for what is usual on the first tiles.
    """
    arrays = (usual.mean, usual.whitening, np.array([usual.limit]))
    stored = {name: of.astype(np.float32) for name, of in zip(names, arrays, strict=True)}
    return replace(model, weights={**model.weights, **stored})


def table_of_unlike(traits: Mapping[str, NDArray[np.float64]]) -> str:
    """Table in Markdown: how many events of each experiment are unlike all others.

    Parameters
    ----------
    traits : mapping of str to ndarray
        By experiment; each is compared with a limit, too, that rests on the others alone.
    """
    lines = [
        f"{UNLIKE_HEAD} (reason `out_of_distribution`), of experiments left out of the",
        "statistics and of the limit. They are kept as undecided unless they are hits:",
        "",
        "| experiment left out | events | unlike |",
        "|---|---|---|",
    ]
    for name, own in traits.items():
        usual = fit_usual([other for key, other in traits.items() if key != name])
        lines.append(f"| {name} | {len(own)} | {int(usual.is_unlike(own).sum())} |")
    return "\n".join(lines)


def _statistics(traits: NDArray[np.float64]) -> Usual:
    """Mean and whitening of events; what could not be measured counts as the mean."""
    measured = np.isfinite(traits)
    n_measured = np.maximum(measured.sum(axis=0), 1)
    mean = np.where(measured, traits, 0.0).sum(axis=0) / n_measured
    slack = np.array([trait.slack for trait in TRAITS])
    apart = np.nan_to_num(traits - mean) / slack
    factor = np.linalg.cholesky(shrunk_covariance(apart) + np.eye(len(TRAITS)))
    whitening = np.linalg.inv(factor).T / slack[:, np.newaxis]
    return Usual(mean=mean, whitening=whitening, limit=math.sqrt(len(TRAITS)))
