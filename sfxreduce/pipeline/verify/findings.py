"""What is wrong with an output, and where the damage begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfxreduce.decisions.decide import Decisions
from sfxreduce.errors import ClusterError, ObjectStoreError, SfxReduceError
from sfxreduce.io.chunks.layout import Layout
from sfxreduce.io.store.damage import Damage, shard_of
from sfxreduce.io.store.manifest import Manifest
from sfxreduce.io.store.metadata import ZARR_ERRORS
from sfxreduce.io.store.names import AUDIT_GROUP

__all__ = ["Findings", "FirstDamage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstDamage:
    """Where the damage to an output begins; shards in the order of their events come first.

    Parameters
    ----------
    file : str
        Relative to the output.
    shard : int or None
        Its number, if it is a shard of frames.
    event : int or None
        Position in the output (in its group ``audit``, if the shard is there) of the first event
        that is damaged; None if that cannot be told.
    """

    file: str
    shard: int | None = None
    event: int | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Findings:
    """What was found so far.

    Parameters
    ----------
    path : Path
        Of the output.
    decisions : Decisions or None
        As its ledger has them.
    layout : Layout or None
        Of its frames, as far as it is known.
    irregular : bool
        Whether there is something in it that must not be opened.
    checked : dict
        Events that were looked at in each part of the output.
    incomplete : tuple of int
        Kept events without pixels, and those with missing panels.
    differing : dict
        Positions of damaged events in each part of the output, ascending.
    """

    path: Path
    manifest: Manifest | None = None
    decisions: Decisions | None = None
    layout: Layout | None = None
    irregular: bool = False
    checked: dict[str, int] = field(default_factory=dict)
    incomplete: tuple[int, int] = (0, 0)
    differing: dict[str, list[int]] = field(default_factory=dict)
    damages: list[Damage] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def parts(self) -> dict[str, NDArray[np.int64]]:
        """Source positions of the events in each part of the output: hits, and the sample."""
        if self.decisions is None:
            return {}
        parts = {"": self.decisions.kept}
        if self.decisions.sample.size or (self.path / AUDIT_GROUP).exists():
            parts[AUDIT_GROUP] = self.decisions.sample
        return parts

    @property
    def payloads(self) -> dict[str, NDArray[np.uint64]]:
        """What the ledger says of the stored bytes of these events, shape (event, 2)."""
        payload = None if self.decisions is None else self.decisions.payload
        if payload is None:
            sizes = {part: index.size for part, index in self.parts.items()}
            if not sizes and self.manifest:
                sizes = {"": self.manifest.hits + self.manifest.undecided}
            return {part: np.zeros((size, 2), np.uint64) for part, size in sizes.items()}
        return {part: payload[index] for part, index in self.parts.items()}

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Take down what is wrong with the output instead of stopping at it."""
        try:
            yield
        except (ClusterError, ObjectStoreError):
            raise  # It says nothing about the output.
        except SfxReduceError as error:
            self.problems.append(str(error))
        except (MemoryError, *ZARR_ERRORS) as error:
            # What reading a damaged or hostile store leads to, nobody can list.
            self.problems.append(f"{self.path}: cannot be read ({type(error).__name__}: {error})")

    def first_damage(self) -> FirstDamage | None:
        """Where the damage begins: in the first damaged shard, or else in the first other file."""
        places = [*self._in_damaged_shards(), *self._in_differing_shards()]
        if places:
            return min(places, key=lambda place: place[0])[1]
        names = sorted(damage.path for damage in self.damages)
        return FirstDamage(file=names[0]) if names else None

    def told(self, first: FirstDamage) -> str:
        """Say where the damage begins."""
        belongs = {file.sha256: file.path for file in self.manifest.files} if self.manifest else {}
        damage = next((d for d in self.damages if d.path == first.file), None)
        what = damage.what if damage else "does not hold what its source does"
        if damage and damage.sha256 in belongs:
            what = f"holds what belongs in {belongs[damage.sha256]}"
        where = "" if first.shard is None else f" shard {first.shard}, event {first.event}:"
        more = len(self.damages) - 1
        return (
            f"{self.path}/{first.file}:{where} {what}"
            + (f"; other damaged files: {more}" if more > 0 else "")
            + "; restore it from a copy, or filter the run again"
        )

    def _in_damaged_shards(self) -> Iterator[tuple[tuple[str, int], FirstDamage]]:
        """First event of each damaged shard: the first that differs from its source, if known."""
        for damage in self.damages:
            shard = shard_of(damage.path)
            if shard and damage.events:
                differing = self.differing.get(shard[0], ())
                event = min((e for e in differing if e in damage.events), default=damage.events[0])
                yield shard, FirstDamage(file=damage.path, shard=shard[1], event=event)

    def _in_differing_shards(self) -> Iterator[tuple[tuple[str, int], FirstDamage]]:
        """First event of each part of the output that differs from its source."""
        for part, wrong in self.differing.items():
            if wrong and self.layout:
                shard = self.layout.locate(wrong[0])[0]
                key = f"frames/{self.layout.shard_key(shard)}"
                file = f"{part}/{key}" if part else key
                yield (part, shard), FirstDamage(file=file, shard=shard, event=wrong[0])
