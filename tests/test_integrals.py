"""Integrals: what libcint makes and what the device adds."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tolerances as tol

import qptlab as ql
from qptlab.dft import libcint
from qptlab.dft.integrals import build_integrals, template
from qptlab.evaluation import reference
from qptlab.runtime import memory
from qptlab.units import HARTREE_MEV


@pytest.mark.parametrize(
    ("name", "basis"), [("water", "def2-svp"), ("ethanol", "sto-3g"), ("ethanol", "def2-svp"), ("benzene", "sto-3g")]
)
def test_guess_density_is_pyscfs_minao(name, basis):
    method = ql.Method("pbe", basis)
    mf = cases.rks(cases.molecule(name), method)
    np.testing.assert_allclose(cases.ints(name, method).dm_guess, mf.get_init_guess(), atol=tol.ROUNDING)


def test_guess_covers_metals_and_heavier_elements():
    for symbol, basis in (("Zn", "def2-svp"), ("Ar", "sto-3g"), ("Kr", "def2-svp")):
        atom = ql.Molecule((symbol,), np.zeros((1, 3)))
        method = ql.Method("lda", basis, grid_level=0)
        found = build_integrals(atom, method)
        np.testing.assert_allclose(found.dm_guess, cases.rks(atom, method).get_init_guess(), atol=1e-8)


def test_one_template_serves_every_geometry_of_its_molecule():
    method = ql.Method("pbe", "sto-3g", grid_level=0)
    moved = cases.molecule("ethanol", displaced=0.1)
    shared = cases.prepared("ethanol", method).build(moved.positions)
    mf = cases.rks(moved, method)
    np.testing.assert_allclose(shared.overlap, mf.get_ovlp(), atol=tol.ROUNDING)
    np.testing.assert_allclose(shared.hcore, mf.get_hcore(), atol=tol.ROUNDING)
    assert float(shared.e_nuc) == pytest.approx(mf.energy_nuc(), abs=tol.ROUNDING)
    assert template(moved, method) is cases.prepared("ethanol", method)


def test_orthogonaliser_makes_orbitals_orthonormal():
    ints = cases.ints("water", ql.Method("pbe", "def2-svp", grid_level=0))
    x = np.asarray(ints.orthogonaliser)
    np.testing.assert_allclose(x.T @ np.asarray(ints.overlap) @ x, np.eye(ints.nao), atol=tol.ROUNDING)


def test_small_molecules_are_exact_and_larger_ones_fitted_unless_asked_otherwise():
    def chosen(name, basis, eri="auto", **more):
        return template(ql.Molecule.from_name(name), ql.Method("pbe", basis, eri=eri, **more))

    assert chosen("ethanol", "def2-svp").eri == "exact"
    assert chosen("uracil", "sto-3g").eri == "exact"
    assert chosen("uracil", "def2-svp").eri == "fitted"
    assert chosen("uracil", "def2-svp", "exact").eri == "exact"
    assert chosen("water", "sto-3g", auxbasis="weigend").eri == "fitted"


def test_a_batch_of_geometries_is_completed_at_once():
    method = ql.Method("pbe", "sto-3g", grid_level=0, eri="fitted")
    prepared = cases.prepared("water", method)
    hosts = [prepared.host_integrals(cases.molecule("water", d).positions) for d in (0.0, 0.1)]
    together = jax.vmap(prepared.complete)(jax.tree.map(lambda *leaves: np.stack(leaves), *hosts))
    for index, host in enumerate(hosts):
        alone = prepared.complete(host)
        for name in ("hcore", "dm_guess", "weights", "aos"):
            np.testing.assert_allclose(getattr(together, name)[index], getattr(alone, name), atol=tol.ROUNDING)


@pytest.mark.parametrize(
    ("name", "basis", "eri"),
    [("water", "6-31g*", "exact"), ("water", "6-31g*", "fitted"), ("AgH", "lanl2dz", "exact")],
)
def test_reverse_derivative_of_every_integral_equals_finite_differences(name, basis, eri):
    """Of a random combination of all that libcint makes, along a random displacement."""
    prepared = cases.prepared(name, ql.Method("cam-b3lyp", basis, eri=eri, grid_level=0))
    start = cases.molecule(name).positions
    rng = np.random.default_rng(0)
    direction = rng.normal(size=start.shape)
    weights = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), prepared.host_integrals(start))
    if eri == "fitted":
        for fitted in (weights.eri, weights.long_range):
            fitted[1][:] = np.tril(fitted[1])  # libcint gives a symmetric metric; any weight of it will do

    def along(step):
        found = prepared.host_integrals(start + step * direction)
        return sum(np.sum(w * leaf) for w, leaf in zip(jax.tree.leaves(weights), jax.tree.leaves(found), strict=True))

    slope = np.sum(libcint.pull_back(prepared._moles.at(start), weights) * direction)
    assert slope == pytest.approx(cases.slope_by_differences(along, 1e-3), rel=tol.FINITE_DIFFERENCE)


@pytest.mark.parametrize(
    ("name", "method", "said"),
    [
        ("water", {"basis": "no-such-basis"}, "PySCF's basis sets as basis, got 'no-such-basis'; use sto-3g"),
        ("water", {"basis": "cc-pvqz"}, "beyond f"),
        ("O", {"basis": "def2-svp-jfit"}, "lacks the core orbitals of element O"),
        ("O", {"basis": "bfd-vdz"}, "lacks the core orbitals of element O"),
        ("C", {"basis": "ccecp-ccpvdz"}, "lacks the core orbitals of element C"),
        ("[Ag]", {"basis": "aug-cc-pvdz-pp"}, "lacks the core orbitals of element Ag"),
        ("[I]", {"basis": "ccecp-ccpvdz"}, "lacks the core orbitals of element I:"),
        ("[Sc]", {"basis": "crenbs"}, "all occupied shells of the free atom, got a core of 18 electrons"),
        ("Br", {"basis": "6-31+g*"}, r"PySCF's library for element Br, got '6-31\+g\*', which lacks it"),
        ("water", {"auxbasis": "no-such-fit"}, "PySCF's basis sets as auxiliary basis, got 'no-such-fit'; use def2"),
        ("[Ti]", {"auxbasis": "cc-pvdz-jkfit"}, "library for element Ti, got 'cc-pvdz-jkfit', which lacks it"),
    ],
)
@pytest.mark.filterwarnings("ignore:.* is read with [1-3] unpaired electrons")
def test_unusable_bases_are_refused_with_one_sentence(name, method, said):
    with pytest.raises(ql.InputError, match=said) as caught:
        template(ql.Molecule.parse(name), ql.Method("pbe", **method))
    assert "\n" not in str(caught.value)


def test_an_even_tempered_fit_has_a_smaller_error_than_the_default():
    """All are energies of one density."""
    mol = ql.Molecule.from_smiles("CC#N")
    dm = jnp.asarray(reference.converged(mol, ql.Method("b3lyp", "def2-svp", 0)).dm)
    exact, default, finer = (
        float(ql.energy(dm, template(mol, method).build(mol.positions))) for method in (
            ql.Method("b3lyp", "def2-svp", 0, eri="exact"), ql.Method("b3lyp", "def2-svp", 0, eri="fitted"),
            ql.Method("b3lyp", "def2-svp", 0, auxbasis="etb-1.8"),
        )
    )
    assert abs(finer - exact) * HARTREE_MEV < 0.1
    assert 0.4 < abs(default - exact) * HARTREE_MEV < 1


@pytest.mark.parametrize("ratio", ["etb-1.2", "etb-0", "etb-1.8e3", "etb-", "etb-9", "etb-1.8;x", " etb-1.8"])
def test_other_ratios_and_texts_are_no_even_tempered_basis(ratio):
    with pytest.raises(ql.InputError, match="as auxiliary basis, got"):
        ql.Method(auxbasis=ratio)


@pytest.mark.parametrize(("eri", "alternative"), [("exact", "use eri='fitted'"), ("fitted", "a smaller basis")])
def test_what_would_not_fit_is_refused_with_its_size_before_memory_is_taken(monkeypatch, eri, alternative):
    monkeypatch.setattr(memory, "memory_bytes", lambda: 2**29)
    with pytest.raises(ql.InputError, match=rf"at most .* GiB, half .* take .* GiB; .*{alternative}"):
        template(cases.molecule("alanine dipeptide"), ql.Method("pbe", "def2-tzvp", eri=eri))


def test_memory_is_what_a_container_or_jupyterhub_allows(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CONTAINER_LIMITS", [limit, tmp_path / "none"])
    monkeypatch.delenv("MEM_LIMIT", raising=False)
    allowed = memory.memory_bytes.__wrapped__
    limit.write_text("max\n")
    machine = allowed()
    limit.write_text(f"{2**30}\n")
    assert allowed() == 2**29 < machine
    monkeypatch.setenv("MEM_LIMIT", str(2**28))
    assert allowed() == 2**27


def test_estimate_of_memory_holds_what_is_made():
    for name, xc, basis, eri in (
        ("ethanol", "b3lyp", "def2-svp", "exact"), ("water", "pbe", "def2-svp", "fitted"),
        ("ethanol", "cam-b3lyp", "def2-svp", "exact"), ("water", "cam-b3lyp", "def2-svp", "fitted"),
    ):
        method = ql.Method(xc, basis, eri=eri, grid_level=0)
        ints = build_integrals(cases.molecule(name), method)
        held = sum(leaf.nbytes for leaf in jax.tree.leaves((ints.repulsion, ints.long_range, ints.aos)))
        assert 0.4 * cases.prepared(name, method).nbytes < held < 1.1 * cases.prepared(name, method).nbytes


def test_a_basis_with_fewer_independent_orbitals_than_the_electrons_need_is_refused():
    prepared = template(ql.Molecule(("He",) * 2, np.array([[0.0, 0, 0], [0, 0, 2]])), ql.Method("hf", "sto-3g"))
    with pytest.raises(ql.InputError, match="linearly dependent at this geometry of 2 atoms: 1 of 2 orbitals"):
        prepared.host_integrals(np.array([[0.0, 0, 0], [0, 0, 1e-4]]))


def test_positions_of_another_molecule_are_refused():
    prepared = cases.prepared("water", ql.Method("pbe", "sto-3g", grid_level=0))
    with pytest.raises(ql.InputError, match=r"\(4, 3\)"):
        prepared.host_integrals(np.zeros((4, 3)))


@pytest.mark.parametrize("eri", ["exact", "fitted"])
@pytest.mark.parametrize("name", ["water", "ethanol"])
def test_coulomb_and_exchange_matrices_are_pyscfs(name, eri):
    """Ethanol's pairs fill more than one tile, and its factors more than one block."""
    method = ql.Method("hf", "def2-svp", eri=eri)
    mol, ints = cases.molecule(name), cases.ints(name, method)
    dm = cases.random_density(mol, method)
    coul, exch = cases.rks(mol, method).get_jk(dm=dm)
    np.testing.assert_allclose(ints.repulsion.coulomb(jnp.asarray(dm)), coul, atol=tol.FOCK_OF_DENSITY)
    np.testing.assert_allclose(ints.repulsion.exchange(jnp.asarray(dm)), exch, atol=tol.FOCK_OF_DENSITY)
    values, vectors = np.linalg.eigh(dm)
    factor = jnp.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))
    by_orbitals = ints.repulsion.exchange(jnp.asarray(dm), factor)
    np.testing.assert_allclose(by_orbitals, exch, atol=1e-10)


@pytest.mark.parametrize("eri", ["exact", "fitted"])
def test_long_range_exchange_matrices_are_pyscfs(eri):
    method = ql.Method("cam-b3lyp", "def2-svp", eri=eri, grid_level=0)
    mol, ints = cases.molecule("water"), cases.ints("water", method)
    dm = cases.random_density(mol, method)
    exch = cases.rks(mol, method).get_k(dm=dm, omega=0.33)
    np.testing.assert_allclose(ints.long_range.exchange(jnp.asarray(dm)), exch, atol=tol.FOCK_OF_DENSITY)


def test_exchange_and_coulomb_matrices_that_were_not_made_are_not_invented():
    ints = cases.ints("water", ql.Method("lc-blyp", "sto-3g", eri="exact"))
    with pytest.raises(ValueError, match="Expected integrals with exact exchange, got integrals without"):
        ints.repulsion.exchange(ints.dm_guess)
    with pytest.raises(ValueError, match="Expected integrals for the Coulomb matrix, got those of long-range"):
        ints.long_range.coulomb(ints.dm_guess)
