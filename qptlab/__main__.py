"""`python -m qptlab`."""

from qptlab.cli import main

main()
