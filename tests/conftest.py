"""Types and shapes named in signatures are checked at run time; what is compiled once serves all tests."""

import atexit
import gc
import os
import shutil
import tempfile

import hypothesis
import jaxtyping
import pytest

jaxtyping.install_import_hook("qptlab", "typecheck.check")

if "PYTEST_XDIST_WORKER" not in os.environ:  # several workers share their parent's
    # Read by JAX on import, here and in the processes that tests start.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="qptlab-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


# The notebooks of the course, run by nbmake, are shortened; whoever opens them sees them in full.
os.environ["QPTLAB_FAST"] = "1"

# The same examples each time: what fails in CI fails here too.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="module", autouse=True)
def forget_what_was_compiled():
    """Linux allows a process 65530 mappings, and each compiled function takes some hundred; beyond, XLA crashes."""
    yield
    import jax  # not before its settings above

    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A short training to its end, in a folder of its own; to be looked at, not changed."""
    import cases  # after the hook above

    import qptlab as ql

    out = tmp_path_factory.mktemp("runs") / "water"
    water = ql.Molecule.from_name("water")
    return ql.Trainer(water, cases.QUICK_METHOD, cases.QUICK_MODEL, cases.quick(60), out=out).run()
