"""Systems to calculate: a molecule, its internal coordinates, the Kohn–Sham method, the names of basis sets.

May import: `errors`, `units`.
"""
