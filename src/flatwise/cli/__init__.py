"""The command line, thin: it reads arguments, calls the library and turns errors into one line and a status."""

import sys

from flatwise.version import __version__

try:
    import rich  # noqa: F401
    import typer  # noqa: F401

    from flatwise.cli import commands  # noqa: F401  adds the commands to the program
    from flatwise.cli.program import app, main
except ModuleNotFoundError as _missing:  # the library alone was installed
    if (_missing.name or "").startswith("flatwise"):
        raise
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"flatwise {__version__}\n")
        sys.exit(0)
    sys.stderr.write(f"error: the flatwise command needs {_missing.name} and more: pip install 'flatwise[compare]'\n")
    sys.exit(2)

__all__ = ["app", "main"]
