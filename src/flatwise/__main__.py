"""``python -m flatwise``: the command line."""

from flatwise.cli import main

main()
