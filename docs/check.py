"""Checks a built site: every internal link has a target, and no page loads anything from the internet.

python docs/check.py FOLDER
"""

import functools
import pathlib
import sys
import urllib.parse

from bs4 import BeautifulSoup

LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}
"""Elements whose address a browser loads with the page."""


@functools.cache
def _page(path: pathlib.Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(), "html.parser")


@functools.cache
def _anchors(path: pathlib.Path) -> frozenset[str]:
    return frozenset(element["id"] for element in _page(path).find_all(id=True))


def problems(root: pathlib.Path) -> list[str]:
    """Return a line for each broken link and each address of the internet that a page loads."""
    lines = []
    for path in sorted(root.rglob("*.html")):
        if "_static" in path.parts:
            continue
        name = path.relative_to(root)
        for element in _page(path).find_all([*LOADED, "a"]):
            address = element.get(LOADED.get(element.name, "href")) or ""
            parts = urllib.parse.urlsplit(address)
            if parts.scheme in ("http", "https") or parts.netloc:
                loads = element.name in LOADED and "stylesheet" in element.get("rel", ["stylesheet"])
                lines += [f"{name}: loads {address}"] if loads else []
            elif (not parts.scheme and not address.startswith("#")) or (address.startswith("#") and len(address) > 1):
                target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
                anchor = urllib.parse.unquote(parts.fragment)
                if address and not target.exists():
                    lines.append(f"{name}: no file for {address}")
                elif anchor and target.suffix == ".html" and anchor not in _anchors(target):
                    lines.append(f"{name}: no anchor for {address}")
    for path in root.rglob("*.css"):
        lines += [f"{path.relative_to(root)}: loads {line}" for line in _imports(path)]
    return lines


def _imports(path: pathlib.Path) -> list[str]:
    """Return the addresses of the internet that a style sheet loads."""
    pieces = path.read_text(errors="replace").replace("@import", "url(").split("url(")[1:]
    addresses = (piece.split(")")[0].split(";")[0].strip(" '\"") for piece in pieces)
    return [address for address in addresses if address.startswith(("http:", "https:", "//"))]


if __name__ == "__main__":
    found = problems(pathlib.Path(sys.argv[1]).resolve())
    sys.stdout.write("".join(f"{line}\n" for line in found))
    sys.exit(bool(found))
