"""A model, a loss and data as one function of a flat vector of parameters: its value, gradient and curvature.

Everything in this package is measured through :func:`measuring`, so that all of it guards the model, weights the
batches and reports bad input in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any, TypeAlias, TypedDict

import torch
from torch import nn
from torch.autograd.graph import Node

from flatwise.flatness._data import Batch, Batches, BatchLoss, Replay, pair_loss
from flatwise.flatness.guard import (
    Autocast,
    FlatnessError,
    Mode,
    RandomState,
    naming,
    reporting,
    trainable,
    twice_differentiable,
    untouched,
)

Parts: TypeAlias = list[torch.Tensor | None]
"""A derivative by each parameter; ``None`` where the loss does not depend on it."""
Loss: TypeAlias = Callable[[Any, Any], torch.Tensor] | BatchLoss
Progress: TypeAlias = Callable[[int, int], None]


class Options(TypedDict, total=False):
    """How to measure: keyword arguments that every instrument takes. :func:`measuring` explains them."""

    max_batches: int | None
    mode: Mode
    dtype: torch.dtype | None


@contextmanager
def measuring(
    model: nn.Module,
    loss: Loss,
    data: Any,
    *,
    max_batches: int | None = None,
    mode: Mode = "eval",
    dtype: torch.dtype | None = None,
) -> Iterator[Objective]:
    """Lend the model for a ``with`` block and give its mean loss over the data as an :class:`Objective`.

    The mean is over samples: each batch counts by how many it has, so a smaller last batch is right.

    Args:
        model: any module. It comes back as it was: see :func:`flatwise.flatness.guard.untouched`.
        loss: ``loss(output, target)``, the mean over the batch, for batches that are pairs ``(inputs, targets)`` and a
            model that is called as ``model(inputs)``; or a :class:`BatchLoss` for anything else. A module works too,
            and is lent like the model.
        data: an iterable of batches that can be iterated again, such as a data loader or a list; or one batch: a tuple
            or list that starts with a tensor, or a mapping. A batch is moved to the device of the model's first
            parameter at every pass (one single batch, only once), and passes see the same batches even if the loader
            shuffles: an error says where that cannot be had.
        max_batches: use only the first so many batches; default: all.
        mode: ``"eval"`` (the default), ``"train"`` or ``"keep"``: see :func:`flatwise.flatness.guard.untouched`. In
            ``"train"`` BatchNorm uses the statistics of each batch, so the loss depends on how samples are batched.
        dtype: compute in this dtype, model, data and sums (``torch.float64`` for small eigenvalues of a float32
            model); default: the model's own, with sums in float32 at least.

    A ``torch.autocast`` around the block, or around a call in it, acts on the model, the loss and the data, not on the
    derivatives nor on other arithmetic in the block.

    Raises:
        FlatnessError: the model or the loss cannot be measured; also, within the block, from the objective's methods.
    """
    with measuring_again(model, loss, data, Replay(), max_batches, mode, dtype) as objective:
        yield objective


@contextmanager
def measuring_again(
    model: nn.Module,
    loss: Loss,
    data: Any,
    replay: Replay,
    max_batches: int | None = None,
    mode: Mode = "eval",
    dtype: torch.dtype | None = None,
) -> Iterator[Objective]:
    """As :func:`measuring`, for data that must be the same as in an earlier pass, according to ``replay``."""
    with ExitStack() as stack:
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise FlatnessError(f"dtype must be a floating-point dtype, such as torch.float64; got {dtype!r}")
        if not callable(loss) and not isinstance(loss, BatchLoss):
            raise FlatnessError(f"loss must be loss(output, target) or a BatchLoss; got a {type(loss).__name__}")
        originals = dict(model.named_parameters()) if isinstance(model, nn.Module) else {}
        stack.enter_context(untouched(model, mode=mode, dtype=dtype, data=data))
        if isinstance(loss, nn.Module):
            stack.enter_context(untouched(loss, mode=mode, dtype=dtype))
        parameters = trainable(model)
        for name, parameter in parameters.items():
            if not parameter.is_floating_point():
                raise FlatnessError(f"parameter {name!r} is {parameter.dtype}: only real parameters can be measured")
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(twice_differentiable(model))
        device = next(iter(parameters.values())).device
        devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
        batches = Batches(data, max_batches, device, dtype, RandomState(devices, data), replay)
        autocast = Autocast.capture({"cpu", *(one.type for one in devices)})
        stack.callback(torch.clear_autocast_cache)  # of casts of the stand-ins
        stack.enter_context(autocast.off())
        batch_loss = loss if isinstance(loss, BatchLoss) else pair_loss(loss)
        yield Objective(model, batch_loss, batches, parameters, originals, autocast)


class Objective:
    """The mean loss over the data, as a function of the parameters as one flat vector. Made by :func:`measuring`.

    The vector has the parameters that require a gradient, in the order of ``model.named_parameters()`` (tied ones
    once); all others are constants. Methods take ``weights``, such a vector, and measure there; without it they measure
    at the model's own weights. The dropout masks are the same at every call.

    Every method raises :class:`FlatnessError` for data that are empty, that fail, or that differ from pass to pass; if
    the model or the loss raises; for a loss that is not a scalar or does not depend on the parameters; and for a vector
    of the wrong length. A loss or derivative that is not finite is an error at the model's own weights, and is returned
    at others.

    Attributes:
        size: length of the vector.
        device: where vectors are: the device of the first parameter.
        dtype: the vectors' dtype: the parameters' widest, and float32 at least.
        shapes: by name, the shape of each parameter in the vector, in its order.
        samples: the sum of the batches' counts over a pass, usually the number of samples; ``None`` before the first
            pass is finished.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: BatchLoss,
        batches: Batches,
        parameters: dict[str, nn.Parameter],
        originals: dict[str, nn.Parameter],
        autocast: Autocast,
    ) -> None:
        self.shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self.size = sum(parameter.numel() for parameter in parameters.values())
        self.device = batches.device
        self.dtype = reduce(torch.promote_types, (p.dtype for p in parameters.values()), torch.float32)
        self.samples: float | None = None
        self._model = model
        self._loss = loss
        self._batches = batches
        self._parameters = list(parameters.values())
        self._originals = [originals[name] for name in parameters]
        self._moved = False  # whether the stand-ins hold other weights than the model's own
        self._autocast = autocast  # around the block
        self._acting = autocast  # around the present call
        self._own_losses: dict[Autocast, float] = {}
        self._twice = False  # whether the gradient was found to have a derivative
        self._kept: Parts | None = None  # the gradient of a single batch, with its graph
        self._kept_under = autocast

    def vector(self) -> torch.Tensor:
        """The model's own weights, a new vector of shape ``(size,)``."""
        vector = torch.empty(self.size, dtype=self.dtype, device=self.device)
        for part, original in zip(self.split(vector).values(), self._originals, strict=True):
            part.copy_(original.detach())
        return vector

    def split(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """A vector of shape ``(size,)`` as views by parameter name, in the parameters' shapes."""
        return split(vector, self.shapes)

    def loss(self, weights: torch.Tensor | None = None) -> float:
        """The mean loss, summed in float64.

        Args:
            weights: where, shape ``(size,)``, any floating-point dtype; default: the model's own weights.
        """
        with self._called():
            return self._mean(weights, 0, lambda value: [])[0]

    def gradient(self, weights: torch.Tensor | None = None) -> tuple[float, torch.Tensor]:
        """The mean loss and its gradient, a vector of shape ``(size,)``. ``weights`` as for :meth:`loss`."""
        with self._called():
            loss, rows = self._mean(weights, 1, lambda value: [self._gradient(value)])
            return loss, rows[0]

    def hvp(self, vectors: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """The Hessian of the mean loss times one or several vectors.

        Several at once cost less than one by one: they share the forward and the first backward pass of each batch.
        If the data are one batch, given as such, its passes are kept for the calls to come.

        Args:
            vectors: shape ``(size,)``, or ``(n, size)`` for n of them.
            weights: as for :meth:`loss`.

        Returns:
            The products, in the shape of ``vectors`` and the objective's dtype.

        Raises:
            FlatnessError: also where a kernel or a custom function has no second derivative.
        """
        if vectors.ndim not in (1, 2):
            raise FlatnessError(f"vectors must have shape (size,) or (n, size); got shape {tuple(vectors.shape)}")
        with self._called():
            stacked = vectors.detach().to(self.device, self.dtype).reshape(-1, vectors.shape[-1])
            kept = self._kept if self._kept_under == self._acting and not self._moved else None
            if kept is not None and weights is None:
                products = self._zeros(len(stacked))
                for row, product in zip(products, self._products(kept, stacked, keep=True), strict=True):
                    self._add(row, product, 1)
            else:

                def derive(value: torch.Tensor) -> Iterator[Parts]:
                    gradient = self._gradient(value, create_graph=True)
                    if not self._twice:
                        _check_twice(gradient)
                        self._twice = True
                    keep = self._batches.single and weights is None
                    if keep:
                        self._kept, self._kept_under = gradient, self._acting
                    yield from self._products(gradient, stacked, keep=keep)

                products = self._mean(weights, len(stacked), derive)[1]
            return products.view(vectors.shape)

    @contextmanager
    def _called(self) -> Iterator[None]:
        """A call of a method: derivatives are on, and autocast, if any, is for the user's code alone."""
        within = Autocast.capture({"cpu", self.device.type})
        self._acting = within if within.dtypes else self._autocast
        with torch.inference_mode(False), torch.enable_grad(), within.off():
            yield

    def _mean(
        self, weights: torch.Tensor | None, rows: int, derive: Callable[[torch.Tensor], Iterable[Parts]]
    ) -> tuple[float, torch.Tensor]:
        """The mean over all samples of the loss, and of what ``derive`` makes of each batch's loss.

        Returns:
            The mean loss, and a tensor of shape ``(rows, size)``.
        """
        own = weights is None
        self._place(weights)
        torch.clear_autocast_cache()  # a cast that is kept would be of the weights before
        total, samples, sums = 0.0, 0.0, self._zeros(rows)
        for number, batch in self._batches.read(self._acting):
            with naming(f"batch {number}"):
                count = self._count(batch)
                if count == 0:
                    continue
                value = self._value(batch)
                if self.samples is None:
                    self._check_source(value)
                batch_loss = float(value.detach())
                if own and not math.isfinite(batch_loss):
                    raise FlatnessError(f"the loss is {batch_loss} at the model's own weights")
                total += batch_loss * count
                samples += count
                # From the second pass on, the number of all samples is known: no division is left for the end.
                weight = count if self.samples is None else count / self.samples
                for row, parts in zip(sums, derive(value), strict=True):
                    self._add(row, parts, weight)
        if self.samples is None and samples:
            sums /= samples
        self._check_pass(samples, total, own=own)
        # Almost always the sum is finite if all values are, and checking it takes a tenth of the time.
        if own and rows and not sums.sum().isfinite() and not sums.isfinite().all():
            raise FlatnessError(
                f"the loss is finite ({total / samples:g}) but a derivative of it is not: look for a square root, a "
                "norm or a logarithm of 0, or try dtype=torch.float64"
            )
        return total / samples, sums

    def _place(self, weights: torch.Tensor | None) -> None:
        """Have the stand-ins hold the given weights, or the model's own."""
        if weights is None and not self._moved:
            return
        self._kept = None  # its graph is of the weights that are overwritten now
        values = self._originals if weights is None else list(self.split(weights).values())
        self._moved = weights is not None
        with torch.no_grad():
            for parameter, value in zip(self._parameters, values, strict=True):
                parameter.copy_(value)

    def _count(self, batch: Batch) -> float:
        with reporting("it cannot be counted"):
            count = float(self._loss.count(batch))
        if not 0 <= count < math.inf:
            raise FlatnessError(f"its count is {count:g}: it must be a number, 0 or more")
        return count

    def _value(self, batch: Batch) -> torch.Tensor:
        with reporting("the model or the loss failed"), self._acting.on():
            value = self._loss.function(self._model, batch)
        if not isinstance(value, torch.Tensor) or value.shape != () or not value.is_floating_point():
            given = f"a {type(value).__name__}"
            if isinstance(value, torch.Tensor):
                given = f"a {value.dtype} tensor of shape {tuple(value.shape)}"
            raise FlatnessError(f"the loss must be the mean over the batch, a real tensor of shape (); got {given}")
        return value

    def _gradient(self, value: torch.Tensor, create_graph: bool = False) -> Parts:
        gradient: Parts = [None] * len(self._parameters)
        if value.requires_grad:
            with reporting("the loss cannot be differentiated"):
                gradient = list(
                    torch.autograd.grad(value, self._parameters, create_graph=create_graph, allow_unused=True)
                )
        if all(part is None for part in gradient):
            raise FlatnessError(
                "the loss does not depend on the model's parameters: was it computed from other "
                "weights, under torch.no_grad, or from a detached output?"
            )
        return gradient

    def _products(self, gradient: Parts, vectors: torch.Tensor, *, keep: bool) -> Iterator[Parts]:
        """The Hessian of one batch's loss times each vector, from the gradient and its graph, which may be kept."""
        # A parameter that the loss does not depend on, or only linearly, has no second derivative: it is 0.
        curved = [i for i, part in enumerate(gradient) if part is not None and part.requires_grad]
        outputs = [part for part in gradient if part is not None and part.requires_grad]
        for left, vector in zip(reversed(range(len(vectors))), vectors, strict=True):
            if not curved:
                yield [None] * len(self._parameters)
                continue
            along = list(self.split(vector).values())
            with reporting("the loss cannot be differentiated twice"):
                product = torch.autograd.grad(
                    outputs,
                    self._parameters,
                    # Each in the dtype and on the device of its parameter.
                    grad_outputs=[along[i].to(output) for i, output in zip(curved, outputs, strict=True)],
                    retain_graph=keep or left > 0,
                    allow_unused=True,
                )
            yield list(product)

    def _check_source(self, value: torch.Tensor) -> None:
        """Raise if the loss uses the model's own parameters: it bypasses the stand-ins, and part of it is lost."""
        own = {id(original) for original in self._originals}
        for node in _nodes([value]):
            if id(getattr(node, "variable", None)) in own:
                raise FlatnessError(
                    "the loss uses parameters that were taken from the model before: take them from "
                    "the model within the loss, as in BatchLoss(lambda model, batch: ... model.parameters() ...)"
                )

    def _zeros(self, rows: int) -> torch.Tensor:
        return torch.zeros(rows, self.size, dtype=self.dtype, device=self.device)

    def _add(self, row: torch.Tensor, parts: Parts, weight: float) -> None:
        for view, part in zip(self.split(row).values(), parts, strict=True):
            if part is not None:
                view.add_(part.detach().to(view), alpha=weight)

    def _check_pass(self, samples: float, total: float, *, own: bool) -> None:
        """Raise if a finished pass was empty, or differed from an earlier one."""
        if not self._batches.replay.batches:
            raise FlatnessError("the data are empty: the loader gave no batch")
        if samples == 0:
            raise FlatnessError("the data count nothing: every batch has a count of 0, such as ignored targets alone")
        if self.samples is None:
            self.samples = samples
        if samples != self.samples:
            raise FlatnessError(
                f"the batches counted {self.samples:g} samples at the first pass and {samples:g} at a later one: give "
                "the same batches every time, such as list(loader)"
            )
        if not own:
            return
        loss = total / samples
        own_loss = self._own_losses.setdefault(self._acting, loss)
        # Parallel sums may round differently from pass to pass, but not by more than this.
        rounding = max([1e-4, *(10 * torch.finfo(parameter.dtype).eps for parameter in self._parameters)])
        if not math.isclose(loss, own_loss, rel_tol=rounding, abs_tol=1e-7):
            raise FlatnessError(
                f"the loss at the same weights was {own_loss:g} at the first pass and is {loss:g} at a later "
                "one: the data or the model are random in a way that cannot be replayed; give the same batches every "
                "time, such as list(loader)"
            )


def split(vector: torch.Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
    """A vector over the parameters that require a gradient as views by name.

    Raises:
        FlatnessError: its length is not that of the parameters.
    """
    lengths = [math.prod(shape) for shape in shapes.values()]
    if vector.shape != (sum(lengths),):
        raise FlatnessError(
            f"a vector of all parameters that require a gradient has shape ({sum(lengths)},) for this model; "
            f"got {tuple(vector.shape)}"
        )
    parts = torch.split(vector, lengths)
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _nodes(tensors: Iterable[torch.Tensor | None]) -> Iterator[Node]:
    """All nodes of the tensors' graphs, each once."""
    stack = [tensor.grad_fn for tensor in tensors if tensor is not None]
    seen: set[Node] = set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack += [following for following, _ in node.next_functions]


def _check_twice(gradient: Parts) -> None:
    """Raise if a custom function is ``once_differentiable``: torch raises only if nothing else is differentiated.

    Torch's error node has a leaf of its own, which a derivative by the parameters never reaches: the part of the
    Hessian that goes through the function would silently be 0.
    """
    for node in _nodes(gradient):
        if node.name() == "torch::autograd::Error":
            raise FlatnessError(
                "the loss cannot be differentiated twice: it goes through a torch.autograd.Function "
                "that is marked once_differentiable"
            )
