"""Prints name, version and licence of everything that is installed beside this script's Python, as a table."""

import importlib.metadata
import sys

MAX_CHARACTERS = 60


def licence(package: importlib.metadata.Distribution) -> str:
    """Return the licence that a package states: its expression, its classifiers, or the first line of its text."""
    fields = package.metadata
    classifiers = [
        text.rsplit(" :: ", 1)[1] for text in fields.get_all("Classifier") or [] if text.startswith("License :: ")
    ]
    stated = (fields.get("License-Expression"), ", ".join(classifiers), fields.get("License"))
    return next((text.strip().splitlines()[0] for text in stated if text and text.strip()), "not stated")


def main() -> None:
    """Print the table, and fail if a package states no licence."""
    found = {package.metadata["Name"]: package for package in importlib.metadata.distributions()}
    rows = [(name, found[name].version, licence(found[name])) for name in sorted(found, key=str.lower)]
    print("| package | version | licence |\n|---|---|---|")  # noqa: T201
    for name, version, text in rows:
        print(f"| {name} | {version} | {text[:MAX_CHARACTERS]} |")  # noqa: T201
    missing = [name for name, _, text in rows if text == "not stated"]
    if missing:
        sys.exit(f"qptlab: expected a licence of every package, got none of {', '.join(missing)}; look it up.")


if __name__ == "__main__":
    main()
