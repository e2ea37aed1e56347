"""The machine: background tasks, devices, clusters and memory limits. Knows no chemistry.

May import: `errors`, `units`.
"""
