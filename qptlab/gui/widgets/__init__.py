"""Widgets that show a session and bind to its attributes. They calculate no chemistry."""

from qptlab.gui.widgets.attention import AttentionView
from qptlab.gui.widgets.comparison import Comparison
from qptlab.gui.widgets.explorer import SCFExplorer
from qptlab.gui.widgets.kernels import KernelInspector
from qptlab.gui.widgets.monitor import TrainingMonitor
from qptlab.gui.widgets.orbitals import Orbitals
from qptlab.gui.widgets.picker import MoleculePicker
from qptlab.gui.widgets.plot import Plot
from qptlab.gui.widgets.prediction import PredictionView
from qptlab.gui.widgets.viewer import OrbitalViewer
from qptlab.gui.widgets.workbench import Workbench, workbench

__all__ = [
    "AttentionView", "Comparison", "KernelInspector", "MoleculePicker", "OrbitalViewer", "Orbitals", "Plot",
    "PredictionView", "SCFExplorer", "TrainingMonitor", "Workbench", "workbench",
]
