"""Views of a session: they lay out and bind, and hold no chemistry."""

from qptlab.widgets.attention import AttentionView
from qptlab.widgets.comparison import Comparison
from qptlab.widgets.explorer import SCFExplorer
from qptlab.widgets.kernels import KernelInspector
from qptlab.widgets.monitor import TrainingMonitor
from qptlab.widgets.orbitals import Orbitals
from qptlab.widgets.picker import MoleculePicker
from qptlab.widgets.plot import Plot
from qptlab.widgets.viewer import OrbitalViewer
from qptlab.widgets.workbench import Workbench

__all__ = [
    "AttentionView", "Comparison", "KernelInspector", "MoleculePicker", "OrbitalViewer", "Orbitals", "Plot",
    "SCFExplorer", "TrainingMonitor", "Workbench",
]
