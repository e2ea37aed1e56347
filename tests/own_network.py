"""A user's own network, outside of the package: the how-to guide shows this file."""

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp

import qptlab as ql


@dataclasses.dataclass(frozen=True)
class PairConfig(ql.CorrectionConfig):
    """Settings of the network; `iterations`, `guess` and `scheme` are inherited."""

    width: int = 16


def pair_network(features: ql.Features, config: PairConfig, vocabulary: tuple[str, ...]) -> jax.Array:
    """Return a correction of the guess's Fock matrix, hartree: an MLP on each pair of atomic orbitals."""
    kinds = hk.Embed(len(vocabulary), config.width)(features.kinds)  # [nao, width]
    pairs = kinds[:, None] * kinds  # [nao, nao, width]
    inputs = jnp.concatenate([pairs, jnp.moveaxis(features.biases, 0, -1)], axis=-1)
    hidden = jax.nn.silu(hk.Linear(config.width)(inputs))
    factor = hk.Linear(1, w_init=jnp.zeros)(hidden)[..., 0]
    return factor * features.fock_guess


ql.register_network("pair-mlp", PairConfig, pair_network)

if __name__ == "__main__":
    water = ql.Molecule.from_name("water")
    trainer = ql.Trainer(water, ql.Method("pbe", "sto-3g"), PairConfig(width=32), ql.TrainConfig(minutes=1))
    trainer.run()
    print(ql.evaluate(ql.load(trainer.out), [water]))
