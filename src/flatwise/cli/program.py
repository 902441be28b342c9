"""The program itself: its options, how it ends, and how it says what is wrong."""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

from flatwise.exceptions import FlatwiseError
from flatwise.report.terminal import PLAIN
from flatwise.version import __version__

app = typer.Typer(
    help="Random and peaked learning rates for PyTorch, and an honest test of whether they help.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flatwise {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""


def fail(message: str, status: int = BAD_INPUT) -> NoReturn:
    """Ends the program with one line about what is wrong."""
    _print_error(message)
    raise typer.Exit(status)


@contextmanager
def errors() -> Iterator[None]:
    """End the program with one line for an error that the user can correct."""
    try:
        yield
    except FlatwiseError as error:
        fail(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(f"{error.filename or 'a file'}: {error.strerror or error}. Finished trials are kept")


def _print_error(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)


def _terminated(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """Runs the command line; a polite kill ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what was imported was interrupted otherwise
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not codecs.lookup(stream.encoding).name.startswith("utf"):
            stream.reconfigure(errors=PLAIN)
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.Abort:
        status = INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except Exception as error:
        # A wrong option: one line, as every other error. The class lives in click or in typer, by version.
        explain = getattr(error, "format_message", None)
        if explain is None:
            raise
        _print_error(
            f"{explain().rstrip('.')}. `flatwise --help` and `flatwise COMMAND --help` list the commands and options"
        )
        status = BAD_INPUT
    sys.exit(status)
