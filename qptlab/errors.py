"""The errors that a user can cause and can mend."""


class InputError(ValueError):
    """Input that cannot be used.

    Its message is one sentence that names what was given, what is wrong with it and what would do.
    The command line prints it and exits with status 2; the workbench shows it beside the control.
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
