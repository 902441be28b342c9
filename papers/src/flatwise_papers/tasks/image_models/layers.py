"""What the image models share: convolutions, dropout that may be off, and the initial weights."""

from __future__ import annotations

import torch
from torch import nn

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
