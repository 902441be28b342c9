"""Networks with shortcuts (ResNet, WRN, DenseNet) for images of 32×32 pixels, and the layers of all image models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatwise.study.tasks.training import Dropout

DropoutGenerator = torch.Generator | None


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3×3 convolution, padded so that stride 1 keeps the size, without bias: batch normalization follows."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 1×1 convolution without bias."""
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


def dropout_layer(dropout: float, generator: DropoutGenerator) -> nn.Module:
    """Return dropout, or a layer that does nothing where the probability is 0.

    Args:
        dropout: probability that an element is dropped.
        generator: of the masks, on the device of the model. May be ``None`` where the probability is 0.

    Raises:
        ValueError: a probability above 0 without a generator.
    """
    if dropout == 0:
        return nn.Identity()
    if generator is None:
        raise ValueError(f"dropout = {dropout} needs a generator for its masks: give generator=torch.Generator(device)")
    return Dropout(dropout, generator)


class GlobalAverage(nn.Module):
    """The mean over all positions: from ``(n, channels, height, width)`` to ``(n, channels)``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the means."""
        return x.mean(dim=(2, 3))


def he_normal(model: nn.Module) -> None:
    """Gives every convolution He et al.'s normal initial weights (2015, fan-in) and zero biases.

    Other layers keep torch's initial weights. Draws from the global random state, as torch's layers do.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class CifarBlock(nn.Module):
    """Two 3×3 convolutions, and a shortcut without parameters (option A).

    Where the block halves the size and doubles the channels, the shortcut takes every second pixel and fills the new
    channels with zeros, half of them before and half after the old ones.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.new_channels = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape ``(n, outputs, height / stride, width / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.new_channels:
            before = self.new_channels // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(y + x)


def resnet_cifar(classes: int, *, depth: int) -> nn.Sequential:
    """Return the network for images of shape ``(3, 32, 32)``: 269,722 parameters at depth 20 with 10 classes.

    Three stages of 16, 32 and 64 channels, each of ``(depth - 2) / 6`` blocks.

    Args:
        classes: number of outputs.
        depth: layers with weights; 6 n + 2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth = {depth}: these networks have 6 n + 2 layers, as in 20, 32, 44, 56, 110")
    layers: list[nn.Module] = [conv3x3(3, 16), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for outputs in (16, 32, 64):
        for number in range(blocks):
            layers.append(CifarBlock(inputs, outputs, stride=2 if number == 0 and outputs > 16 else 1))
            inputs = outputs
    model = nn.Sequential(*layers, GlobalAverage(), nn.Linear(64, classes))
    he_normal(model)
    return model


STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, and a shortcut that is a 1×1 convolution where the shape changes (option B)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape ``(n, width, height / stride, width / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 1×1 convolution to ``width`` channels, a 3×3 one, and a 1×1 one to four times as many."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = conv1x1(inputs, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape ``(n, 4 * width, height / stride, width / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.shortcut(x))


def resnet(classes: int, *, depth: int, dropout: float = 0.0, generator: DropoutGenerator = None) -> nn.Sequential:
    """Return the network for images of shape ``(3, 32, 32)``: 11,173,962 parameters at depth 18 with 10 classes.

    The stem is one 3×3 convolution with stride 1 instead of a 7×7 one and pooling, which would leave little of 32×32
    pixels. He et al. have no dropout; LRD's paper trains ResNet-34 with some (keep 0.9) and does not say where: here it
    acts on the features that the last layer reads.

    Args:
        classes: number of outputs.
        depth: 18, 34, 50 or 101.
        dropout: probability that one of these features is dropped.
        generator: of the dropout's masks, on the device of the model.
    """
    block = BasicBlock if depth < 50 else Bottleneck
    layers: list[nn.Module] = [conv3x3(3, 64), nn.BatchNorm2d(64), nn.ReLU()]
    inputs = 64
    for width, blocks in zip((64, 128, 256, 512), STAGES[depth], strict=True):
        for number in range(blocks):
            layers.append(block(inputs, width, stride=2 if number == 0 and width > 64 else 1))
            inputs = block.expansion * width
    model = nn.Sequential(*layers, GlobalAverage(), dropout_layer(dropout, generator), nn.Linear(inputs, classes))
    he_normal(model)
    return model


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))


class WideBlock(nn.Module):
    """Normalization and ReLU before each of two 3×3 convolutions, with dropout between these."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: nn.Module) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = dropout
        self.conv2 = conv3x3(outputs, outputs)
        self.shortcut = None if inputs == outputs else conv1x1(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape ``(n, outputs, height / stride, width / stride)``."""
        active = F.relu(self.bn1(x))
        y: Tensor = self.conv1(active)
        y = self.conv2(self.dropout(F.relu(self.bn2(y))))
        return y + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet(
    classes: int, *, depth: int, width: int, dropout: float = 0.0, generator: DropoutGenerator = None
) -> nn.Sequential:
    """Return WRN-depth-width for images of shape ``(3, 32, 32)``: WRN-28-10 has 36.5 million parameters.

    Args:
        classes: number of outputs.
        depth: layers with weights; 6 n + 4.
        width: how many times as wide as the networks of He et al.: 16, 32 and 64 channels times this.
        dropout: probability that a feature between the convolutions of a block is dropped; the paper's is 0.3.
        generator: of the dropout's masks, on the device of the model.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth = {depth}: these networks have 6 n + 4 layers, as in 16, 22, 28, 40")
    layers: list[nn.Module] = [conv3x3(3, 16)]
    inputs = 16
    for outputs in (16 * width, 32 * width, 64 * width):
        for number in range(blocks):
            stride = 2 if number == 0 and outputs > 16 * width else 1
            layers.append(WideBlock(inputs, outputs, stride, dropout_layer(dropout, generator)))
            inputs = outputs
    model = nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU(), GlobalAverage(), nn.Linear(inputs, classes))
    he_normal(model)
    return model


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
    layer = BottleneckLayer if compact else DenseLayer
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
