"""The image tasks: every network on CIFAR-10, CIFAR-10 (JPEG q75) and CIFAR-100, and two networks on MNIST."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from flatwise.study.task import Task
from flatwise.study.tasks.classification import split_errors
from flatwise.study.tasks.training import find_device, initialized, seeds_from, train_epochs
from flatwise_papers.data.images import Images, load_cifar10, load_cifar10_jpeg, load_cifar100
from flatwise_papers.data.mnist import load_mnist_images
from flatwise_papers.tasks.augmentation import (
    Augmentation,
    DropoutImageSettings,
    FlatnessBatches,
    ImageSettings,
    TrainingBatches,
)
from flatwise_papers.tasks.image_models import IMAGE_MODELS, build_image_model

if TYPE_CHECKING:
    from flatwise.study.trial import Trial


EVALUATION_BATCH = 1000


def train_images(trial: Trial, settings: ImageSettings, data: Images, *, model: str, mirror: bool = True) -> None:
    """Train a network for images with cross-entropy and report every epoch to the trial.

    The trial's seed decides the initial weights, the order of the data, the augmentation, the masks of dropout and
    which labels are wrong, and nothing else does. Each has a generator of its own, so settings that change one leave
    the others as they are, and the global random state is as it was. All but the masks are drawn on the CPU, so they
    are the same on every device. Every epoch visits each training image once; the last, smaller batch is kept, so an
    epoch has ``ceil(n / batch_size)`` steps.

    Reported per epoch: ``train_loss``, the mean over the images of the loss at the step that used them (augmented,
    smoothed and mixed as they are trained on); ``val_error`` and, where the data have a test split, ``test_error``
    after the epoch, in percent, of the images as they are, with the running statistics of batch normalization, in the
    precision of the training, NaN when an output of the model is not finite; ``seconds``, the time for training alone,
    evaluation excluded. The flatness, where it is asked for, is that of the cross-entropy alone in float32, on the
    first training images as they are.

    Args:
        trial: the seed, and where to attach and report.
        settings: how to train; a model with dropout needs :class:`DropoutImageSettings`.
        data: what to train on, on any device.
        model: name of the network, a key of :data:`flatwise_papers.tasks.image_models.IMAGE_MODELS`.
        mirror: whether augmented images may be mirrored.

    Raises:
        SettingsError: the settings ask for a device that is not there.
    """
    device = find_device(settings)
    data = data.to(device)
    init_seed, order_seed, augmentation_seed, dropout_seed, label_seed = seeds_from(trial.seed, 5)
    dropout = settings.dropout if isinstance(settings, DropoutImageSettings) else 0.0
    masks = torch.Generator(device).manual_seed(dropout_seed)
    network = initialized(
        lambda: build_image_model(model, data.classes, dropout=dropout, generator=masks), init_seed
    ).to(device)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)  # type: ignore[call-overload]
    batches = TrainingBatches(
        data,
        settings,
        order=torch.Generator().manual_seed(order_seed),
        augmentation=Augmentation(settings, augmentation_seed, mirror=mirror),
        label_noise=torch.Generator().manual_seed(label_seed),
    )
    autocast = torch.autocast(
        device.type, dtype=getattr(torch, settings.precision), enabled=settings.precision != "float32"
    )
    # Without float16 it hands the loss and the step through.
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")

    def losses() -> Iterator[tuple[Tensor, int]]:
        for batch in batches.epoch():
            with autocast:
                loss = batch.loss(network(batch.x.contiguous(memory_format=layout)), settings.label_smoothing)
            yield loss, len(batch.y)

    def step(loss: Tensor, optimizer: Optimizer) -> None:
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()

    def errors() -> dict[str, float]:
        with autocast:
            return split_errors(data, lambda x, y: error_percent(network, data, x, y))

    train_epochs(
        trial, settings, network, math.ceil(len(data.train_x) / settings.batch_size), losses, errors, step=step
    )
    trial.measure_flatness(network, F.cross_entropy, FlatnessBatches(data))


@torch.no_grad()
def error_percent(network: nn.Module, data: Images, x: Tensor, y: Tensor) -> float:
    """Return the share of wrongly classified images in percent; NaN if any output of the model is not finite.

    Args:
        network: in evaluation mode.
        data: what normalises the images.
        x: images, uint8, shape ``(n, channels, height, width)``.
        y: their classes, shape ``(n,)``.
    """
    wrong = torch.zeros((), dtype=torch.int64, device=x.device)
    finite = torch.ones((), dtype=torch.bool, device=x.device)
    for images, classes in zip(torch.split(x, EVALUATION_BATCH), torch.split(y, EVALUATION_BATCH), strict=True):
        outputs = network(data.normalised(images))
        wrong += (outputs.argmax(dim=1) != classes).sum()
        finite &= outputs.isfinite().all()
    return 100.0 * wrong.item() / len(x) if finite else math.nan


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
    "all-cnn-c": {**SGD, "epochs": 350, "learning_rate": 0.05, "weight_decay": 1e-3, "dropout": 0.5, "augment": False},
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
