"""Writes the pages of the site that are not written by hand: Python modules, commands, results, notebooks."""

import importlib
import pathlib
import pkgutil
import re
import shutil
import subprocess
import sys

from sphinx.pycode import ModuleAnalyzer

HERE = pathlib.Path(__file__).parent
NOTEBOOKS = HERE.parent / "notebooks"
TITLE = "Command line"
RESULTS = HERE.parent / "benchmarks/results"


def main() -> None:
    """Write all generated pages; pages that have not changed keep their time stamp."""
    pages = {**_modules(), **_results(), "reference/command-line.md": _command_line()}
    pages |= {f"tutorials/{path.name}": path.read_text() for path in NOTEBOOKS.glob("*.ipynb")}
    for name, text in pages.items():
        path = HERE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    for folder in ("reference/api", "results", "tutorials"):
        for path in (HERE / folder).iterdir():
            if path.suffix in (".md", ".rst", ".ipynb") and f"{folder}/{path.name}" not in pages:
                path.unlink()


def _modules() -> dict[str, str]:
    """Return a page for each public module, and one with the names that `import qptlab as ql` offers."""
    package = importlib.import_module("qptlab")
    public = {name: getattr(package, name) for name in package.__all__}
    names = ["qptlab", *(found.name for found in pkgutil.walk_packages(package.__path__, "qptlab."))]
    names = [name for name in names if not any(part.startswith("_") for part in name.split("."))]
    # The page of the command line describes the commands; autodoc cannot read their generated signatures.
    names = [name for name in names if not name.startswith("qptlab.cli.")]
    pages = {}
    for name in names:
        below = sorted(other for other in names if other.rpartition(".")[0] == name)
        toctree = [".. toctree::", "   :maxdepth: 1", "", *(f"   {other}" for other in below), ""] if below else []
        title = name if "." not in name else name.removeprefix("qptlab.")
        head = [title, "=" * len(title), "", f".. automodule:: {name}", ""]
        pages[f"reference/api/{name}.rst"] = "\n".join([*head, *toctree])
    rows = "\n".join(_public(names, name, public[name]) for name in sorted(public, key=str.lower))
    pages["reference/api/names.md"] = (
        "# Names of `ql`\n\nWhat `import qptlab as ql` offers, and where it is defined.\n\n"
        f"| name | what it is |\n|---|---|\n{rows}\n"
    )
    return pages


def _public(modules: list[str], name: str, value: object) -> str:
    """Return the row of the table for a name of the package's public face."""
    if callable(value):
        target = f"{value.__module__}.{value.__qualname__}"
        summary = (value.__doc__ or "").strip().split("\n\n")[0]
    else:  # a constant does not know its module, and its documentation is a string below it
        holders = [m for m in modules if vars(importlib.import_module(m)).get(name) is value]
        documented = {m: ModuleAnalyzer.for_module(m).find_attr_docs().get(("", name)) for m in holders}
        target, summary = next((f"{m}.{name}", " ".join(text)) for m, text in documented.items() if text)
    return f"| {{py:obj}}`{name} <{target}>` | {' '.join(summary.split())} |"


def _command_line() -> str:
    """Return the page of the commands, as typer describes them."""
    command = [sys.executable, "-m", "typer", "qptlab.cli", "utils", "docs", "--name", "qptlab", "--title", TITLE]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    text = re.sub(r"^\*\*(.*)\*\*:$", r"**\1**", text, flags=re.MULTILINE)
    head = (
        f"# {TITLE}\n\n`qptlab COMMAND --help` prints the same. The exit status is 0 if the command succeeded, 2 if "
        "an argument or a file\nwas wrong, and 1 for every other failure. [JSON output](json.md) lists the keys that "
        "`--json` prints.\n"
    )
    return text.replace(f"# {TITLE}\n", head, 1)


def _results() -> dict[str, str]:
    """Return a page for each result in benchmarks/results, and one that lists them."""
    pages, rows, entries = {}, [], []
    titles = [path.read_text().split("\n", 1)[0] for path in RESULTS.glob("*.md")]
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    for path in sorted(RESULTS.glob("*.md")):
        text = path.read_text()
        first = text.split("\n", 1)[0]
        title = first.removeprefix("# ") + (f": {path.stem}" if titles.count(first) > 1 else "")
        command = re.search(r"^ {4}(\S.*)$", text, re.MULTILINE)
        for file in RESULTS.glob(f"{path.stem}.*"):
            if file.suffix in (".png", ".json"):
                shutil.copy2(file, folder)
        if (folder / f"{path.stem}.json").exists():
            text = f"{text.rstrip()}\n\nThe numbers as a file: {{download}}`{path.stem}.json`.\n"
        pages[f"results/{path.name}"] = text
        entries.append(f"{title} <{path.stem}>")
        rows.append(f"| [{title}]({path.name}) | {f'`{command[1]}`' if command else ''} |")
    toctree, table = "\n".join(entries), "\n".join(rows)
    pages["results/index.md"] = (
        "# Results of the benchmarks\n\nEach page names the command that repeats it, the machine and the versions. "
        f"[Results](../explanation/results.md) says what they mean.\n\n| result | command |\n|---|---|\n{table}\n\n"
        f"```{{toctree}}\n:hidden:\n:maxdepth: 1\n\n{toctree}\n```\n"
    )
    return pages


if __name__ == "__main__":
    main()
