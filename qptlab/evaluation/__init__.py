"""References, labels and errors: how good a model is, compared with PySCF.

May import: `models`, `dft`, `system` and below.
"""
