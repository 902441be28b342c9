"""Data sets of the built-in tasks, as tensors: files that are downloaded, and scikit-learn's digits (no files)."""

from flatter.study.data.cifar import load_cifar10, load_cifar10_jpeg, load_cifar100
from flatter.study.data.classification import Classification
from flatter.study.data.digits import load_digits
from flatter.study.data.folder import DataError
from flatter.study.data.images import Images
from flatter.study.data.mnist import load_mnist, load_mnist_images
from flatter.study.data.node_classification import NodeClassification
from flatter.study.data.planetoid import load_citeseer, load_cora, load_pubmed

__all__ = [
    "Classification",
    "DataError",
    "Images",
    "NodeClassification",
    "load_cifar10",
    "load_cifar10_jpeg",
    "load_cifar100",
    "load_citeseer",
    "load_cora",
    "load_digits",
    "load_mnist",
    "load_mnist_images",
    "load_pubmed",
]
