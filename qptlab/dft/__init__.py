"""The differentiable Kohn–Sham engine: integrals, grid, functionals, energies, SCF and properties.

May import: `system`, `runtime`, `errors`, `units`. Only `libcint` calls PySCF.
"""
