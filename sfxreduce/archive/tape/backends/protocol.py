"""What an archive has to be able to do: four calls."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import Field

from sfxreduce.archive.tape.receipts import Receipt
from sfxreduce.errors import UsageError

__all__ = ["Backend", "Capabilities", "check_pool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an archive says about itself.

    Parameters
    ----------
    tool : str
        Program and version that is asked.
    pools : tuple of str
        Pools it has; empty if any name will do.
    rereads : bool
        Whether the checksum of a receipt is computed by reading the file as the archive holds it.
    recalls_from_medium : bool
        Whether a recall reads the medium, and never a disk buffer before it.
    """

    tool: str
    pools: Annotated[tuple[str, ...], Field(max_length=1000)] = ()
    rereads: bool = False
    recalls_from_medium: bool = False


class Backend(Protocol):
    """An archive. Every call may be repeated: what is there already is not written twice."""

    @property
    def name(self) -> str:
        """What `open_backend` was told; receipts name it."""
        ...

    def capabilities(self) -> Capabilities:
        """Ask what it can do."""
        ...

    def put(self, local: Path, path: str, *, pool: str) -> Receipt:
        """Put a file into a pool, and say what is there then.

        Parameters
        ----------
        local : Path
            Only read.
        path : str
            Relative path in the archive; see `sfxreduce.archive.tape.paths.check_path`.

        Raises
        ------
        ArchiveError
            If it is not accepted, or another file lies there.
        """
        ...

    def query(self, path: str, *, pool: str) -> Receipt:
        """Say what the archive holds under a path.

        Raises
        ------
        ArchiveError
            If nothing lies there, or the archive does not answer.
        """
        ...

    def recall(self, path: str, into: Path, *, pool: str) -> None:
        """Bring a file back.

        Parameters
        ----------
        into : Path
            Of the new file; nothing may lie there.

        Raises
        ------
        ArchiveError
            If it does not come.
        """
        ...


def check_pool(pool: str) -> str:
    """Refuse a pool that is no plain name.

    Raises
    ------
    UsageError
        If it has other characters than letters, digits, dots, hyphens and underscores.
    """
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", pool):
        raise UsageError(
            f"pool {pool!a}: expected letters, digits, '.', '-' and '_'; choose another name"
        )
    return pool
