"""The experiments of five papers on random and peaked learning rates, as tasks and studies of flatwise."""

__version__ = "0.1.0"
