"""Memory that this process may use, on the host and on its device."""

import functools
import os
import pathlib

import jax

CONTAINER_LIMITS = [pathlib.Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory/memory.limit_in_bytes")]
"""Files in which Linux states a container's memory limit: control groups of version 2 and of version 1."""


def allowed_bytes() -> int:
    """Return the memory of this machine, or the limit that JupyterHub or a container sets, in bytes."""
    limits = [os.environ.get("MEM_LIMIT", ""), *(path.read_text() for path in CONTAINER_LIMITS if path.exists())]
    numbers = [int(text) for text in limits if text.strip().isdigit()]  # "max" means no limit
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *numbers])


@functools.cache
def memory_bytes() -> int:
    """Return the memory that integrals may take, in bytes: half of `allowed_bytes`."""
    return allowed_bytes() // 2


def device_bytes() -> int:
    """Return the memory that arrays of a device may take, bytes: half of JAX's limit; on a CPU, that of the host."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return memory_bytes() if limit is None else int(limit) // 2
