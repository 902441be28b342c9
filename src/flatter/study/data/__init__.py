"""Data sets of the built-in tasks, as tensors: files that are downloaded, and scikit-learn's digits (no files)."""

from flatter.study.data.classification import Classification
from flatter.study.data.digits import load_digits
from flatter.study.data.folder import DataError
from flatter.study.data.mnist import load_mnist
from flatter.study.data.node_classification import NodeClassification
from flatter.study.data.planetoid import load_citeseer, load_cora, load_pubmed

__all__ = [
    "Classification",
    "DataError",
    "NodeClassification",
    "load_citeseer",
    "load_cora",
    "load_digits",
    "load_mnist",
    "load_pubmed",
]
