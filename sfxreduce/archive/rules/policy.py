"""The policy: what may leave the disk, after how long, and on whose word.

A policy is a TOML file. A key that is not known here, at any level, is refused (R16): a misspelt
``grace_days`` must not become a default that nobody chose.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from enum import StrEnum
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sfxreduce.archive.rules.refusals import ArchiveRefused, refuse
from sfxreduce.errors import RunNotFound, SchemaError

__all__ = [
    "DEFAULT_PRESET",
    "POLICY_BYTES",
    "PRESETS",
    "TARGET_BYTES",
    "Approvals",
    "ClosedTable",
    "Disposition",
    "DriftPolicy",
    "Holds",
    "Keep",
    "Policy",
    "Release",
    "Source",
    "parse_policy",
    "policy_of",
    "policy_sha256",
    "preset",
    "preset_text",
    "read_policy",
]

TARGET_BYTES = 50 * 10**9
"""A few minutes of a tape drive; sites ask for 10 to 100 GB."""

PRESETS = ("esrf", "euxfel", "laptop", "lcls", "try")
"""Policies that come with the package."""

DEFAULT_PRESET = "laptop"
"""Policy of a run that has no plan, and of a plan that names no policy."""

GB = 10**9
POLICY_BYTES = 1 << 20
"""Longest policy that is read."""


class Disposition(StrEnum):
    """What becomes of a run's data on the disk."""

    KEEP = "keep"
    TAPE_RAW = "tape-raw"
    TAPE_REJECTS = "tape-rejects"
    DROP_REJECTS = "drop-rejects"

    @property
    def irreversible(self) -> bool:
        """Whether rejected events are gone for good."""
        return self is Disposition.DROP_REJECTS


class ClosedTable(BaseModel):
    """A table of a file or a paper: closed, immutable, and strict about types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Share = Annotated[float, Field(ge=0, le=1)]
Days = Annotated[float, Field(ge=0, le=36_525)]
# No name on a disk holds a zero byte or, in what is printed on one line, the end of one.
AbsolutePath = Annotated[str, Field(pattern=r"^(/[^\x00\n]*)?$", max_length=4096)]


class Release(ClosedTable):
    """When data may leave the disk.

    Attributes
    ----------
    allow_irreversible : bool
        Without it ``drop-rejects`` is refused, whatever else was proved.
    max_loss, confidence : float
        What a certificate has to prove before anything irreversible: share of the hits that may
        be lost, and the chance that this holds.
    max_undecided : float
        Share of events that could not be judged above which a run cannot be certified.
    certificate_days, verified_days : float
        Longest age in days of a certificate, and of the comparison of the reduced store with the
        run, when data are released.
    copies : int
        Copies of each file in the archive.
    distinct_pools : bool
        Whether they must lie in different pools.
    receipt_hours : float
        Longest age in hours of the archive's receipts when data are released.
    package_gb : float
        Gigabytes (10^9 bytes) of the packages that small files go to the archive in; 0 puts every
        file as it is. Files of a tenth of it or more go as they are.
    recall_files : int
        Packages and files to stage back and compare; all of them if there are fewer.
    grace_days : float
        Time in days between the recall test and the release.
    min_retention_days : float
        Time in days from the end of the experiment, below which nothing is released.
    max_tb_per_day : float
        Most terabytes (10^12 bytes) that tickets of one day may add up to.
    limit_root : str
        Absolute path of the folder below which the tickets of all runs count for that; if empty,
        the evidence folders that lie side by side.
    sign_key : str
        Absolute path of the private key that signs release tickets; if empty, they are signed only
        if whoever writes one names a key.
    """

    disposition: Disposition = Disposition.KEEP
    allow_irreversible: bool = False
    max_loss: Annotated[float, Field(gt=0, lt=1)] = 0.01
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    max_undecided: Share = 0.05
    certificate_days: Days = 365
    verified_days: Days = 7
    copies: Annotated[int, Field(ge=1, le=9)] = 2
    distinct_pools: bool = True
    receipt_hours: Annotated[float, Field(gt=0, le=720)] = 24
    package_gb: Annotated[float, Field(ge=0, le=100_000)] = TARGET_BYTES / GB
    recall_files: Annotated[int, Field(ge=1, le=1_000_000)] = 59
    grace_days: Days = 30
    min_retention_days: Days = 120
    max_tb_per_day: Annotated[float, Field(gt=0)] = 50
    limit_root: AbsolutePath = ""
    sign_key: AbsolutePath = ""


class Approvals(ClosedTable):
    """Who has to agree.

    Attributes
    ----------
    two_person : bool
        Whether another account than the planner's has to approve. What cannot be undone needs two
        approvals, by people of two roles, in any case.
    people : mapping of str to tuple of str
        Accounts that may act in each role; a role that is not listed may be taken by anyone.
    """

    two_person: bool = True
    people: dict[Literal["pi", "facility"], tuple[str, ...]] = Field(default_factory=dict)


class Keep(ClosedTable):
    """What stays in any case.

    Attributes
    ----------
    undecided, audit_set, dark_runs : str
        There is no other choice; the keys are there so that a policy can say it.
    random_share : float
        Share of the rejected events, drawn at random, that the reduced store has to hold.
    dark_names : tuple of str
        Patterns of the names of dark and calibration runs.
    """

    undecided: Literal["always"] = "always"
    audit_set: Literal["forever"] = "forever"
    dark_runs: Literal["always"] = "always"
    random_share: Share = 0.01
    dark_names: tuple[str, ...] = ("*dark*", "*pedestal*", "*calib*")


class Holds(ClosedTable):
    """Who may forbid a release.

    Attributes
    ----------
    lift_by_same : bool
        Whether only the authority that placed a hold may lift it: the account that did, or one
        that the policy names in that role.
    holds_root : str
        Absolute path of the folder that holds are placed in, which no planner owns; if empty, they
        lie in the evidence.
    """

    authorities: Annotated[tuple[str, ...], Field(min_length=1)] = ("pi", "facility", "legal")
    lift_by_same: bool = True
    holds_root: AbsolutePath = ""


class DriftPolicy(ClosedTable):
    """What an alarm of the run-similarity check does.

    Attributes
    ----------
    on_alarm : str
        ``keep-all``: nothing of the run is released. ``keep-rejects``: nothing irreversible is
        done; the raw run may still go to tape, where every event of it remains.
    """

    on_alarm: Literal["keep-all", "keep-rejects"] = "keep-all"


class Source(ClosedTable):
    """Where a figure of a policy comes from."""

    says: str
    where: str


class Policy(ClosedTable):
    """All of a policy file.

    Attributes
    ----------
    release, approvals, keep, holds, drift
        The tables of the file.
    pools : mapping of str to str
        Where the archive's copies go: name of each pool, and its backend, ``posix:`` or ``exec:``.
    sources : tuple of Source
        What the figures rest on.
    """

    policy_version: Literal[1] = 1
    name: str = "unnamed"
    release: Release = Field(default_factory=Release)
    approvals: Approvals = Field(default_factory=Approvals)
    keep: Keep = Field(default_factory=Keep)
    holds: Holds = Field(default_factory=Holds)
    drift: DriftPolicy = Field(default_factory=DriftPolicy)
    pools: dict[str, str] = Field(default_factory=dict)
    sources: tuple[Source, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Policy:
        if self.pools and self.release.distinct_pools and len(self.pools) < self.release.copies:
            raise ValueError(
                f"{self.release.copies} copies in distinct pools need as many pools, found "
                f"{len(self.pools)}"
            )
        if self.release.disposition.irreversible and not self.approvals.two_person:
            raise ValueError("drop-rejects needs two_person = true")
        for pool, spec in self.pools.items():
            if not re.fullmatch(r"(posix|exec):/[^\x00\n]*", spec):
                raise ValueError(
                    f"pools.{pool}: expected posix:/FOLDER or exec:/SCRIPT, found {spec[:80]!a}"
                )
        return self

    @property
    def caution(self) -> str:
        """What stands beside its name wherever that is shown; empty if nothing has to."""
        release = self.release
        waits = release.disposition is Disposition.KEEP or release.grace_days > 0
        return "" if waits else "no grace period: for trying, not for data that matter"

    @property
    def named(self) -> str:
        """Its name, and what to beware of."""
        return f"{self.name} ({self.caution})" if self.caution else self.name

    def may_act(self, name: str, role: str) -> bool:
        """Whether an account of this name may act in a role."""
        people = {str(key): names for key, names in self.approvals.people.items()}
        return role not in people or name in people[role]


def parse_policy(text: str, *, where: str) -> Policy:
    """Policy from the text of a TOML file.

    Parameters
    ----------
    where : str
        Path of the file, for the message.

    Raises
    ------
    ArchiveRefused
        With R16, if a key is not known, a value is of the wrong type, or a value is out of range.
    """
    try:
        # Through JSON, where lists may be tuples and words may be choices, and nothing else is lax.
        return Policy.model_validate_json(json.dumps(tomllib.loads(text)))
    except ValidationError as error:
        found = [
            refuse("R16", f"{where}: {_place(fault['loc'])}: {_told(fault['type'], fault['msg'])}")
            for fault in error.errors(include_url=False)
        ]
        raise ArchiveRefused(found) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ArchiveRefused(
            [refuse("R16", f"{where}: is no TOML of a policy: {error}")]
        ) from error


def read_policy(path: Path) -> Policy:
    """Read a policy file; see `parse_policy`.

    Raises
    ------
    RunNotFound
        If nothing lies at the path.
    SchemaError
        If it is no text, or too long.
    """
    try:
        with path.open("rb") as file:
            data = file.read(POLICY_BYTES + 1)
    except OSError as error:
        raise RunNotFound(f"{path}: cannot be read ({error.strerror}); check --policy") from error
    return policy_of(data, where=str(path))


def policy_of(data: bytes, *, where: str) -> Policy:
    """Policy from the bytes of a file; see `parse_policy`.

    Raises
    ------
    SchemaError
        If it is no text, or too long.
    """
    if len(data) > POLICY_BYTES:
        raise SchemaError(f"{where}: too long for a policy; is it another file?")
    try:
        return parse_policy(data.decode(), where=where)
    except UnicodeDecodeError as error:
        raise SchemaError(
            f"{where}: expected TOML in UTF-8, found other bytes; is it another file?"
        ) from error


@cache
def preset(name: str) -> Policy:
    """Policy that comes with the package.

    Examples
    --------
    >>> preset("lcls").release.min_retention_days
    120.0
    """
    return parse_policy(preset_text(name), where=f"preset {name}")


def preset_text(name: str) -> str:
    """Text of a preset, comments included.

    Raises
    ------
    SchemaError
        If there is none of this name.
    """
    if name not in PRESETS:
        raise SchemaError(f"policy: expected a preset of {', '.join(PRESETS)}, found '{name}'")
    return files("sfxreduce.archive.rules").joinpath("presets", f"{name}.toml").read_text("utf-8")


def policy_sha256(policy: Policy) -> str:
    """Hash of all that a policy says, whatever its file looks like."""
    text = json.dumps(policy.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location)) or "the file"


def _told(kind: str, message: str) -> str:
    """What pydantic says, in the words of this package."""
    if kind == "extra_forbidden":
        return "this key is not known"
    return message[:1].lower() + message[1:]
