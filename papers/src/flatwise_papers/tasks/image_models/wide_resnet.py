"""Wide residual networks, WRN-16-8 and WRN-28-10, of Zagoruyko and Komodakis (2016)."""

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


class Block(nn.Module):
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
            layers.append(Block(inputs, outputs, stride, dropout_layer(dropout, generator)))
            inputs = outputs
    model = nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU(), GlobalAverage(), nn.Linear(inputs, classes))
    he_normal(model)
    return model
