"""All views around one session."""

import ipywidgets as ipw

from qptlab.session import Session
from qptlab.widgets.comparison import Comparison
from qptlab.widgets.monitor import TrainingMonitor
from qptlab.widgets.orbitals import Orbitals
from qptlab.widgets.picker import MoleculePicker


class Workbench(ipw.VBox):
    """Pick a molecule, train, compare, look at orbitals.

    Args:
      session: to share with other cells; by default a new one.
      **choices: initial values of a new session, such as `molecule="ethanol"` or `minutes=2`.
    """

    def __init__(self, session: Session | None = None, **choices):
        self.session = session or Session(**choices)
        self.picker = MoleculePicker(self.session)
        self.monitor = TrainingMonitor(self.session)
        self.comparison = Comparison(self.session)
        self.orbitals = Orbitals(self.session)
        parts = []
        for number, (title, view) in enumerate(
            (("Molecule and method", self.picker), ("Training", self.monitor),
             ("Orbitals", self.orbitals), ("Comparison with PySCF", self.comparison)),
            start=1,
        ):
            parts += [ipw.HTML(f"<h3>{number}. {title}</h3>"), view]
        super().__init__(parts)
