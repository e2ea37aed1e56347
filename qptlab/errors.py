"""The errors that a user can cause and can mend."""


class InputError(ValueError):
    """Input that cannot be used.

    Its message is one sentence that names what was given, what is wrong with it and what would do.
    The command line prints it and exits with status 2; the workbench shows it beside the control.
    """
