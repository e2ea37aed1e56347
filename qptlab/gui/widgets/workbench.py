"""All views around one session."""

import ipywidgets as ipw

from qptlab.gui.session import Session
from qptlab.gui.widgets.attention import AttentionView
from qptlab.gui.widgets.comparison import Comparison
from qptlab.gui.widgets.explorer import SCFExplorer
from qptlab.gui.widgets.kernels import KernelInspector
from qptlab.gui.widgets.monitor import TrainingMonitor
from qptlab.gui.widgets.orbitals import Orbitals
from qptlab.gui.widgets.picker import MoleculePicker
from qptlab.gui.widgets.view import View


class Workbench(View):
    """Pick a molecule, look into its SCF, train, look at orbitals, compare, look into the network and the kernels.

    Args:
      session: to share with other cells; by default a new one.
      **choices: initial values of a new session, such as `molecule="ethanol"` or `minutes=2`.
    """

    def __init__(self, session: Session | None = None, **choices):
        self.session = session or Session(**choices)
        self.picker = MoleculePicker(self.session)
        self.explorer = SCFExplorer(self.session)
        self.monitor = TrainingMonitor(self.session)
        self.orbitals = Orbitals(self.session)
        self.comparison = Comparison(self.session)
        self.attention = AttentionView(self.session)
        self.kernels = KernelInspector(self.session)
        views = {
            "Molecule": self.picker, "SCF": self.explorer, "Training": self.monitor, "Orbitals": self.orbitals,
            "Comparison": self.comparison, "Attention": self.attention, "Kernels": self.kernels,
        }
        self.tabs = ipw.Tab(
            list(views.values()), titles=[f"{number}. {title}" for number, title in enumerate(views, start=1)],
        )
        super().__init__([self.tabs])
