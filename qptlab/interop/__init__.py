"""A trained model inside other programs: where PySCF's SCF begins, and as a calculator of ASE."""
