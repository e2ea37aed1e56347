"""Measurements: speed compared with PySCF in one run, and studies of how training depends on choices.

May import: `training`, `evaluation` and below.
"""
