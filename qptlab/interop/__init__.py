"""Trained models in other programs: as the initial guess of PySCF's SCF, and as a calculator of ASE.

May import: `models`, `dft`, `system` and below. Only `pyscf` imports PySCF.
"""
