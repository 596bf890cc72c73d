"""Why a run may not go on: a code, one sentence, and the way out.

Codes keep their meaning between versions, so that scripts can tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sfxreduce.errors import RefusedError

__all__ = ["REFUSALS", "ArchiveRefused", "Refusal", "refuse"]

REFUSALS: dict[str, tuple[str, str]] = {
    "R01": (
        "no reduced store of this run was verified against it",
        "name the reduced store with --hits, and plan again",
    ),
    "R02": (
        "no certificate proves the loss that the policy asks for",
        "audit more rejected events with 'sfxreduce audit', or keep the run",
    ),
    "R03": (
        "the source is not as it was when it was planned",
        "find out what changed it, then plan again",
    ),
    "R04": (
        "a receipt of the archive is missing or too old",
        "run 'sfxreduce archive execute' again; files that are there are not copied twice",
    ),
    "R05": (
        "a copy is not on tape yet",
        "wait until the archive has written it, then ask again",
    ),
    "R06": (
        "the archive holds other bytes than the source",
        "put the file again, and find out what changed it",
    ),
    "R07": (
        "there are fewer copies, or fewer separate pools, than the policy asks for",
        "archive to another pool with --to",
    ),
    "R08": (
        "no recall test of this plan was passed",
        "run 'sfxreduce archive recall-test'; do not release anything if it fails",
    ),
    "R09": (
        "a hold forbids it",
        "ask who placed the hold; 'sfxreduce hold list' tells who that is",
    ),
    "R10": (
        "the evidence was changed after it was written",
        "keep the folder for whoever looks into it, and plan again with a new one",
    ),
    "R11": (
        "those whom the policy asks for have not approved it",
        "have another account than the planner's run 'sfxreduce archive approve'; where there is "
        "only one account, plan under a policy with two_person = false",
    ),
    "R12": (
        "the time that data must stay on the disk is not over",
        "wait; 'sfxreduce archive status' tells until when",
    ),
    "R13": (
        "the run drifted away from what its scorer was calibrated on",
        "keep the run, or label it and filter it again",
    ),
    "R14": (
        "the ledger does not hold every source event exactly once",
        "filter the run again",
    ),
    "R15": (
        "more would be released in a day than the policy allows",
        "try again tomorrow, or release fewer runs",
    ),
    "R16": (
        "a field or a version is not known here",
        "check its spelling; for a newer version, update sfxreduce",
    ),
    "R17": (
        "the clock is behind a time that was seen before",
        "set the clock of this machine right",
    ),
    "R18": (
        "events to be kept are not all in the reduced store, or too many are undecided",
        "filter the run again, and find out why its events could not be judged",
    ),
    "R19": (
        "an open job still uses the run",
        "wait for it to end; 'sfxreduce archive status' names it",
    ),
    "R20": (
        "events that have to stay are not in the reduced store",
        "filter the run again with the share of rejects that the policy keeps",
    ),
    "R21": (
        "the ticket was revoked",
        "delete nothing by it",
    ),
    "R22": (
        "a signed ticket would rest on nothing but the evidence",
        "name your own policy with --policy, and the archives there or with --to",
    ),
    "R23": (
        "not all files that the run is read from can be archived with it",
        "put the files themselves into the run's folder, named by relative paths, and filter again",
    ),
    "R24": (
        "the facility has not reported that it acted on the ticket",
        "wait; its report is recorded with 'sfxreduce archive release RUN --receipt FILE'",
    ),
}
"""Sentence and way out of every code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One reason not to go on.

    Parameters
    ----------
    code : str
        ``R01`` to ``R24``.
    message : str
        What is wrong.
    remedy : str
        What to do about it.
    """

    code: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}; {self.remedy}"


def refuse(code: str, detail: str = "", *, remedy: str = "") -> Refusal:
    """Make the refusal of a code.

    Parameters
    ----------
    detail : str
        What was found, after the sentence.
    remedy : str
        In place of the usual way out.

    Examples
    --------
    >>> print(refuse("R12", "10 of 30 days"))
    R12: the time that data must stay on the disk is not over (10 of 30 days); wait; 'sfxreduce
    archive status' tells until when
    """
    sentence, usual = REFUSALS[code]
    message = f"{sentence} ({detail})" if detail else sentence
    return Refusal(code=code, message=message, remedy=remedy or usual)


class ArchiveRefused(RefusedError):
    """What was asked for is refused.

    Parameters
    ----------
    refusals : sequence of Refusal
        At least one.
    """

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        self.refusals = tuple(refusals)
        super().__init__(" | ".join(map(str, self.refusals)))

    @property
    def lines(self) -> tuple[str, ...]:
        """Every refusal on a line of its own."""
        return tuple(f"refused: {' '.join(str(refusal).split())}" for refusal in self.refusals)

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object.

        Examples
        --------
        >>> ArchiveRefused([refuse("R09")]).to_json()["refusals"][0]["code"]
        'R09'
        """
        return {"refused": True, "refusals": [asdict(refusal) for refusal in self.refusals]}
