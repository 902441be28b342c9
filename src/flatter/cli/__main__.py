"""``python -m flatter.cli``."""

from flatter.cli import main

main()
