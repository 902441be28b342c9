"""Multilayer perceptrons: the model, and what trains it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import nn

from flatter.study.data import Classification
from flatter.study.tasks.classifier import train_classifier
from flatter.study.tasks.regularization import Dropout
from flatter.study.tasks.task import ClassificationSettings

if TYPE_CHECKING:
    from flatter.study.trial import Trial


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
    """Train an MLP: see :func:`~flatter.study.tasks.classifier.train_classifier`.

    Args:
        trial: the seed, and where to attach and report.
        settings: how to train.
        data: what to train on, on any device.
        widths: see :func:`build_mlp`; first the number of features, last the number of classes.

    Raises:
        SettingsError: the settings ask for a device that is not there.
    """
    train_classifier(trial, settings, data, lambda masks: build_mlp(widths, settings.dropout, masks))
