"""The model and the data of the distributed tests; the same in every process."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """Shapes that two processes cannot share evenly: 7 and 9 rows, a bias of three and one of a single element."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.hidden = nn.Linear(5, 9)
        self.out = nn.Linear(9, 3)
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(self.embedding(tokens).mean(1)))) + self.shift


def network(phase: float = 0.0) -> Network:
    """A network with weights that are a function of ``phase``; torch's generator is not read."""
    with torch.device("meta"):
        model = Network()
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for position, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.sin(torch.arange(parameter.numel()) * 1.7 + position + phase).view(parameter.shape))
    return model


def batch(step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
    """The share of one rank of the batch of 8 of a step: tokens and targets."""
    count = torch.arange(8 * 4).view(8, 4) + 5 * step
    tokens, targets = (count * count + step) % 7, torch.cos(count[:, :3] * 1.3)
    return tokens.chunk(world)[rank], targets.chunk(world)[rank]


def backward(model: nn.Module, step: int, rank: int = 0, world: int = 1) -> None:
    """Fills the gradients with those of a step."""
    model.zero_grad()
    tokens, targets = batch(step, rank, world)
    (model(tokens) - targets).square().mean().backward()
