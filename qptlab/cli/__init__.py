"""Command line: `qptlab`, or `python -m qptlab`.

With --json a command prints one JSON object on stdout and nothing else there; progress goes to stderr. The exit
status is 0 if the command succeeded, 2 for wrong input, with one line on stderr, and 1 for every other failure.
"""

import shlex
import sys
import warnings
from typing import cast

import typer

from qptlab.cli import benchmarks, engine, lab, labels, models, train
from qptlab.cli.console import fail
from qptlab.errors import InputError, clipped

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Neural networks trained by backpropagating through density functional theory.",
)

COMMANDS = {
    command.__name__: app.command()(command) for command in (
        engine.energy, train.train, train.reproduce, models.models, models.evaluate, models.predict, models.relax,
        engine.sample, labels.label, lab.lab, benchmarks.bench, engine.info,
    )
}
"""Functions of the commands by name."""

# typer has its own copy of click since 0.20; this is the class of usage errors in both cases.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])

TYPER_STOPPED = 130
"""Status that typer returns after Ctrl-C."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, and exit with the status that the package's docstring states.

    Args:
      arguments: command and options; by default those of the process.
    """
    words = sys.argv[1:] if arguments is None else arguments
    warnings.showwarning = lambda message, *_, **__: fail(str(message), 0)
    try:
        status = app(words or ["--help"], standalone_mode=False)
        if status == TYPER_STOPPED:
            raise KeyboardInterrupt
    except InputError as error:
        status = fail(str(error), 2)
    except _UsageError as error:
        command = next((f" {word}" for word in words[:1] if word in COMMANDS), "")
        said = clipped(error.format_message().rstrip("."), 140)
        message = f"{said}, in: qptlab {clipped(shlex.join(words), 80)}"
        status = fail(f"{message}; use qptlab{command} --help for the accepted values.", 2)
    except (typer.Abort, KeyboardInterrupt):
        status = fail("stopped.", 1)
    except (RuntimeError, MemoryError, OSError) as error:
        status = fail(str(error), 1)
    sys.exit(status if isinstance(status, int) else 0)
