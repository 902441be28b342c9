"""``python -m flatter``: the command line."""

from flatter.cli import main

main()
