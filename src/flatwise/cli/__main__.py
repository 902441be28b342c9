"""``python -m flatwise.cli``."""

from flatwise.cli import main

main()
