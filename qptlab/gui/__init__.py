"""The Jupyter workbench: a session without a screen, its plots and scenes, and the widgets that show them.

May import: everything but `cli`. Only `widgets` imports ipywidgets, anywidget and py3Dmol. The package is not called
`workbench`, because the function `qptlab.workbench` would hide it.
"""
