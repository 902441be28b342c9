"""Networks with shortcuts (ResNet, WRN, DenseNet) for images of 32×32 pixels, and the layers of all image models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Makes a dropout layer; the argument, 1 by default, is the layer's share of the probability that is set.
Drop = Callable[..., nn.Module]


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3×3 convolution, padded so that stride 1 keeps the size, without bias: batch normalization follows."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 1×1 convolution without bias."""
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


class GlobalAverage(nn.Module):
    """The mean over all positions: from ``(n, channels, height, width)`` to ``(n, channels)``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the means."""
        return x.mean(dim=(2, 3))


def _stages(
    block: Callable[[int, int, int], nn.Module], inputs: int, widths: Sequence[int], blocks: Sequence[int]
) -> list[nn.Module]:
    """Stages of blocks, made from inputs, width and stride: the first block of every later stage has stride 2."""
    layers = []
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for number in range(count):
            layers.append(block(inputs, width, 2 if number == 0 and stage > 0 else 1))
            inputs = width
    return layers


def _blocks_per_stage(depth: int, others: int) -> int:
    """Blocks in each of three stages of a network with so many layers, of which some are in no block."""
    blocks, rest = divmod(depth - others, 6)
    if rest or blocks < 1:
        examples = ", ".join(str(6 * n + others) for n in (2, 3, 4, 6))
        raise ValueError(f"depth = {depth}: these networks have 6 n + {others} layers, as in {examples}")
    return blocks


class PaddedShortcut(nn.Module):
    """He et al.'s option A: every ``stride``-th pixel, and new channels of zeros, half of them before the old ones."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape ``(n, outputs, height / stride, width / stride)``."""
        before = self.new_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """He et al.'s option B: a 1×1 convolution where the shape changes."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, and a shortcut that where the shape changes is padded or a convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, padded: bool = False) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        is_padded = padded and inputs != outputs
        self.shortcut = (PaddedShortcut if is_padded else _shortcut)(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape ``(n, outputs, height / stride, width / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 1×1 convolution to a quarter of the channels, a 3×3 one, and a 1×1 one to all of them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        width = outputs // 4
        self.conv1 = conv1x1(inputs, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape ``(n, outputs, height / stride, width / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.shortcut(x))


def resnet_cifar(classes: int, *, depth: int) -> nn.Sequential:
    """Return ResNet-20, 56 or 110, made for CIFAR (He et al. 2016, section 4.2): 269,722 parameters at depth 20.

    Three stages of 16, 32 and 64 channels, each of ``(depth - 2) / 6`` blocks; shortcuts without parameters.

    Args:
        classes: number of outputs.
        depth: layers with weights; 6 n + 2.
    """
    blocks = [_blocks_per_stage(depth, others=2)] * 3
    return nn.Sequential(
        conv3x3(3, 16),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *_stages(partial(BasicBlock, padded=True), 16, (16, 32, 64), blocks),
        GlobalAverage(),
        nn.Linear(64, classes),
    )


RESNETS: dict[int, tuple[Callable[[int, int, int], nn.Module], int, tuple[int, int, int, int]]] = {
    18: (BasicBlock, 1, (2, 2, 2, 2)),
    34: (BasicBlock, 1, (3, 4, 6, 3)),
    50: (Bottleneck, 4, (3, 4, 6, 3)),
    101: (Bottleneck, 4, (3, 4, 23, 3)),
}


def resnet(classes: int, drop: Drop, *, depth: int) -> nn.Sequential:
    """Return a ResNet (He et al. 2016, Table 1) for 32×32 pixels: 11,173,962 parameters at depth 18 with 10 classes.

    The stem is one 3×3 convolution with stride 1 instead of a 7×7 one and pooling, which would leave little of 32×32
    pixels. He et al. have no dropout; LRD's paper trains ResNet-34 with some (keep 0.9) and does not say where: here it
    acts on the features that the last layer reads.

    Args:
        classes: number of outputs.
        drop: makes the dropout.
        depth: 18, 34, 50 or 101.
    """
    block, expansion, blocks = RESNETS[depth]
    widths = [expansion * width for width in (64, 128, 256, 512)]
    return nn.Sequential(
        conv3x3(3, 64),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        *_stages(block, 64, widths, blocks),
        GlobalAverage(),
        drop(),
        nn.Linear(widths[-1], classes),
    )


class WideBlock(nn.Module):
    """Normalization and ReLU before each of two 3×3 convolutions, with dropout between these."""

    def __init__(self, inputs: int, outputs: int, stride: int, drop: Drop) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = drop()
        self.conv2 = conv3x3(outputs, outputs)
        self.shortcut = None if inputs == outputs else conv1x1(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape ``(n, outputs, height / stride, width / stride)``."""
        active = F.relu(self.bn1(x))
        y: Tensor = self.conv1(active)
        y = self.conv2(self.dropout(F.relu(self.bn2(y))))
        return y + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet(classes: int, drop: Drop, *, depth: int, width: int) -> nn.Sequential:
    """Return WRN-depth-width (Zagoruyko and Komodakis 2016) for 32×32 pixels; WRN-28-10 has 36.5 million parameters.

    Args:
        classes: number of outputs.
        drop: makes the dropout between the convolutions of a block; the paper's probability is 0.3.
        depth: layers with weights; 6 n + 4.
        width: how many times as wide as the networks of He et al.: 16, 32 and 64 channels times this.
    """
    blocks = [_blocks_per_stage(depth, others=4)] * 3
    outputs = 64 * width
    return nn.Sequential(
        conv3x3(3, 16),
        *_stages(partial(WideBlock, drop=drop), 16, (16 * width, 32 * width, outputs), blocks),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        GlobalAverage(),
        nn.Linear(outputs, classes),
    )


class DenseLayer(nn.Module):
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


def densenet(classes: int, drop: Drop, *, layers: Sequence[int], growth: int, compact: bool) -> nn.Sequential:
    """Return a DenseNet (Huang et al. 2017) for 32×32 pixels; DenseNet-BC-100-12 has 769,162 parameters at 10 classes.

    Args:
        classes: number of outputs.
        drop: makes the dropout after every convolution but the first; the paper has 0.2 where it does not augment.
        layers: layers of each dense block: 12, 12, 12 make DenseNet-40, and 16, 16, 16 DenseNet-BC-100. DenseNet-121
            (6, 12, 24, 16) is the paper's network for ImageNet; its stem here is a 3×3 convolution with stride 1, as
            is usual for CIFAR.
        growth: channels that each layer adds; the ``12`` of DenseNet-40-12.
        compact: the ``BC``: bottleneck layers, transitions that halve the channels, and ``2 * growth`` channels at the
            start instead of 16.
    """
    layer = BottleneckLayer if compact else DenseLayer
    channels = 2 * growth if compact else 16
    modules: list[nn.Module] = [conv3x3(3, channels)]
    for block, number in enumerate(layers):
        if block > 0:
            outputs = channels // 2 if compact else channels
            modules += [nn.BatchNorm2d(channels), nn.ReLU(), conv1x1(channels, outputs), drop(), nn.AvgPool2d(2)]
            channels = outputs
        for _ in range(number):
            modules.append(layer(channels, growth, drop()))
            channels += growth
    return nn.Sequential(*modules, nn.BatchNorm2d(channels), nn.ReLU(), GlobalAverage(), nn.Linear(channels, classes))
