"""Settings of all tests: types and shapes in signatures are checked, and compiled functions are shared."""

import atexit
import gc
import os
import shutil
import tempfile

import hypothesis
import jaxtyping
import pytest

# Workers, kernels and subprocesses share the cores, and OpenMP's threads of one wait actively for those of another.
os.environ["OMP_NUM_THREADS"] = "1"

jaxtyping.install_import_hook("qptlab", "typecheck.check")

if "PYTEST_XDIST_WORKER" not in os.environ:  # several workers share the folder of their parent
    # Read by JAX on import, here and in the processes that tests start.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="qptlab-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


# Shortens the notebooks of the course when nbmake runs them; a person who opens them gets them in full.
os.environ["QPTLAB_FAST"] = "1"
import jax  # noqa: E402 - after the settings above, which JAX reads on import

# Compilation takes most of the tests' time. Kernels and subprocesses optimise as usual.
jax.config.update("jax_disable_most_optimizations", True)

# Hypothesis takes the same examples each time, so that a failure in CI is also a failure on this machine.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="module", autouse=True)
def forget_what_was_compiled():
    """Clear compiled functions: each takes some hundred of the 65530 mappings that Linux allows; then XLA crashes."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def registered():
    """Forget the functionals that a test registers."""
    from qptlab.system.functional import _REGISTER  # after the import hook above, which has to see it

    before = set(_REGISTER)
    yield
    for name in set(_REGISTER) - before:
        _REGISTER.pop(name)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Return a short training that has ended, in a separate folder. Tests read it and do not change it."""
    import cases  # after the import hook above, which has to see it

    import qptlab as ql

    out = tmp_path_factory.mktemp("runs") / "water"
    water = ql.Molecule.from_name("water")
    return ql.Trainer(water, cases.QUICK_METHOD, cases.QUICK_MODEL, cases.quick(60), out=out).run()
