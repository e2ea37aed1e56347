"""Electron repulsion on the device: the Coulomb and exchange matrices of a density.

Two forms behind one interface. `ExactRepulsion` holds (ij|kl) over pairs twice, ordered for Coulomb and for
exchange, so that each matrix is one product of a matrix with a vector (Raffenetti 1973,
doi:10.1016/0009-2614(73)80171-4). `FittedRepulsion` holds factors, (ij|kl) ≈ Σ_P B_P,ij·B_P,kl (density
fitting; Vahtras, Almlöf & Feyereisen 1993, doi:10.1016/0009-2614(93)89151-7).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

BLOCK_ELEMENTS = 2**20
"""Factors are unpacked so many elements at a time (8 MiB), which a processor's cache holds."""

TILE_ROWS = 1024
"""A symmetric matrix over pairs is held as the tiles of its lower triangle, with at most so many rows each."""


Tiles = Float[Array, "ntile rows rows"]
"""The lower triangle of a symmetric matrix over pairs, tile by tile; filled up with zeros."""


class ExactRepulsion(NamedTuple):
    """Exact integrals.

    Attributes:
      coul: (ij|kl) over pairs i ≥ j and k ≥ l, hartree.
      exch: ½[(ik|jl) + (il|jk)] in the same packing; None where no exact exchange is asked for.
    """

    coul: Tiles
    exch: Tiles | None

    def coulomb(self, dm: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
        """J_ij = Σ_kl (ij|kl)·D_kl, hartree."""
        return unpack(_multiply(self.coul, _pack_density(dm)))

    def exchange(
        self, dm: Float[Array, "nao nao"], orbitals: Float[Array, "nao nmo"] | None = None
    ) -> Float[Array, "nao nao"]:
        """K_ij = Σ_kl (ik|jl)·D_kl of a symmetric density, hartree.

        Args:
          dm: the density matrix.
          orbitals: not needed by this form.

        Raises:
          ValueError: if the integrals were made without exchange.
        """
        del orbitals
        if self.exch is None:
            raise ValueError("the integrals were made for a functional without exact exchange; one with it would do.")
        return unpack(_multiply(self.exch, _pack_density(dm)))


class FittedRepulsion(NamedTuple):
    """Density-fitted integrals.

    Attributes:
      cderi: factors over pairs i ≥ j, hartree^½.
    """

    cderi: Float[Array, "naux npair"]

    def coulomb(self, dm: Float[Array, "nao nao"]) -> Float[Array, "nao nao"]:
        """J, hartree; as `ExactRepulsion.coulomb`."""
        return unpack((self.cderi @ _pack_density(dm)) @ self.cderi)

    def exchange(
        self, dm: Float[Array, "nao nao"], orbitals: Float[Array, "nao nmo"] | None = None
    ) -> Float[Array, "nao nao"]:
        """K, hartree; as `ExactRepulsion.exchange`.

        Args:
          dm: the density matrix.
          orbitals: C with dm = C·Cᵀ, if known; cheaper, because there are fewer of them than AOs.
        """
        naux, nao = self.cderi.shape[0], len(dm)
        size = min(naux, max(1, BLOCK_ELEMENTS // nao**2))

        def add(total, start):
            first = jnp.minimum(start, naux - size)  # the last block overlaps the one before
            rows = jax.lax.dynamic_slice_in_dim(self.cderi, first, size)
            new = (first + jnp.arange(size) >= start)[:, None, None]
            factors = jnp.where(new, unpack(rows), 0.0)
            half = jnp.einsum("pij,jk->pik", factors, dm if orbitals is None else orbitals)
            return total + jnp.einsum("pik,pjk->ij", half, factors if orbitals is None else half), None

        return jax.lax.scan(add, jnp.zeros_like(dm), jnp.arange(0, naux, size))[0]


Repulsion = ExactRepulsion | FittedRepulsion


def exact(eri: Float[Array, " npack"], nao: int, *, exchange: bool) -> ExactRepulsion:
    """Integrals with eightfold symmetry, as libcint packs them, laid out for use.

    Args:
      eri: (ij|kl) over pairs of pairs ij ≥ kl, hartree.
      nao: number of atomic orbitals.
      exchange: whether exact exchange will be asked for.
    """
    npair = nao * (nao + 1) // 2
    rows, _ = tiling(npair)
    # Unsigned and as narrow as will do: each element costs a few index operations, and signs double their number.
    whole = np.uint32 if len(eri) < 2**31 else np.uint64
    first, second = (jnp.asarray(np.pad(index, (0, rows)), whole) for index in np.tril_indices(nao))
    row, col = (place.astype(whole)[:, None] * rows + jnp.arange(rows, dtype=whole) for place in _tile_places(npair))
    p, q = row[:, :, None], col[:, None, :]
    real = (p < npair) & (q < npair)
    (i, k), (j, l) = ([_at(index, pair) for index in (first, second)] for pair in (p, q))

    def integrals(i, j, k, l):
        return _at(eri, _triangle(_triangle(i, j), _triangle(k, l)))

    coul = jnp.where(real, integrals(i, k, j, l), 0.0)
    if not exchange:
        return ExactRepulsion(coul, None)
    return ExactRepulsion(coul, jnp.where(real, 0.5 * (integrals(i, j, k, l) + integrals(i, l, k, j)), 0.0))


def tiling(npair: int) -> tuple[int, int]:
    """Rows of a tile, and the number of tiles, of a symmetric matrix over pairs."""
    blocks = -(-npair // TILE_ROWS)
    return -(-npair // blocks), blocks * (blocks + 1) // 2


def _tile_places(npair):
    """Row and column of each tile, in blocks."""
    rows, _ = tiling(npair)
    return tuple(jnp.asarray(index) for index in np.tril_indices(-(-npair // rows)))


def _at(array, index):
    return array.at[index].get(mode="promise_in_bounds")


def _triangle(i, j):
    """Where (i, j) stands in a packed lower triangle."""
    high, low = jnp.maximum(i, j), jnp.minimum(i, j)
    return high * (high + 1) // 2 + low


def _multiply(tiles, vector):
    """The whole symmetric matrix times a vector: a tile off the diagonal counts as its transpose too."""
    rows = tiles.shape[-1]
    padded = jnp.pad(vector, (0, -len(vector) % rows)).reshape(-1, rows)

    def add(total, given):
        tile, row, col = given
        total = total.at[row].add(tile @ padded[col])
        return total.at[col].add(jnp.where(row == col, 0.0, 1.0) * (padded[row] @ tile)), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(padded), (tiles, *_tile_places(len(vector))))
    return total.reshape(-1)[: len(vector)]


def fitted(int3c: Float[Array, "naux npair"], int2c: Float[Array, "naux naux"]) -> FittedRepulsion:
    """Factors from (P|ij) and the Coulomb metric (P|Q), hartree."""
    return FittedRepulsion(jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(int2c), int3c, lower=True))


def unpack(packed: Float[Array, "*batch npair"]) -> Float[Array, "*batch nao nao"]:
    """Symmetric matrices from their lower triangles."""
    nao = int(np.sqrt(2 * packed.shape[-1]))
    return packed[..., _pair_index(nao)]


def _pack_density(dm):
    """The lower triangle with off-diagonal elements doubled: what a sum over pairs wants."""
    rows, cols = np.tril_indices(len(dm))
    return jnp.where(rows == cols, 1.0, 2.0) * 0.5 * (dm + dm.T)[rows, cols]


def _pair_index(nao):
    index = np.zeros((nao, nao), dtype=np.int32)
    rows, cols = np.tril_indices(nao)
    index[rows, cols] = index[cols, rows] = np.arange(len(rows))
    return index
