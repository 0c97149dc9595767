"""The command line: ``python cli.py VERB ...``; every verb takes ``--json`` for scripts and ``--help``.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted. A user's mistake is one line on stderr (with ``--json`` one
``{"error": ...}`` object on stdout), never a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer
from typer.exceptions import Abort, Exit, TyperException

from commands import compress, kernels, runs
from commands.backup import backup
from commands.catalog import models, strategies, tasks
from commands.doctor import doctor
from commands.export import export
from commands.export_onnx import export_onnx
from commands.output import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, exit_code, report_error
from commands.queue import submit, tour, worker
from commands.run import run
from spec.errors import Cancelled, InputError, IsoquantError, SpecError

app = typer.Typer(
    name="isoquant",
    help="Find the configuration of a language model that gives the accuracy you need for the least time and energy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (run, submit, tour, worker, models, tasks, strategies, export, export_onnx, backup, doctor):
    app.command()(verb)
app.command()(compress.compress)
app.add_typer(compress.app, name="artifacts")
app.add_typer(runs.app, name="runs")
app.add_typer(kernels.app, name="kernels")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        return app(given, prog_name="python cli.py", standalone_mode=False) or 0
    except Exit as stop:
        return stop.exit_code
    except (Abort, KeyboardInterrupt):
        report_error(Cancelled("Interrupted."), as_json)
        return EXIT_INTERRUPTED
    except TyperException as error:
        if message := error.format_message():  # without one, the help was asked for by giving no arguments
            cut = "extra argument" in message and any(word.startswith("+") or word.endswith("+") for word in given)
            report_error(SpecError(message + ". A recipe with spaces needs quotes around it." * cut), as_json)
        return EXIT_BAD_INPUT
    except IsoquantError as error:
        report_error(error, as_json)
        return exit_code(error)
    except BrokenPipeError:  # the reader of a pipe has seen enough; Python would complain again while it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        report_error(InputError(f"{where}{error.strerror or error}."), as_json)
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
