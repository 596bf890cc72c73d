"""What a user chose for one filter run."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sfxreduce.audit.sample import AUDIT_SHARE, check_share
from sfxreduce.decisions.threshold import Promise
from sfxreduce.errors import UsageError

__all__ = ["Wanted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the decisions depend on besides the run and its scorer; see `filter_run`.

    Raises
    ------
    UsageError
        If the threshold or the share is no such number.
    """

    threshold: float | None = None
    promise: Promise = field(default_factory=Promise)
    drift: bool = True
    audit_share: float = AUDIT_SHARE

    def __post_init__(self) -> None:
        check_share(self.audit_share)
        given = self.threshold
        if given is not None and not abs(given) <= float(np.finfo(np.float32).max):
            raise UsageError(f"expected --threshold to be a finite number, found {given}")
