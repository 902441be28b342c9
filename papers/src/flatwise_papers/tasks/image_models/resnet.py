"""ResNet-18, 34, 50 and 101 of He et al. (2016, Table 1), with the usual stem for CIFAR."""

from __future__ import annotations

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
