"""Memory that this process may use."""

import functools
import os
import pathlib

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
