"""ResNet-20, 56 and 110: the networks that He et al. (2016, section 4.2) made for CIFAR."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from flatwise_papers.tasks.image_models.layers import GlobalAverage, conv3x3, he_normal


class Block(nn.Module):
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
            layers.append(Block(inputs, outputs, stride=2 if number == 0 and outputs > 16 else 1))
            inputs = outputs
    model = nn.Sequential(*layers, GlobalAverage(), nn.Linear(64, classes))
    he_normal(model)
    return model
