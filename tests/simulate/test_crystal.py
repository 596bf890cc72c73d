"""Crystals of the simulator: symmetry, structure factors, and what the Ewald sphere excites."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfxreduce.errors import UsageError
from sfxreduce.simulate.crystal import CrystalForm, Structure, squared_structure_factor
from sfxreduce.simulate.excitation import Beam, Crystal, excited
from sfxreduce.simulate.experiments import EXPERIMENTS
from sfxreduce.simulate.shot import shoot
from sfxreduce.simulate.symmetry import CENTRINGS, POINT_GROUPS, is_absent, rotations

index = st.integers(-20, 20)
forms = st.sampled_from([experiment.form for experiment in EXPERIMENTS.values()])


def strength(hkl: Sequence[int], structure: Structure, s: float = 0.2) -> float:
    """Squared structure factor of a reflection."""
    h, k, l = hkl  # noqa: E741 - Miller indices
    return squared_structure_factor(h, k, l, s, structure)


def absent(hkl: Sequence[int], centring: str) -> bool:
    h, k, l = hkl  # noqa: E741 - Miller indices
    return is_absent(h, k, l, ord(centring))


def form_of(point_group: str = "1", centring: str = "P", name: str = "test") -> CrystalForm:
    return CrystalForm(
        name=name,
        cell=(60.0, 70.0, 80.0, 90.0, 90.0, 90.0),
        point_group=point_group,
        centring=centring,
        b_factor_a2=20.0,
        matthews_a3_per_da=2.5,
        source="made up for a test",
    )


@pytest.mark.parametrize(
    ("point_group", "order"),
    list(zip(POINT_GROUPS, (1, 2, 4, 4, 8, 3, 6, 6, 12, 12, 24), strict=True)),
)
def test_rotations_form_a_group_of_the_right_order(point_group: str, order: int) -> None:
    group = {tuple(r.ravel()) for r in rotations(point_group)}
    assert len(group) == order
    for a, b in itertools.product(rotations(point_group), repeat=2):
        assert tuple((a @ b).ravel()) in group
        assert round(np.linalg.det(a)) == 1


def test_an_unknown_point_group_is_named() -> None:
    with pytest.raises(UsageError, match="point group 'mmm' is not known"):
        rotations("mmm")


def test_a_form_without_a_volume_is_refused() -> None:
    with pytest.raises(UsageError, match="expected a cell with volume"):
        form_of(centring="X")


@settings(deadline=None)
@given(st.tuples(index, index, index), forms)
def test_friedel_mates_and_equivalents_are_equally_strong(
    hkl: tuple[int, int, int], form: CrystalForm
) -> None:
    structure = form.structure()
    strong = strength(hkl, structure)
    for rotation in structure.rotations:
        mate = (np.array(hkl) @ rotation).tolist()
        assert strength(mate, structure) == strong
        assert strength([-n for n in mate], structure) == strong


# The lattice points of each centring, from which the phases of a reflection cancel or agree.
LATTICE_POINTS = {
    "P": [(0, 0, 0)],
    "A": [(0, 0, 0), (0, 1 / 2, 1 / 2)],
    "C": [(0, 0, 0), (1 / 2, 1 / 2, 0)],
    "I": [(0, 0, 0), (1 / 2, 1 / 2, 1 / 2)],
    "F": [(0, 0, 0), (0, 1 / 2, 1 / 2), (1 / 2, 0, 1 / 2), (1 / 2, 1 / 2, 0)],
    "R": [(0, 0, 0), (2 / 3, 1 / 3, 1 / 3), (1 / 3, 2 / 3, 2 / 3)],
}


@settings(deadline=None)
@given(st.tuples(index, index, index), st.sampled_from(sorted(CENTRINGS)))
def test_a_reflection_is_absent_where_its_lattice_points_cancel(
    hkl: tuple[int, int, int], centring: str
) -> None:
    points = np.array(LATTICE_POINTS[centring])
    total = abs(np.exp(2j * np.pi * points @ np.array(hkl)).sum())
    assert absent(hkl, centring) == (total < 1e-6)
    structure = form_of(centring=centring).structure()
    assert (strength(hkl, structure) == 0.0) == (total < 1e-6)


def test_intensities_follow_wilson_statistics() -> None:
    structure = form_of("222").structure()
    mean = structure.mean_intensity[int(0.2 / 2.0 * 511)]
    general = itertools.product(range(1, 16), repeat=3)
    zone = itertools.product(range(1, 60), range(1, 60), [0])
    acentric, centric = (
        np.array([strength(hkl, structure) for hkl in indices]) for indices in (general, zone)
    )
    # <I^2> / <I>^2 is 2 for acentric reflections and 3 for centric ones.
    assert acentric.mean() == pytest.approx(mean, rel=0.08)
    assert np.mean(acentric**2) / acentric.mean() ** 2 == pytest.approx(2.0, rel=0.15)
    assert centric.mean() == pytest.approx(mean, rel=0.12)
    assert np.mean(centric**2) / centric.mean() ** 2 == pytest.approx(3.0, rel=0.2)


def test_forms_of_other_names_have_other_structure_factors() -> None:
    one, two = form_of(name="one").structure(), form_of(name="two").structure()
    assert strength((3, 4, 5), one) != squared_structure_factor(3, 4, 5, 0.2, two)


def crystal_of(form: CrystalForm, seed: int) -> Crystal:
    experiment = EXPERIMENTS["lysozyme-8kev"]
    (crystal, *_) = shoot(experiment, hit_rate=1.0, seed=seed, event=0).crystals
    turn = np.linalg.solve(experiment.form.reciprocal, crystal.reciprocal)
    assert np.allclose(turn @ turn.T, np.eye(3))
    return crystal._replace(reciprocal=form.reciprocal @ turn, volume_a3=1e13, b_factor_a2=0.0)


@settings(max_examples=8, deadline=None)
@given(forms, st.integers(0, 1000), st.floats(0.9, 2.2))
def test_excited_reflections_are_those_a_search_of_all_indices_finds(
    form: CrystalForm, seed: int, wavelength: float
) -> None:
    beam = Beam(wavelength, 1e-3, 1e-4, 1.0, min(0.12, 8 / form.cell[0]))
    crystal = crystal_of(form, seed)
    found = excited(crystal, beam, form.structure())
    ends = [math.ceil(length * beam.s_max) for length in form.cell[:3]]
    hkl = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in ends), indexing="ij"), -1)
    hkl = hkl.reshape(-1, 3)
    s = hkl @ crystal.reciprocal
    out = s + np.array([0.0, 0.0, 1.0 / wavelength])
    off_sphere = np.abs(np.linalg.norm(out, axis=1) - 1.0 / wavelength)
    # All that lies within 1.5 widths of any crystal in this test and is not absent.
    near = (off_sphere < 1e-4) & (np.linalg.norm(s, axis=1) < beam.s_max) & hkl.any(axis=1)
    near &= out[:, 2] > 0
    strong = [not absent(row, form.centring) for row in hkl[near].tolist()]
    got = {tuple(row) for row in found.hkl.tolist()}
    assert len(got) == len(found.hkl)
    missing = {tuple(row) for row in hkl[near][strong].tolist()} - got
    # What the search finds and the kernel does not is too weak to send a twentieth of a photon.
    structure = form.structure()
    for mate in missing:
        length = float(np.linalg.norm(np.array(mate) @ crystal.reciprocal))
        assert strength(mate, structure, length) < 1e-2 * float(structure.mean_intensity[0])
    direction = found.hkl @ crystal.reciprocal + np.array([0.0, 0.0, 1.0 / wavelength])
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    assert np.allclose(direction, found.direction)


def test_photons_grow_with_the_volume_and_the_fluence() -> None:
    form = EXPERIMENTS["lysozyme-8kev"].form
    beam = Beam(1.5, 1e-3, 1e-4, 1.0, 0.2)
    crystal = crystal_of(form, 1)
    twice = crystal._replace(volume_a3=2 * crystal.volume_a3)
    total = excited(crystal, beam, form.structure()).photons.sum()
    assert excited(twice, beam, form.structure()).photons.sum() == pytest.approx(
        2 * total, rel=0.01
    )


def test_rocking_a_crystal_through_the_sphere_gives_darwins_integrated_intensity() -> None:
    form = form_of()
    structure, wavelength, h = form.structure(), 1.5, 6
    s = h / form.cell[0]
    beam = Beam(wavelength, 0.0, 0.0, 0.0, s * 1.01)
    base = Crystal(np.eye(3), 1e12, 3000.0, 2e-4, 0.0, 1e3)
    theta = math.asin(s * wavelength / 2)
    angles = theta + np.linspace(-8e-3, 8e-3, 1601)
    total = 0.0
    for angle in angles:
        c, sn = math.cos(angle), math.sin(angle)
        # a* in the xz plane: it meets the sphere when it leans back by theta.
        turn = np.array([[c, 0, -sn], [0, 1, 0], [sn, 0, c]])
        found = excited(base._replace(reciprocal=form.reciprocal @ turn), beam, structure)
        total += found.photons[(found.hkl == [h, 0, 0]).all(axis=1)].sum()
    rocked = total * (angles[1] - angles[0])
    squared = squared_structure_factor(h, 0, 0, s, structure)
    darwin = 1e3 * (2.8179403205e-5 / form.volume_a3) ** 2 * wavelength**3 * 1e12 * squared
    darwin /= math.sin(2 * theta)
    assert rocked == pytest.approx(darwin, rel=0.01)
