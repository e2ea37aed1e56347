"""Models: from the integrals of a geometry to a prediction.

A model does not depend on training or evaluation. This package may import `dft`, `xtb`, `runtime`, `system`, `errors`
and `units`.
"""
