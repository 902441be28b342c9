"""flatter: random and peaked learning rates for any PyTorch optimizer."""

__version__ = "0.1.0"
