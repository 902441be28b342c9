"""Data sets of the built-in tasks, as tensors: files that are downloaded, and scikit-learn's digits (no files)."""

from flatwise.study.tasks.classification import Classification, DataError, load_digits
from flatwise_papers.data.graphs import NodeClassification, load_citeseer, load_cora, load_pubmed
from flatwise_papers.data.images import Images, load_cifar10, load_cifar10_jpeg, load_cifar100
from flatwise_papers.data.mnist import load_mnist, load_mnist_images

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
