"""Data parallelism: one training on several devices, of one machine or several.

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
      split: sharding of an array whose first axis runs over geometries.
      whole: sharding of an array that is replicated on all devices.
      share: index of this process, and number of processes.
    """

    def __init__(self):
        mesh = Mesh(np.array(jax.devices()), ("geometries",))
        self.split, self.whole = (NamedSharding(mesh, PartitionSpec(*names)) for names in (("geometries",), ()))
        self.share = jax.process_index(), jax.process_count()

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

    def together(self, trees: Sequence[Tree]) -> Tree:
        """Stack this process's part of a batch, one tree for each geometry, into arrays with sharding `split`."""
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
        if self.share[1] > 1:
            return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.split, np.asarray(x)), stacked)
        return jax.device_put(stacked, self.split) if self.count > 1 else stacked

    def everywhere(self, tree: Tree) -> Tree:
        """Replicate a tree that is the same in all processes on all devices."""
        if self.count == 1:
            return tree
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.whole, np.asarray(x)), tree)

    def here(self, tree: Tree) -> Tree:
        """Return a replicated tree on this process's first device."""
        return tree if self.count == 1 else jax.tree.map(lambda x: x.addressable_data(0), tree)

    def agreed(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """Return the first process's clock, and true if any process wants to stop: the same in all processes."""
        if self.share[1] == 1:
            return seconds, stop
        gathered = multihost_utils.process_allgather(np.array([seconds, stop]))
        return float(gathered[0, 0]), bool(gathered[:, 1].any())
