"""Data parallelism: one training without labels on several devices, of one machine or several.

Several machines are joined by `jax.distributed.initialize()`, which every process calls before anything else; then
each runs the same script. The geometries of a batch are divided among processes and devices, parameters are
replicated on all, and XLA sums the gradient.
"""

from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qptlab.errors import InputError

Tree = TypeVar("Tree")


class Devices:
    """All devices of all processes that share a training.

    Attributes:
      batch_sharding: sharding of an array whose first axis runs over geometries.
      replicated_sharding: sharding of an array that is replicated on all devices.
      process: index of this process, and number of processes.
    """

    def __init__(self):
        mesh = Mesh(np.array(jax.devices()), ("geometries",))
        self.batch_sharding = NamedSharding(mesh, PartitionSpec("geometries"))
        self.replicated_sharding = NamedSharding(mesh, PartitionSpec())
        self.process = jax.process_index(), jax.process_count()

    @property
    def count(self) -> int:
        """Number of devices."""
        return jax.device_count()

    def check(self, name: str, geometries: int) -> None:
        """Raise an `InputError` if a number of geometries cannot be divided among the devices."""
        if geometries % self.count:
            raise InputError(
                f"Expected a {name} that can be divided among {self.count} devices, got {geometries} geometries; use "
                f"a multiple of {self.count}."
            )

    def stack_batch(self, trees: Sequence[Tree]) -> Tree:
        """Stack this process's part of a batch, one tree for each geometry, into arrays with `batch_sharding`."""
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
        sharding = self.batch_sharding
        if self.process[1] > 1:
            return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), stacked)
        return jax.device_put(stacked, sharding) if self.count > 1 else stacked

    def replicate(self, tree: Tree) -> Tree:
        """Copy a tree to all devices. All processes must pass the same tree."""
        if self.count == 1:
            return tree
        sharding = self.replicated_sharding
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)

    def to_first_device(self, tree: Tree) -> Tree:
        """Return a replicated tree on this process's first device."""
        return tree if self.count == 1 else jax.tree.map(lambda x: x.addressable_data(0), tree)

    def synchronise(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """Return the training time of the first process, and true if any process wants to stop.

        All processes get the same two values.
        """
        if self.process[1] == 1:
            return seconds, stop
        gathered = multihost_utils.process_allgather(np.array([seconds, stop]))
        return float(gathered[0, 0]), bool(gathered[:, 1].any())
