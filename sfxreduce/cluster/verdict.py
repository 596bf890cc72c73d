"""What is to be said of a worker's answer: nothing, or what was expected and found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sfxreduce.cluster.answers import signature
from sfxreduce.io.store.manifest import MadeBy

__all__ = ["Expected", "Verdict", "judged"]

OPTIONAL = ("torch",)
"""Packages that a worker need not have: whether tasks import them is seen when they are loaded."""

TOLD = ("host", "pid", "threads", "memory_bytes", "nanny", "gpu", "code", "versions", "cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What this process is made of and sees.

    Parameters
    ----------
    files : mapping of str to str
        What `sfxreduce.io.files.sentinel.sentinel` says here, by path.
    model : str
        Hash of the model at `model_path`.
    nonce : bytes
        What lies in `folder`, to be read and answered.
    memory_bytes : int
        Least limit of a worker.
    """

    made_by: MadeBy = field(default_factory=lambda: MadeBy(code="", versions={}))
    files: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    model_path: Path | None = None
    folder: Path | None = None
    nonce: bytes = b""
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one worker.

    Parameters
    ----------
    fault : str
        What is wrong with it: "expected, found; what to do". Empty if nothing is.
    told : mapping
        What it said of itself.
    """

    address: str
    name: str = ""
    fault: str = ""
    state: str = "admitted"
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """Which worker, and what is wrong with it."""
        return f"worker {self.name or '?'} at {self.address}: {self.fault}"

    def retired(self, why: str) -> Verdict:
        """The same worker after it was let go."""
        return replace(self, fault=why, state="retired")

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` tells it."""
        state = "dropped" if self.fault and self.state == "admitted" else self.state
        facts = {"name": self.name, "address": self.address, "state": state, "why": self.fault}
        return facts | {name: self.told[name] for name in TOLD if name in self.told}


def judged(told: Mapping[str, Any], expected: Expected, others: Sequence[Verdict]) -> Verdict:
    """Judge an answer.

    Parameters
    ----------
    others : sequence of Verdict
        Workers that passed: all of them have to use one kind of kernel.
    """
    checks = (
        _memory(told, expected),
        told.get("failed")
        and f"expected it to answer the roll call, found {told['failed']}; start it with the "
        "environment of this command",
        _made_by(told, expected.made_by),
        _kernel(told, others),
        _run(told, expected),
        _model(told, expected),
        _folder(told, expected),
    )
    return Verdict(
        address=told["address"],
        name=told["name"],
        fault=next((fault for fault in checks if fault), ""),
        told=told,
    )


def _memory(told: Mapping[str, Any], expected: Expected) -> str:
    limit, least = told.get("memory_bytes", 0), expected.memory_bytes
    if not 0 < limit < least:
        return ""
    return (
        f"expected a memory limit of at least {least / 1e6:,.0f} MB for this run, found "
        f"{limit / 1e6:,.0f} MB; start it with --memory-limit {-(-least // 10**8) / 10:.1f}GB, or "
        "fewer workers on its machine"
    )


def _made_by(told: Mapping[str, Any], here: MadeBy) -> str:
    for name, version in here.versions.items():
        found = told.get("versions", {}).get(name, "") if "versions" in told else version
        if found != version and not (name in OPTIONAL and not (found and version)):
            return (
                f"expected {name} {version or '(none)'} as here, found {found or 'none'}; start it "
                "in the environment of this command"
            )
    code = told.get("code", here.code)
    if code == here.code:
        return ""
    return (
        f"expected the code of sfxreduce {here.code[:12]} as here, found {code[:12]}; start it "
        "with the sfxreduce of this command"
    )


def _kernel(told: Mapping[str, Any], others: Sequence[Verdict]) -> str:
    for other in others:
        known = other.told.get("cpu")
        if known is not None and "cpu" in told and told["cpu"] != known:
            return (
                f"expected a processor with {known} as that of worker {other.name}, found "
                f"{told['cpu']}: their scores differ in the last digits; use workers of one kind"
            )
    return ""


def _run(told: Mapping[str, Any], expected: Expected) -> str:
    seen = told.get("files", expected.files)
    for path, facts in expected.files.items():
        found = seen.get(path, "nothing")
        if found != facts:
            return (
                f"expected to read {path} of {facts}, found {found}; let it see the run as this "
                "machine does"
            )
    return ""


def _model(told: Mapping[str, Any], expected: Expected) -> str:
    found = told.get("model", expected.model)
    if found == expected.model:
        return ""
    return (
        f"expected the model {expected.model_path} with sha256 {expected.model[:12]}, found "
        f"{found[:12] if len(found) == len(expected.model) else found}; let it see the model as "
        "this machine does"
    )


def _folder(told: Mapping[str, Any], expected: Expected) -> str:
    if expected.folder is None or "folder" not in told:
        return ""
    if told["folder"] == signature(expected.nonce, told["address"]) and told.get("answered"):
        return ""
    found = told["folder"]
    if len(found) == len(signature(b"", "")) and " " not in found:
        found = "another folder under that path"
    return (
        f"expected to read and write in {expected.folder.parent}, where the output is made, found: "
        f"{found}; let it see that folder as this machine does"
    )
