"""One training over several devices, on one machine or many: geometries are shared out, parameters are everywhere.

Many machines are joined by `jax.distributed.initialize()`, called before anything else in every process; then each
runs the same script. A batch's geometries, and what is made for them, are divided among processes and devices; the
gradient is summed over all by XLA (data parallelism).
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
    """All devices of all processes, as a training sees them.

    Attributes:
      split: how an array whose first axis is the geometries lies on them.
      whole: how an array lies that all of them have.
    """

    def __init__(self):
        mesh = Mesh(np.array(jax.devices()), ("geometries",))
        self.split, self.whole = (NamedSharding(mesh, PartitionSpec(*names)) for names in (("geometries",), ()))
        self.share = jax.process_index(), jax.process_count()

    @property
    def count(self) -> int:
        """How many there are."""
        return jax.device_count()

    def check(self, name: str, geometries: int) -> None:
        """Raise an `InputError` if so many geometries cannot be divided among the devices."""
        if geometries % self.count:
            raise InputError(
                f"a {name} of {geometries} geometries cannot be divided among {self.count} devices; a multiple of "
                f"{self.count} would do."
            )

    def together(self, trees: Sequence[Tree]) -> Tree:
        """What this process has of a batch, one for each geometry, as arrays that lie `split` over all devices."""
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
        if self.share[1] > 1:
            return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.split, np.asarray(x)), stacked)
        return jax.device_put(stacked, self.split) if self.count > 1 else stacked

    def everywhere(self, tree: Tree) -> Tree:
        """What all processes have alike, on all devices."""
        if self.count == 1:
            return tree
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.whole, np.asarray(x)), tree)

    def here(self, tree: Tree) -> Tree:
        """What lies everywhere, on this process's first device alone."""
        return tree if self.count == 1 else jax.tree.map(lambda x: x.addressable_data(0), tree)

    def agreed(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """The first process's clock, and whether any process wants to stop: the same answer in all."""
        if self.share[1] == 1:
            return seconds, stop
        found = multihost_utils.process_allgather(np.array([seconds, stop]))
        return float(found[0, 0]), bool(found[:, 1].any())
