"""Errors that a user can cause and can correct."""


class InputError(ValueError):
    """Input that cannot be used.

    The message is one sentence: "Expected …, got …; use …". The command line prints it and exits with status 2; the
    workbench shows it next to the control.
    """


MAX_SHOWN = 60
"""Characters of a value that a message shows."""


def shown(value: object) -> str:
    """Return a value as messages show it, quoted and shortened.

    >>> shown("pbe")
    "'pbe'"
    """
    text = repr(value[: MAX_SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
