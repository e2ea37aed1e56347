"""Views of a session: they lay out and bind, and hold no chemistry."""

from qptlab.workbench.widgets.attention import AttentionView
from qptlab.workbench.widgets.comparison import Comparison
from qptlab.workbench.widgets.explorer import SCFExplorer
from qptlab.workbench.widgets.kernels import KernelInspector
from qptlab.workbench.widgets.monitor import TrainingMonitor
from qptlab.workbench.widgets.orbitals import Orbitals
from qptlab.workbench.widgets.picker import MoleculePicker
from qptlab.workbench.widgets.plot import Plot
from qptlab.workbench.widgets.viewer import OrbitalViewer
from qptlab.workbench.widgets.workbench import Workbench

__all__ = [
    "AttentionView", "Comparison", "KernelInspector", "MoleculePicker", "OrbitalViewer", "Orbitals", "Plot",
    "SCFExplorer", "TrainingMonitor", "Workbench",
]
