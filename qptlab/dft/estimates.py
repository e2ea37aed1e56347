"""How long an SCF will take, before it runs: counted work at rates that are measured here, once."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp

from qptlab.dft import integrals
from qptlab.dft.integrals import Template
from qptlab.system.molecule import Molecule

CYCLES = 10
"""That DIIS needs for an ordinary molecule."""

MATRIX = 512
"""Size of the matrices whose product says how fast arithmetic is here."""

EFFICIENCY = 0.3
"""Share of that rate which Fock builds of small molecules reach (`benchmarks/results/step.md`)."""


def scf_seconds(template: Template) -> float:
    """Seconds that an SCF will take, compiled before; good to a factor of some three."""
    host = _integral_count(template) * _seconds_per_integral(template.eri, template.method)
    return host + CYCLES * fock_operations(template) / (EFFICIENCY * _rate())


def fock_operations(template: Template) -> float:
    """Floating-point operations of one Fock build: Coulomb, exchange, and the density on the grid and back."""
    nao, naux, nocc = template.nao, template.naux, sum(template.occupied)
    npair = nao * (nao + 1) // 2
    grid = 4 * nao**2 * template.ngrids
    if template.eri == "fitted":
        # Coulomb: two products with all factors; exchange: each factor times the orbitals, and that with itself.
        return 4 * naux * npair + 4 * naux * nao**2 * nocc + grid
    return 2 * 2 * npair**2 + grid


def _integral_count(template):
    npair = template.nao * (template.nao + 1) // 2
    return template.naux * npair if template.eri == "fitted" else npair * (npair + 1) // 2


@functools.lru_cache(maxsize=16)
def _seconds_per_integral(eri, method) -> float:
    """Of methane in the same basis: its integrals take milliseconds."""
    mol = Molecule.from_name("methane")
    probe = integrals.template(mol, dataclasses.replace(method, eri=eri))
    probe.host_integrals(mol.positions)
    began = time.perf_counter()
    probe.host_integrals(mol.positions, threads=None)
    return (time.perf_counter() - began) / _integral_count(probe)


@functools.cache
def _rate() -> float:
    """Operations per second of a product of matrices."""
    matrix = jnp.ones((MATRIX, MATRIX))
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    began = time.perf_counter()
    product(matrix, matrix).block_until_ready()
    return 2 * MATRIX**3 / (time.perf_counter() - began)
