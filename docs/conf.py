"""Settings of the documentation site, which `make docs` builds; docs/generate.py writes the generated pages."""

import importlib.metadata
import importlib.util
import pathlib
import re
import shutil
import sys
import typing

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generate  # noqa: E402

HELD: dict[str, list[str]] = {}
"""Descriptions of values, by name, while napoleon works on the docstrings."""

project = "qptlab"
author = "the qptlab authors"
project_copyright = "the qptlab authors, MIT licence"
release = version = importlib.metadata.version("qptlab")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", ".jupyter_cache", "**.ipynb_checkpoints", "tutorials/runs"]
nitpicky = True
# Every reference to qptlab has to be found. Pages of other libraries are on the internet, which the build never asks.
nitpick_ignore_regex = [(r"py:.*", r"(?!qptlab\.|ql\.).*"), (r"py:.*", r"qptlab\.(.*\.)?_.*")]
default_role = "py:obj"  # docstrings write names in single backticks

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "off"  # `make docs` says "cache": it executes the notebooks that have changed
nb_execution_cache_path = str(HERE / ".jupyter_cache")
nb_execution_timeout = 1800
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_render_markdown_format = "myst"  # Markdown that a cell displays may contain tables
# A page has no kernel. Each of our widgets brings a picture or a table of itself, which is shown in its place.
nb_ipywidgets_js = {}
nb_mime_priority_overrides = [
    ("html", "application/vnd.jupyter.widget-view+json", None),
    ("html", "application/vnd.plotly.v1+json", None),
]

autodoc_default_options = {"members": True, "member-order": "bysource", "ignore-module-all": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
add_module_names = False
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_title = "qptlab"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "home_page_in_toc": False,
    "use_download_button": True,
    "use_fullscreen_button": False,
    # The course and the results have none: their code and their tables need the width.
    "secondary_sidebar_items": {
        page: ["page-toc"] for page in ("how-to/*", "reference/*", "reference/api/*", "explanation/*", "contributing")
    },
}
html_favicon = "_static/favicon.svg"
html_show_sourcelink = False
mathjax_path = "mathjax/tex-svg.js"


def _copy_mathjax(app) -> None:
    """Put MathJax beside the pages: one file of the package that has all of it."""
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    source = pathlib.Path(package.submodule_search_locations[0]) / "static/mathjax/tex-svg.js"
    target = pathlib.Path(app.outdir) / "_static/mathjax/tex-svg.js"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _quote_diagrams(app, what, name, obj, options, lines) -> None:
    """Show the indented blocks of a module's docstring, which are tables and diagrams, as they are written."""
    if what != "module":
        return
    for index in range(len(lines) - 1, 1, -1):
        starts = lines[index].startswith("    ") and not lines[index - 1].strip()
        before = next((line for line in reversed(lines[:index]) if line.strip()), "")
        if starts and before and not before.startswith("    ") and not before.endswith("::"):
            lines.insert(index, "")
            lines.insert(index, "::")


def _hold_values(app, what, name, obj, options, lines) -> None:
    """Keep napoleon from taking the words before a colon in the description of a value for its type."""
    if what in ("data", "attribute", "property"):
        HELD[name] = lines[:]
        lines.clear()


def _finish(app, what, name, obj, options, lines) -> None:
    """Take `*` and `|` for what they are: shapes such as ``*batch`` and absolute values, not markup."""
    lines[:] = HELD.pop(name, lines)
    for index, line in enumerate(lines):
        parts = re.split(r"(`+[^`]*`+)", line)
        parts[::2] = [re.sub(r"(?<![\\*])(\*(?=\w)|\|)", r"\\\1", part) for part in parts[::2]]
        lines[index] = "".join(parts)


def _shorten_types(app, what, name, obj, options, signature, returns):
    """Write the types of arrays as the code does: Float[Array, "nao nao"]."""
    modules = r"\b(jaxlib\._jax|jaxtyping|numpy)\.(?=[A-Z]|ndarray)"
    return tuple(re.sub(modules, "", text) if text else text for text in (signature, returns))


def _resolve(app, env, node, contnode):
    """Link public names (`ql.scf`) to where they are defined; leave type variables, which have no page."""
    module, _, name = node.get("reftarget", "").rpartition(".")
    value = getattr(sys.modules.get({"ql": "qptlab"}.get(module, module)), name, None)
    if isinstance(value, typing.TypeVar):
        return contnode
    if module in ("ql", "qptlab") and hasattr(value, "__qualname__"):
        target = f"{value.__module__}.{value.__qualname__}"
        return env.get_domain("py").resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, contnode)
    return None


def _skip_fields(app, what, name, obj, skip, options) -> bool | None:
    """Leave out the fields of a named tuple: its Attributes section describes them."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app) -> None:
    """Write the generated pages, then connect what changes the others."""
    generate.main()
    app.connect("builder-inited", _copy_mathjax)
    app.connect("autodoc-process-docstring", _quote_diagrams, priority=100)
    app.connect("autodoc-process-docstring", _hold_values, priority=100)
    app.connect("autodoc-process-docstring", _finish, priority=900)  # napoleon is in between
    app.connect("autodoc-process-signature", _shorten_types)
    app.connect("missing-reference", _resolve)
    app.connect("autodoc-skip-member", _skip_fields)
