"""People of the tests of the archive."""

from __future__ import annotations

from pathlib import Path

import pytest
from beamtimes import people_by_name


@pytest.fixture(autouse=True)
def people(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[Path, str]:
    """Every name is an account; where real ones are used, a module says so."""
    if getattr(request.module, "REAL_ACCOUNTS", False):
        return {}
    return people_by_name(monkeypatch)
