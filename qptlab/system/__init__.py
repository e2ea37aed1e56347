"""What is calculated: a molecule, its internal coordinates, and the Kohn–Sham method.

May import: `errors`, `units`.
"""
