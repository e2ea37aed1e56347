"""Seeded, endless streams of geometries to train and validate on; one file per sampler.

May import: `models`, `dft`, `xtb`, `system` and below.
"""
