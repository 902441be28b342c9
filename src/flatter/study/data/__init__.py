"""Data sets of the built-in tasks, as tensors: MNIST (files) and scikit-learn's digits (no files)."""

from flatter.study.data.classification import Classification
from flatter.study.data.digits import load_digits
from flatter.study.data.folder import DataError
from flatter.study.data.mnist import load_mnist

__all__ = ["Classification", "DataError", "load_digits", "load_mnist"]
