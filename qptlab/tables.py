"""Tables of text for pages, notebooks and articles."""

from collections.abc import Iterable, Sequence

from tabulate import tabulate

FORMS = {"markdown": "pipe", "text": "plain", "html": "html", "latex": "latex_booktabs"}
"""Forms of a table, and their names in tabulate."""


def table(
    titles: Sequence[str], rows: Iterable[Sequence[object]], form: str = "markdown", *, text_columns: int = 1
) -> str:
    """Return a table.

    Args:
      titles: titles of the columns.
      rows: cells of each row. Numbers are text already, so that their digits are chosen where they are known.
      form: one of `FORMS`.
      text_columns: number of columns with text, which are aligned left; those after them are aligned right.

    >>> print(table(["molecule", "error, meV"], [["water", "0.1"], ["ethanol", "2"]]))
    | molecule   |   error, meV |
    |:-----------|-------------:|
    | water      |          0.1 |
    | ethanol    |            2 |
    """
    alignment = ["left" if index < text_columns else "right" for index in range(len(titles))]
    cells = [[str(cell) for cell in row] for row in rows]
    return tabulate(cells, titles, FORMS[form], colalign=alignment if cells else None, disable_numparse=True)
