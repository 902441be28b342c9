"""Classification: data as tensors, how a model trains on them, MLPs, and the built-in task on scikit-learn's digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F
from typing_extensions import Self

from flatwise.exceptions import FlatwiseError
from flatwise.study.task import ClassificationSettings, Task
from flatwise.study.tasks.training import (
    Dropout,
    disturb_labels,
    find_device,
    initialized,
    moved,
    percent_wrong,
    seeds_from,
    train_epochs,
)

if TYPE_CHECKING:
    from flatwise.study.trial import Trial


class DataError(FlatwiseError):
    """A data file is missing, corrupt, unreadable or cannot be downloaded. One line that says what to do."""


Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Classification:
    """Inputs and labels of the training, validation and test split.

    Attributes:
        train_x, val_x, test_x: inputs, shape ``(n, features)``: of images normalised pixels, float32, flattened row
            by row; of texts the numbers of words, int64.
        train_y, val_y, test_y: class of each input, int64, shape ``(n,)``, in ``0 .. classes - 1``.
        classes: number of classes.

    ``test_x`` and ``test_y`` are ``None`` in what a tuning trial is handed: see :meth:`without_test`.
    """

    train_x: torch.Tensor
    train_y: torch.Tensor
    val_x: torch.Tensor
    val_y: torch.Tensor
    test_x: torch.Tensor | None
    test_y: torch.Tensor | None
    classes: int

    def to(self, device: torch.device | str) -> Self:
        """Return the same data on ``device``; tensors that are there already are shared, not copied."""
        return moved(self, device)

    def without_test(self) -> Self:
        """Return the same data without the test split: what is not there cannot be chosen on."""
        return replace(self, test_x=None, test_y=None)


def normalised(
    train: tuple[Pixels, Labels], val: tuple[Pixels, Labels], test: tuple[Pixels, Labels], *, classes: int
) -> Classification:
    """Make a :class:`Classification` of images and labels: ``x = (pixel - mean) / std``.

    ``mean`` and ``std`` (the population's, divided by n) are two numbers, taken over all pixels of all images of the
    *training* split. One pair for all pixels, as is usual for MNIST: many pixels are always 0 and have no spread of
    their own to divide by.

    Args:
        train, val, test: images, uint8, shape ``(n, height, width)``, and labels, shape ``(n,)``.
        classes: number of classes.
    """
    # A histogram gives both statistics exactly, from integers, without a float copy of all pixels.
    counts = np.bincount(train[0].reshape(-1), minlength=256)
    values = np.arange(256)
    mean = float((counts * values).sum() / counts.sum())
    std = float(np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum()))
    table = ((values - mean) / std).astype(np.float32)

    splits = {}
    for name, (pixels, labels) in {"train": train, "val": val, "test": test}.items():
        splits[f"{name}_x"] = torch.from_numpy(table[pixels.reshape(len(pixels), -1)])
        splits[f"{name}_y"] = torch.from_numpy(labels.astype(np.int64))
    return Classification(**splits, classes=classes)


SPLIT_SEED = 0
VALIDATION_SHARE = 0.2
TEST_SHARE = 0.3

Indices = npt.NDArray[np.int64]


def load_digits() -> Classification:
    """Return the digits in a fixed, stratified split: 899 training, 359 validation and 539 test images.

    Half of the images train, a fifth validate, the rest test: a small training set leaves room for improvement, and a
    test set of 539 makes one image worth 0.19 % of test error (with the usual 20 % it would be 0.28 %). Inputs have 64
    features, ``(pixel - mean) / std`` with two numbers over all pixels of the training images. A writer's digits may
    be in more than one split, since scikit-learn does not say who wrote which.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install 'flatwise[compare]'.") from error
    digits = datasets.load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target  # the pixels are whole numbers, 0 to 16
    return normalised(*((images[split], labels[split]) for split in stratified_indices(labels)), classes=10)


def stratified_indices(labels: Labels) -> tuple[Indices, Indices, Indices]:
    """Split class by class: 20 % validation, 30 % test (rounded to whole images), the rest training.

    The same for the same labels, always: the images of a class are shuffled by ``numpy.random.RandomState(0)``, whose
    numbers numpy has frozen for good.

    Args:
        labels: class of each image, shape ``(n,)``.

    Returns:
        Indices of the training, validation and test images, each ascending.
    """
    random = np.random.RandomState(SPLIT_SEED)
    splits: tuple[list[Indices], list[Indices], list[Indices]] = ([], [], [])
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        first, second = round(VALIDATION_SHARE * len(members)), round((VALIDATION_SHARE + TEST_SHARE) * len(members))
        for split, part in zip(splits, (members[second:], members[:first], members[first:second]), strict=True):
            split.append(part)
    train, val, test = (np.sort(np.concatenate(split)) for split in splits)
    return train, val, test


BuildModel = Callable[[torch.Generator], nn.Module]


def train_classifier(
    trial: Trial,
    settings: ClassificationSettings,
    data: Classification,
    build: BuildModel,
    *,
    evaluation_batch: int | None = None,
) -> None:
    """Train a model with cross-entropy and report every epoch to the trial.

    The trial's seed decides the initial weights, the order of the data, which labels are wrong and the dropout masks,
    and nothing else does: generators of this function's own draw them, so the global random state is as it was. All but
    the masks are drawn on the CPU, so they are the same on every device. Every epoch visits each training example once;
    the last, smaller batch is kept, so an epoch has ``ceil(n / batch_size)`` steps.

    Reported per epoch: ``train_loss``, the mean over the examples of the loss at the step that used them, on the labels
    that it used; ``val_error`` and, where the data have a test split, ``test_error`` after the epoch, in percent, NaN
    when an output of the model is not finite; ``seconds``, the time for training alone, evaluation excluded. The
    flatness, where it is asked for, is that of the cross-entropy without weight decay and dropout, on the first
    training examples and their true labels.

    Args:
        trial: the seed, and where to attach and report.
        settings: how to train.
        data: what to train on, on any device.
        build: makes the model, whose layers may initialize themselves from torch's global generator; its argument is
            the generator of the dropout masks, on the device that the settings name.
        evaluation_batch: examples that are evaluated at once; default: all.

    Raises:
        SettingsError: the settings ask for a device that is not there.
    """
    device = find_device(settings)
    data = data.to(device)
    init_seed, order_seed, label_seed, dropout_seed = seeds_from(trial.seed, 4)
    masks = torch.Generator(device).manual_seed(dropout_seed)
    model = initialized(lambda: build(masks), init_seed).to(device)
    order = torch.Generator().manual_seed(order_seed)
    label_noise = torch.Generator().manual_seed(label_seed)
    examples = len(data.train_x)

    def losses() -> Iterator[tuple[torch.Tensor, int]]:
        labels = disturb_labels(data.train_y, settings.label_noise, data.classes, label_noise)
        for batch in torch.split(torch.randperm(examples, generator=order).to(device), settings.batch_size):
            yield F.cross_entropy(model(data.train_x[batch]), labels[batch]), len(batch)

    steps = math.ceil(examples / settings.batch_size)
    errors = partial(split_errors, data, lambda x, y: error_percent(model, x, y, evaluation_batch))
    train_epochs(trial, settings, model, steps, losses, errors)
    trial.measure_flatness(model, F.cross_entropy, flatness_batches(data))


def split_errors(data: Classification, error: Callable[[torch.Tensor, torch.Tensor], float]) -> dict[str, float]:
    """Error on the validation split, and on the test split if the data have one."""
    errors = {"val_error": error(data.val_x, data.val_y)}
    if data.test_x is not None and data.test_y is not None:
        errors["test_error"] = error(data.test_x, data.test_y)
    return errors


def flatness_batches(data: Classification) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The training examples in the data set's order, 500 at a time: the same for every arm and seed; nothing copied."""
    return list(zip(torch.split(data.train_x, 500), torch.split(data.train_y, 500), strict=True))


@torch.no_grad()
def error_percent(model: nn.Module, x: torch.Tensor, y: torch.Tensor, batch_size: int | None = None) -> float:
    """Return the share of wrongly classified examples in percent; NaN if any output of the model is not finite.

    Args:
        model: gives one output per class, shape ``(n, classes)``.
        x, y: inputs and classes.
        batch_size: examples that are evaluated at once; default: all.
    """
    return percent_wrong(torch.cat([model(batch) for batch in torch.split(x, batch_size or len(x))]), y)


class MlpSettings(ClassificationSettings):
    """Settings of the MLP tasks.

    Attributes:
        dropout: in [0, 1): the probability that a hidden unit is dropped in training; default 0. LRD's paper gives the
            opposite: its 0.9 retained is 0.1 here.
    """

    dropout: float = Field(default=0.0, ge=0, lt=1)


def build_mlp(widths: Sequence[int], dropout: float = 0.0, generator: torch.Generator | None = None) -> nn.Sequential:
    """Return linear layers of the given widths with ReLU between them and torch's default initialization.

    Args:
        widths: inputs, hidden layers, outputs: ``(784, 100, 10)`` has two linear layers.
        dropout: probability that a hidden unit is dropped in training; default 0, without dropout layers.
        generator: of the masks, on the model's device; needed with dropout.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        if dropout:
            assert generator is not None
            layers.append(Dropout(dropout, generator))
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def train_mlp(trial: Trial, settings: MlpSettings, data: Classification, *, widths: Sequence[int]) -> None:
    """Train an MLP: see :func:`~flatwise.study.tasks.classification.train_classifier`.

    Args:
        trial: the seed, and where to attach and report.
        settings: how to train.
        data: what to train on, on any device.
        widths: see :func:`build_mlp`; first the number of features, last the number of classes.

    Raises:
        SettingsError: the settings ask for a device that is not there.
    """
    train_classifier(trial, settings, data, lambda masks: build_mlp(widths, settings.dropout, masks))


def _load_digits(data_dir: Path | None) -> Classification:
    if data_dir is not None:
        raise DataError("the digits come with scikit-learn, and no file is read: leave the data folder away")
    return load_digits()


DIGITS_MLP = Task(
    name="digits-mlp",
    reads_files=False,
    summary="MLP on scikit-learn's 8×8 handwritten digits: no download, about a second per trial",
    # Chosen on the validation split over LEAP's grid of rates and weight decays, with momentum 0.9 and 0. A constant
    # rate of 0.1 does as well as this; the falling one leaves room for arms that multiply the rate by 3 or 4.
    settings=MlpSettings(epochs=30, batch_size=32, learning_rate=0.1, weight_decay=5e-3, schedule="cosine"),
    load=_load_digits,
    train=partial(train_mlp, widths=(64, 64, 10)),
)
