"""Estimates of the time that an SCF will take: counted operations at rates that are measured on this machine once."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp

from qptlab.dft import integrals
from qptlab.dft.integrals import Template
from qptlab.system.method import Method
from qptlab.system.molecule import Molecule

CYCLES = 10
"""Cycles that DIIS needs for an ordinary molecule."""

MATRIX = 512
"""Size of the matrices whose product measures the rate of arithmetic."""

EFFICIENCY = 0.3
"""Share of this rate that Fock builds of small molecules reach (`benchmarks/results/step.md`)."""


def scf_seconds(template: Template) -> float:
    """Return the estimated time of an SCF, without compilation, s. The estimate is right to a factor of about three.

    Args:
      template: molecule and method.
    """
    host = _integral_count(template) * _seconds_per_integral(template.eri, template.method)
    return host + CYCLES * fock_operations(template) / (EFFICIENCY * _rate())


def fock_operations(template: Template) -> float:
    """Return the number of floating-point operations of one Fock build: Coulomb, exchange and grid.

    Args:
      template: molecule and method.
    """
    nao, naux, nocc = template.nao, template.naux, sum(template.occupied)
    npair = nao * (nao + 1) // 2
    grid = 4 * nao**2 * template.ngrids
    exchanges = 2 if template.layout.omega else 1
    if template.eri == "fitted":
        # Coulomb: two products with all factors. Exchange: each factor times the orbitals, and this product with
        # itself.
        return 4 * naux * npair + exchanges * 4 * naux * nao**2 * nocc + grid
    return (1 + exchanges) * 2 * npair**2 + grid


def _integral_count(template: Template) -> int:
    npair = template.nao * (template.nao + 1) // 2
    each = template.naux * npair if template.eri == "fitted" else npair * (npair + 1) // 2
    return each * (2 if template.layout.omega else 1)


@functools.lru_cache(maxsize=16)
def _seconds_per_integral(eri: str, method: Method) -> float:
    """Return the time per two-electron integral, measured for methane in the same basis within milliseconds, s."""
    mol = Molecule.from_name("methane")
    probe = integrals.template(mol, dataclasses.replace(method, eri=eri))
    probe.host_integrals(mol.positions)
    start = time.perf_counter()
    probe.host_integrals(mol.positions, threads=None)
    return (time.perf_counter() - start) / _integral_count(probe)


@functools.cache
def _rate() -> float:
    """Return the measured rate of a product of matrices, operations per second."""
    matrix = jnp.ones((MATRIX, MATRIX))
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    start = time.perf_counter()
    product(matrix, matrix).block_until_ready()
    return 2 * MATRIX**3 / (time.perf_counter() - start)
