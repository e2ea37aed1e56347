"""Views of a session: they lay out and bind, and hold no chemistry."""

from qptlab.widgets.comparison import Comparison
from qptlab.widgets.monitor import TrainingMonitor
from qptlab.widgets.orbitals import Orbitals
from qptlab.widgets.picker import MoleculePicker
from qptlab.widgets.viewer import OrbitalViewer
from qptlab.widgets.workbench import Workbench

__all__ = ["Comparison", "MoleculePicker", "OrbitalViewer", "Orbitals", "TrainingMonitor", "Workbench"]
