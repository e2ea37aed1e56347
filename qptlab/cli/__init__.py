"""The same actions from a shell: `qptlab`, or `python -m qptlab`.

With --json a command prints one JSON object on stdout and nothing else there; progress goes to
stderr. Exit status: 0 done, 2 bad input with one line on stderr, 1 anything else.
"""

import shlex
import sys
import warnings
from typing import cast

import typer

from qptlab.cli import benchmarks, engine, lab, models, orbital_gnn
from qptlab.cli.console import fail
from qptlab.errors import InputError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Neural networks trained by backpropagating through density functional theory.",
)

for _command in (
    engine.energy, models.train, models.evaluate, models.predict, models.relax, engine.sample, orbital_gnn.label,
    orbital_gnn.train_gnn, lab.lab, benchmarks.bench, engine.info,
):
    app.command()(_command)

# typer brings its own copy of click from 0.20 on; this is the class of usage errors in either case.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])


TYPER_STOPPED = 130
"""What typer makes of Ctrl-C."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with the status that the module's docstring names."""
    given = sys.argv[1:] if arguments is None else arguments
    warnings.showwarning = lambda message, *_, **__: fail(str(message), 0)
    try:
        status = app(given or ["--help"], standalone_mode=False)
        if status == TYPER_STOPPED:
            raise KeyboardInterrupt
    except InputError as error:
        status = fail(str(error), 2)
    except _UsageError as error:
        what = error.format_message().rstrip(".")
        status = fail(f"{what}, in: qptlab {shlex.join(given)}; qptlab --help says what would do.", 2)
    except (typer.Abort, KeyboardInterrupt):
        status = fail("stopped.", 1)
    except (RuntimeError, MemoryError, OSError) as error:
        status = fail(str(error), 1)
    sys.exit(status if isinstance(status, int) else 0)
