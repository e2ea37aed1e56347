"""Bond lengths and torsions."""

import cases
import numpy as np
import pytest

import qptlab as ql
from qptlab.system.coordinates import coordinates, moved, value


def named(mol, label):
    return next(each for each in coordinates(mol) if each.label == label)


def test_values_are_those_of_ase():
    mol = cases.molecule("ethanol")
    atoms = mol.to_ase()
    found = coordinates(mol)
    assert {len(each.atoms) for each in found} == {2, 4}
    for each in found:
        if len(each.atoms) == 2:
            assert value(mol, each) == pytest.approx(atoms.get_distance(*each.atoms))
        else:
            turned = (value(mol, each) - atoms.get_dihedral(*each.atoms)) % 360
            assert min(turned, 360 - turned) < 1e-6


@pytest.mark.parametrize("wanted", [-170.0, 0.0, 33.0, 180.0])
def test_a_torsion_moves_one_side_and_leaves_every_bond_as_it_is(wanted):
    mol = cases.molecule("ethanol")
    torsion = next(each for each in coordinates(mol) if each.unit == "°")
    turned = moved(mol, torsion, wanted)
    assert np.cos(np.radians(value(turned, torsion) - wanted)) == pytest.approx(1)
    for bond in (each for each in coordinates(mol) if each.unit == "Å"):
        assert value(turned, bond) == pytest.approx(value(mol, bond))
    still = sorted(set(range(9)) - set(torsion.movers))
    np.testing.assert_array_equal(turned.positions[still], mol.positions[still])


def test_a_bond_takes_its_fragment_along():
    mol = cases.molecule("ethanol")
    bond = next(each for each in coordinates(mol) if each.unit == "Å" and len(each.movers) > 1)
    longer = moved(mol, bond, 2.0)
    assert value(longer, bond) == pytest.approx(2.0)
    part = list(bond.movers)
    np.testing.assert_allclose(longer.positions[part] - longer.positions[part[0]],
                               mol.positions[part] - mol.positions[part[0]], atol=1e-9)


def test_a_ring_has_no_coordinates_of_its_own_and_impossible_values_are_refused():
    benzene = ql.Molecule.from_name("benzene")
    assert all(1 in [len(each.movers)] and "H" in each.label for each in coordinates(benzene))
    with pytest.raises(ql.InputError, match=r"Expected a bond length of 0\.5 to 4\.0 Å, got 9 Å"):
        moved(benzene, coordinates(benzene)[0], 9.0)
