"""DenseNet-40-12, DenseNet-BC-100-12 and DenseNet-121 of Huang et al. (2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatwise_papers.tasks.image_models.layers import (
    DropoutGenerator,
    GlobalAverage,
    conv1x1,
    conv3x3,
    dropout_layer,
    he_normal,
)


class Layer(nn.Module):
    """Adds ``growth`` channels to its input: normalization, ReLU, 3×3 convolution."""

    def __init__(self, inputs: int, growth: int, dropout: nn.Module) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = conv3x3(inputs, growth)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return the input and the new features, ``inputs + growth`` channels."""
        return torch.cat([x, self.dropout(self.conv(F.relu(self.bn(x))))], dim=1)


class BottleneckLayer(nn.Module):
    """The same (``B``), but the 3×3 convolution reads ``4 * growth`` channels that a 1×1 convolution makes."""

    def __init__(self, inputs: int, growth: int, dropout: nn.Module) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv1x1(inputs, 4 * growth)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = conv3x3(4 * growth, growth)
        self.dropout = dropout  # without parameters, so the two convolutions can share it

    def forward(self, x: Tensor) -> Tensor:
        """Return the input and the new features, ``inputs + growth`` channels."""
        y = self.dropout(self.conv1(F.relu(self.bn1(x))))
        return torch.cat([x, self.dropout(self.conv2(F.relu(self.bn2(y))))], dim=1)


def densenet(
    classes: int,
    *,
    layers: Sequence[int],
    growth: int,
    compact: bool,
    dropout: float = 0.0,
    generator: DropoutGenerator = None,
) -> nn.Sequential:
    """Return the network for images of shape ``(3, 32, 32)``: DenseNet-BC-100-12 has 769,162 parameters at 10 classes.

    Args:
        classes: number of outputs.
        layers: layers of each dense block: 12, 12, 12 make DenseNet-40, and 16, 16, 16 DenseNet-BC-100. DenseNet-121
            (6, 12, 24, 16) is the paper's network for ImageNet; its stem here is a 3×3 convolution with stride 1, as
            is usual for CIFAR.
        growth: channels that each layer adds; the ``12`` of DenseNet-40-12.
        compact: the ``BC``: bottleneck layers, transitions that halve the channels, and ``2 * growth`` channels at the
            start instead of 16.
        dropout: probability that a feature is dropped after a convolution (but the first); the paper has 0.2 where it
            does not augment.
        generator: of the dropout's masks, on the device of the model.
    """
    layer = BottleneckLayer if compact else Layer
    channels = 2 * growth if compact else 16
    modules: list[nn.Module] = [conv3x3(3, channels)]
    for block, number in enumerate(layers):
        if block > 0:
            outputs = channels // 2 if compact else channels
            modules += [
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                conv1x1(channels, outputs),
                dropout_layer(dropout, generator),
                nn.AvgPool2d(2),
            ]
            channels = outputs
        for _ in range(number):
            modules.append(layer(channels, growth, dropout_layer(dropout, generator)))
            channels += growth
    model = nn.Sequential(*modules, nn.BatchNorm2d(channels), nn.ReLU(), GlobalAverage(), nn.Linear(channels, classes))
    he_normal(model)
    return model
