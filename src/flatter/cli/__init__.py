"""The command line, thin: it reads arguments, calls the library and turns errors into one line and a status."""

import sys

from flatter.version import __version__

try:
    import rich  # noqa: F401
    import typer  # noqa: F401

    from flatter.cli import bench, compare, study  # noqa: F401  each adds its commands to the program
    from flatter.cli.program import app, main
except ModuleNotFoundError as _missing:  # the library alone was installed
    if (_missing.name or "").startswith("flatter"):
        raise
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"flatter {__version__}\n")
        sys.exit(0)
    sys.stderr.write(f"error: the flatter command needs {_missing.name} and more: pip install 'flatter[compare]'\n")
    sys.exit(2)

__all__ = ["app", "main"]
