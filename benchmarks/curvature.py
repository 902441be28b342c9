"""What the top eigenvalues of a ResNet-18's Hessian cost, against the same number of bare Hessian-vector products.

Run with `python benchmarks/curvature.py`; it needs the `compare` extra (scipy). One batch of random images, random
labels, random weights. After every product that a contender makes, it is stopped and two bare products are timed, so
that other load on the machine meets all alike. Printed are the contender's own time, all of it, over the time of
as many bare products:

- bare: the textbook product, `grad(grad(loss), vector)`, with the forward pass and both backward passes every time
- bare, kept: the first two passes are made once, and only the last one every time

and the contenders are

- loader: `flatness.top_eigenvalues` with the batch in a list, as from a loader: all passes every time
- batch: the same with the batch itself: it keeps the first two passes
- eigsh: scipy's solver over the bare product, the vectors through numpy
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import time

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.nn import functional as F

from flatwise import flatness


class Block(nn.Module):
    """Two 3x3 convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.way = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.way = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images to images."""
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + self.way(x)).relu()


def resnet18() -> nn.Sequential:
    """ResNet-18 for 32x32 images: 11.2 million parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    width = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(width, outputs, stride), Block(outputs, outputs, 1)]
        width = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class Enough(Exception):
    """eigsh has made as many products as were allowed."""


class Bare:
    """Bare Hessian-vector products of the same loss, on a model of their own; and the time they took.

    Attributes:
        seconds: of all products since the start, with the passes remade and with them kept.
        stopped: seconds in which a contender was stopped.
    """

    def __init__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        self.model, self.x, self.y = copy.deepcopy(model), x, y
        self.parameters = list(self.model.parameters())
        self.sizes = [p.numel() for p in self.parameters]
        self.vector = torch.randn(sum(self.sizes), device=x.device)
        self.kept = self.gradient()
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self.seconds: tuple[list[float], list[float]] = ([], [])
        self.stopped = 0.0

    def gradient(self) -> tuple[torch.Tensor, ...]:
        """The first two passes."""
        loss = F.cross_entropy(self.model(self.x), self.y)
        return torch.autograd.grad(loss, self.parameters, create_graph=True)

    def product(self, vector: torch.Tensor, kept: bool = False) -> torch.Tensor:
        """The last pass, and the first two if they are not kept."""
        parts = [v.view_as(p) for v, p in zip(torch.split(vector, self.sizes), self.parameters, strict=True)]
        of = self.kept if kept else self.gradient()
        return torch.cat([h.flatten() for h in torch.autograd.grad(of, self.parameters, parts, retain_graph=kept)])

    def take_turn(self, *_: int) -> None:
        """Stop the contender and time both products."""
        times = [now()]
        for kept in (False, True):
            self.product(self.vector, kept)
            times.append(now())
            self.seconds[kept].append(times[-1] - times[-2])
        self.stopped += times[-1] - times[0]


def now() -> float:
    """Seconds, after the device has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8, help="images of 32x32 in the one batch")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--max-iter", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="loader,batch,eigsh")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    torch.manual_seed(0)
    model = resnet18().to(device).eval()
    x = torch.randn(given.batch, 3, 32, 32, device=device)
    y = torch.randint(0, 10, (given.batch,), device=device)
    bare = Bare(model, x, y)
    bare.take_turn()  # the warm-up
    options = {"k": given.k, "max_iter": given.max_iter, "progress": bare.take_turn}

    def scipy() -> flatness.Eigenvalues:
        def matvec(v: np.ndarray) -> np.ndarray:
            result = bare.product(torch.from_numpy(v.ravel()).to(device)).cpu().numpy()
            bare.take_turn()
            if len(bare.seconds[0]) == given.max_iter:
                raise Enough
            return result

        size = len(bare.vector)
        operator = LinearOperator((size, size), matvec=matvec, dtype=np.float32)
        start = np.random.default_rng(0).standard_normal(size).astype(np.float32)
        values = np.empty(0)
        with contextlib.suppress(Enough):
            values = eigsh(operator, given.k, which="LA", tol=1e-3, v0=start, return_eigenvectors=False)
        return flatness.Eigenvalues(tuple(sorted(values.tolist(), reverse=True)), (), True, len(bare.seconds[0]))

    contenders = {
        "loader": lambda: flatness.top_eigenvalues(model, F.cross_entropy, [(x, y)], **options),
        "batch": lambda: flatness.top_eigenvalues(model, F.cross_entropy, (x, y), **options),
        "eigsh": scipy,
    }
    print(f"{'':8}{'products':>9}{'ms each':>9}{'/ bare':>8}{'/ bare, kept':>14}   ({device}, batch {given.batch})")
    for name in given.only.split(","):
        bare.reset()
        start = now()
        found = contenders[name]()
        own = now() - start - bare.stopped
        over = [own / sum(seconds) for seconds in bare.seconds]
        each = 1e3 * own / found.products
        print(
            f"{name:8}{found.products:9}{each:9.0f}{over[0]:8.2f}{over[1]:14.2f}   {np.round(found.values, 4)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
