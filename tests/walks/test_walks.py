"""Three people go their ways by the documentation alone, and each step says the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from walks import beam, manager, student
from walks.walk import Step, walk


@pytest.mark.parametrize(
    ("page", "steps"),
    [
        pytest.param(student.PAGE, student.STEPS, id="student"),
        pytest.param(beam.PAGE, beam.STEPS, id="beam"),
        pytest.param(beam.TRUST_PAGE, beam.TRUST_STEPS, id="trust"),
        pytest.param(manager.PAGE, manager.STEPS, id="manager"),
    ],
)
def test_a_walk_leads_from_step_to_step(page: str, steps: tuple[Step, ...], tmp_path: Path) -> None:
    walk(page, steps, tmp_path)
