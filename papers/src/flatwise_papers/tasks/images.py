"""The image tasks: every network on CIFAR-10, CIFAR-10 (JPEG q75) and CIFAR-100, and two networks on MNIST.

The default settings are those of the paper that trains the network, as far as it gives them; a comment says what is not
from there. None of them is tuned.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from flatwise.study.task import Task
from flatwise_papers.data import Images, load_cifar10, load_cifar10_jpeg, load_cifar100, load_mnist_images
from flatwise_papers.tasks.image_models import IMAGE_MODELS
from flatwise_papers.tasks.image_settings import DropoutImageSettings, ImageSettings
from flatwise_papers.tasks.image_training import train_images

Load = Callable[[Path | None], Images]

DATA_SETS: dict[str, tuple[str, Load]] = {
    "cifar10": ("CIFAR-10", load_cifar10),
    "cifar10-jpeg": ("CIFAR-10 (JPEG q75)", load_cifar10_jpeg),
    "cifar100": ("CIFAR-100", load_cifar100),
}

# What the papers have in common.
SGD: dict[str, Any] = {
    "epochs": 200,
    "batch_size": 128,
    "learning_rate": 0.1,
    "optimizer": "sgd",
    "weight_decay": 1e-4,
    "schedule": "step",
}
# RALR, section 5.1: Nesterov's momentum, a tenth at epochs 150 and 225.
RALR: dict[str, Any] = {**SGD, "epochs": 300, "optimizer": "nesterov"}
# LRD, section IV-A: a tenth at epochs 100 and 150.
LRD: dict[str, Any] = {**SGD, "weight_decay": 5e-4}
# RN, sections 4.1 and 4.2. It gives no weight decay: what its networks' papers have.
RN: dict[str, Any] = {**SGD, "schedule": "rn-step"}

SETTINGS: dict[str, dict[str, Any]] = {
    "resnet20": RALR,
    "resnet56": RALR,
    "resnet110": RALR,
    # LEAP trains 18, 50 and 101 and gives neither epochs nor batch size: as LRD trains 34.
    "resnet18": LRD,
    "resnet34": LRD,
    "resnet50": LRD,
    "resnet101": LRD,
    "wrn-16-8": {**RN, "weight_decay": 5e-4},
    "wrn-28-10": RALR,
    "densenet-40-12": RN,
    "densenet-bc-100-12": {**RALR, "batch_size": 64},
    "densenet121": LRD,
    "vgg16": {**RN, "weight_decay": 5e-4},
    # Lin et al. (2014): dropout. Epochs, decay and the rate are ours: with 0.1, a third of the peak-LR paper's 0.3, the
    # loss of the first steps rose.
    "nin": {**SGD, "learning_rate": 0.01, "weight_decay": 5e-4, "dropout": 0.5},
    # Springenberg et al. (2015), without augmentation, whose 9.08 % is near the 9.53 % of the peak-LR paper.
    "all-cnn-c": {
        **SGD,
        "epochs": 350,
        "learning_rate": 0.05,
        "weight_decay": 1e-3,
        "dropout": 0.5,
        "augment": False,
    },
    # Peak-LR, Table 1: 360 epochs. Caffe's cifar10_full: batches of 100, decay, no augmentation. The rate is ours.
    "small-cnn": {
        **SGD,
        "epochs": 360,
        "batch_size": 100,
        "learning_rate": 0.01,
        "weight_decay": 4e-3,
        "augment": False,
    },
}
MNIST_SETTINGS: dict[str, dict[str, Any]] = {
    # RN gives the batch size, Keras's example the dropout. Epochs and rate are ours: with RN's 0.1 the loss of one of
    # three seeds rose in the first 20 steps.
    "naive-cnn": {"epochs": 20, "batch_size": 128, "learning_rate": 0.01, "schedule": "step", "dropout": 0.5},
    # Peak-LR, section 7.2: 167 epochs.
    "nin-mnist": {**SETTINGS["nin"], "epochs": 167},
}


def _settings(model: str, given: dict[str, Any]) -> ImageSettings:
    return (DropoutImageSettings if IMAGE_MODELS[model].has_dropout else ImageSettings)(**given)


def _cifar(name: str, model: str) -> Task:
    title, load = DATA_SETS[name]
    return Task(
        name=f"{name}-{model}",
        summary=f"{IMAGE_MODELS[model].title} on {title}",
        settings=_settings(model, SETTINGS[model]),
        load=load,
        train=partial(train_images, model=model),
    )


def _mnist(name: str, model: str) -> Task:
    return Task(
        name=name,
        summary=f"{IMAGE_MODELS[model].title} on MNIST",
        settings=_settings(model, {"augment": False, **MNIST_SETTINGS[model]}),
        load=load_mnist_images,
        train=partial(train_images, model=model, mirror=False),
    )


IMAGE_TASKS: tuple[Task, ...] = (
    _mnist("mnist-naive-cnn", "naive-cnn"),
    _mnist("mnist-nin", "nin-mnist"),
    *(_cifar(name, model) for name in DATA_SETS for model in SETTINGS),
)
