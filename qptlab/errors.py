"""Errors that a user can cause and can correct."""

MAX_SHOWN = 60
"""Characters of a value that a message shows."""

MAX_CHARACTERS = 299
"""Characters of a message; a longer one, which has to quote long input, lacks its middle."""


class InputError(ValueError):
    """Input that cannot be used.

    The message is one sentence: "Expected …, got …; use …". The command line prints it and exits with status 2; the
    workbench shows it next to the control.

    Args:
      message: the sentence; it becomes one line of at most `MAX_CHARACTERS`.
    """

    def __init__(self, message: str = ""):
        super().__init__(clipped(str(message), MAX_CHARACTERS))


def shown(value: object) -> str:
    """Return a value as messages show it, quoted and shortened.

    >>> shown("pbe")
    "'pbe'"
    """
    text = repr(value[: MAX_SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def clipped(text: str, limit: int) -> str:
    r"""Return a text in one line of printable characters, without its middle if it is longer than a limit.

    >>> clipped("Expected a name,\ngot " + "x" * 99 + "; use water.", 50)
    'Expected a name, got xxxxxxxxxxxx…xxxx; use water.'
    """
    if len(text) > limit:
        end = limit // 3
        text = f"{text[: limit - end - 1]}…{text[-end:]}"
    return "".join(character if character.isprintable() else " " for character in text)
