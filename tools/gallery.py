"""Executes the notebooks and writes them as HTML pages with their outputs.

python tools/gallery.py [FOLDER]
"""

import pathlib
import sys
import time

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter

WIDGET = "application/vnd.jupyter.widget-view+json"
NOTEBOOKS = pathlib.Path(__file__).parents[1] / "notebooks"


def main(folder: pathlib.Path) -> None:
    """Render all notebooks into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    exporter = HTMLExporter(template_name="lab")
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        began = time.perf_counter()
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                if len(data) > 1:  # a page runs no widgets; each brings a still version of itself
                    data.pop(WIDGET, None)
        notebook.metadata.pop("widgets", None)
        page, _ = exporter.from_notebook_node(notebook)
        (folder / f"{path.stem}.html").write_text(page.replace(".ipynb", ".html"))
        sys.stdout.write(f"{path.name}: {time.perf_counter() - began:.0f} s\n")
        sys.stdout.flush()
    sys.stdout.write(f"The gallery begins at {folder / '00-index.html'}.\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "docs/gallery"))
