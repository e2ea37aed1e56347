"""Shapes and types named in signatures are checked at run time, in tests only."""

import jaxtyping

jaxtyping.install_import_hook("qptlab", "typecheck.check")
