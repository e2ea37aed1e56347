"""Two-electron integrals in JAX: Coulomb and exchange matrices of a density matrix.

There are two forms with one interface. `ExactRepulsion` stores (ij|kl) over pairs twice, ordered for Coulomb and for
exchange, so that each matrix is one product of a matrix with a vector (Raffenetti 1973,
doi:10.1016/0009-2614(73)80171-4). `FittedRepulsion` stores the factors of (ij|kl) ≈ Σ_P B_P,ij·B_P,kl (density
fitting; Vahtras, Almlöf & Feyereisen 1993, doi:10.1016/0009-2614(93)89151-7).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BLOCK_ELEMENTS = 2**20
"""Number of elements of the factors that are unpacked at a time (8 MiB), so that they stay in a processor's cache."""

TILE_ROWS = 1024
"""Largest number of rows of a tile. The tiles of its lower triangle represent a symmetric matrix over pairs."""

Tiles = Float[Array, "ntile rows rows"]
"""Lower triangle of a symmetric matrix over pairs, tile by tile, padded with zeros."""


class ExactRepulsion(NamedTuple):
    """Exact two-electron integrals.

    Attributes:
      coul: integrals (ij|kl) over pairs i ≥ j and k ≥ l, hartree; None for those of erf(ωr)/r.
      exch: ½[(ik|jl) + (il|jk)] over the same pairs, hartree; None if the functional has no exact exchange.
    """

    coul: Tiles | None
    exch: Tiles | None

    def coulomb(self, dm: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
        """Return the Coulomb matrix J_ij = Σ_kl (ij|kl)·D_kl, hartree."""
        return unpack(_multiply(self._coulomb_tiles, pack_density(dm)))

    @property
    def _coulomb_tiles(self) -> Tiles:
        if self.coul is None:
            raise ValueError("Expected integrals for the Coulomb matrix, got those of long-range exchange.")
        return self.coul

    def exchange(
        self, dm: Float[Array, "nao nao"], orbitals: Float[Array, "nao nmo"] | None = None
    ) -> Float[Array, "nao nao"]:
        """Return the exchange matrix K_ij = Σ_kl (ik|jl)·D_kl, hartree.

        Args:
          dm: symmetric density matrix, electrons per AO pair.
          orbitals: not used; an argument because density-fitted integrals use it.

        Raises:
          ValueError: if the integrals have no exchange.
        """
        del orbitals
        if self.exch is None:
            raise ValueError(
                "Expected integrals with exact exchange, got integrals without; use a method whose functional has "
                "exact exchange."
            )
        return unpack(_multiply(self.exch, pack_density(dm)))

    def diagonal(self, nao: int) -> Float[Array, "nao nao"]:
        """Return the repulsion (ii|jj) of the densities of two atomic orbitals, hartree.

        Args:
          nao: number of atomic orbitals.
        """
        pair = np.arange(nao) * (np.arange(nao) + 3) // 2
        high, low = np.maximum(pair[:, None], pair), np.minimum(pair[:, None], pair)
        tiles = self._coulomb_tiles
        rows = tiles.shape[-1]
        block, other = high // rows, low // rows
        return tiles[block * (block + 1) // 2 + other, high % rows, low % rows]


class FittedRepulsion(NamedTuple):
    """Density-fitted two-electron integrals.

    Attributes:
      cderi: factors B over pairs i ≥ j, hartree^½.
    """

    cderi: Float[Array, "naux npair"]

    def coulomb(self, dm: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
        """Return the Coulomb matrix J_ij = Σ_kl (ij|kl)·D_kl, hartree."""
        return unpack((self.cderi @ pack_density(dm)) @ self.cderi)

    def exchange(
        self, dm: Float[Array, "nao nao"], orbitals: Float[Array, "nao nmo"] | None = None
    ) -> Float[Array, "nao nao"]:
        """Return the exchange matrix K_ij = Σ_kl (ik|jl)·D_kl, hartree.

        Args:
          dm: symmetric density matrix, electrons per AO pair; the derivative is taken with respect to it.
          orbitals: orbitals C with dm = C·Cᵀ, if they are known. They are fewer than the AOs, and make this cheaper.
        """
        if orbitals is None:
            return _fitted_exchange(self.cderi, dm, None)
        return _exchange_of_orbitals(self.cderi, dm, orbitals)

    def diagonal(self, nao: int) -> Float[Array, "nao nao"]:
        """Return the repulsion (ii|jj) of the densities of two atomic orbitals, hartree.

        Args:
          nao: number of atomic orbitals.
        """
        factors = self.cderi[:, np.arange(nao) * (np.arange(nao) + 3) // 2]
        return factors.T @ factors


def _fitted_exchange(
    cderi: Float[Array, "naux npair"], dm: Float[Array, "nao nao"], orbitals: Float[Array, "nao nmo"] | None
) -> Float[Array, "nao nao"]:
    naux, nao = cderi.shape[0], len(dm)
    size = min(naux, max(1, BLOCK_ELEMENTS // nao**2))

    def add(total, start):
        first = jnp.minimum(start, naux - size)  # the last block overlaps the block before it
        rows = jax.lax.dynamic_slice_in_dim(cderi, first, size)
        is_new = (first + jnp.arange(size) >= start)[:, None, None]
        factors = jnp.where(is_new, unpack(rows), 0.0)
        half = jnp.einsum("pij,jk->pik", factors, dm if orbitals is None else orbitals)
        return total + jnp.einsum("pik,pjk->ij", half, factors if orbitals is None else half), None

    return jax.lax.scan(add, jnp.zeros_like(dm), jnp.arange(0, naux, size))[0]


@jax.custom_vjp
def _exchange_of_orbitals(
    cderi: Float[Array, "naux npair"], dm: Float[Array, "nao nao"], orbitals: Float[Array, "nao nmo"]
) -> Float[Array, "nao nao"]:
    """Return the exchange matrix from orbitals. It is linear in the density matrix, which carries the derivative."""
    return _fitted_exchange(cderi, dm, orbitals)


def _exchange_forward(cderi, dm, orbitals):
    return _fitted_exchange(cderi, dm, orbitals), (cderi, dm)


def _exchange_backward(residuals, bar):
    _, pull_back = jax.vjp(lambda cderi, dm: _fitted_exchange(cderi, dm, None), *residuals)
    return *pull_back(bar), None


_exchange_of_orbitals.defvjp(_exchange_forward, _exchange_backward)


Repulsion = ExactRepulsion | FittedRepulsion


def exact(eri: Float[Array, " npack"], nao: int, *, coulomb: bool = True, exchange: bool) -> ExactRepulsion:
    """Arrange the integrals that libcint packs with eightfold symmetry for Coulomb and exchange matrices.

    Args:
      eri: (ij|kl) over pairs of pairs ij ≥ kl, hartree.
      nao: number of atomic orbitals.
      coulomb: if true, arrange them for Coulomb matrices.
      exchange: if true, arrange them for exact exchange.
    """
    npair = nao * (nao + 1) // 2
    rows, _ = tiling(npair)
    # Unsigned and as narrow as possible: each element costs a few index operations, and signs double their number.
    dtype = np.uint32 if len(eri) < 2**31 else np.uint64
    first, second = (jnp.asarray(np.pad(index, (0, rows)), dtype) for index in np.tril_indices(nao))
    row, col = (block.astype(dtype)[:, None] * rows + jnp.arange(rows, dtype=dtype) for block in _tile_blocks(npair))
    p, q = row[:, :, None], col[:, None, :]
    is_pair = (p < npair) & (q < npair)
    (i, k), (j, l) = ([_at(index, pair) for index in (first, second)] for pair in (p, q))

    def integrals(i, j, k, l):
        return _at(eri, _triangle(_triangle(i, j), _triangle(k, l)))

    return ExactRepulsion(
        jnp.where(is_pair, integrals(i, k, j, l), 0.0) if coulomb else None,
        jnp.where(is_pair, 0.5 * (integrals(i, j, k, l) + integrals(i, l, k, j)), 0.0) if exchange else None,
    )


def tiling(npair: int) -> tuple[int, int]:
    """Return the number of rows of a tile, and the number of tiles, of a symmetric matrix over pairs."""
    blocks = -(-npair // TILE_ROWS)
    return -(-npair // blocks), blocks * (blocks + 1) // 2


def _tile_blocks(npair: int) -> tuple[Int[Array, " ntile"], ...]:
    """Return the block row and the block column of each tile."""
    rows, _ = tiling(npair)
    return tuple(jnp.asarray(index) for index in np.tril_indices(-(-npair // rows)))


def _at(array: Array, index: Array) -> Array:
    """Return elements of an array; all indices are valid, so that no check is compiled."""
    return array.at[index].get(mode="promise_in_bounds")


def _triangle(i: Array, j: Array) -> Array:
    """Return the index of (i, j) in a packed lower triangle."""
    high, low = jnp.maximum(i, j), jnp.minimum(i, j)
    return high * (high + 1) // 2 + low


def _multiply(tiles: Tiles, vector: Float[Array, " npair"]) -> Float[Array, " npair"]:
    """Return a symmetric matrix times a vector; a tile off the diagonal counts twice, once transposed."""
    rows = tiles.shape[-1]
    padded = jnp.pad(vector, (0, -len(vector) % rows)).reshape(-1, rows)

    def add(total, inputs):
        tile, row, col = inputs
        total = total.at[row].add(tile @ padded[col])
        return total.at[col].add(jnp.where(row == col, 0.0, 1.0) * (padded[row] @ tile)), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(padded), (tiles, *_tile_blocks(len(vector))))
    return total.reshape(-1)[: len(vector)]


def fitted(int3c: Float[Array, "naux npair"], int2c: Float[Array, "naux naux"]) -> FittedRepulsion:
    """Return density-fitted integrals.

    Args:
      int3c: three-centre integrals (P|ij), hartree.
      int2c: Coulomb metric (P|Q), hartree.
    """
    return FittedRepulsion(jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(int2c), int3c, lower=True))


def unpack(packed: Float[Array, "*batch npair"]) -> Float[Array, "*batch nao nao"]:
    """Return symmetric matrices from their packed lower triangles."""
    nao = int(np.sqrt(2 * packed.shape[-1]))
    return packed[..., _pair_index(nao)]


def pack_density(dm: Float[Array, "nao nao"]) -> Float[Array, " npair"]:
    """Return the lower triangle with off-diagonal elements doubled, as a sum over pairs needs it."""
    rows, cols = np.tril_indices(len(dm))
    return jnp.where(rows == cols, 1.0, 2.0) * 0.5 * (dm + dm.T)[rows, cols]


def _pair_index(nao: int) -> Int[np.ndarray, "nao nao"]:
    index = np.zeros((nao, nao), dtype=np.int32)
    rows, cols = np.tril_indices(nao)
    index[rows, cols] = index[cols, rows] = np.arange(len(rows))
    return index
