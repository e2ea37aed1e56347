"""Work spread by Dask, in real workers on this machine."""

import functools

import numpy as np
import pytest
import tolerances as tol

import qptlab as ql
from qptlab.evaluation import labels
from qptlab.runtime import cluster

METHOD = ql.Method("hf", "sto-3g", eri="fitted")


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of Dask's sockets as a cluster ends
def test_labels_made_in_several_workers_are_those_made_here(tmp_path):
    home = ql.Molecule.from_name("water")
    rng = np.random.default_rng(0)
    mols = [home.with_positions(home.positions + 0.05 * rng.normal(size=home.positions.shape)) for _ in range(4)]
    radical = ql.Molecule.parse("[CH3]")  # cannot be labelled
    maker = functools.partial(labels.from_pyscf, method=METHOD)
    told = []
    with cluster.executor(cluster.LOCAL) as executor:
        done, found, _ = labels.label([*mols, radical], maker, tmp_path / "labels.xyz", told.append, executor)
    assert (told[0], told[-1], len(told)) == (0, 5, 6)
    assert done == mols
    for mol, label in zip(mols, found, strict=True):
        assert label.energy == pytest.approx(maker(mol).energy, abs=tol.SCF_ENERGY)
    assert len(labels.read(tmp_path / "labels.xyz")[0]) == 4


def test_an_address_where_nobody_answers_is_said():
    with pytest.raises(ql.InputError, match=r"Expected a Dask scheduler at tcp://127\.0\.0\.1:9, got no answer"), \
            cluster.executor("tcp://127.0.0.1:9"):
        pass
