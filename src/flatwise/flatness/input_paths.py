"""Loss against perturbations of the inputs (peak-LR paper, section 6.2).

Arguments, several models and several data sets, and infinite losses: as in :mod:`flatwise.flatness.paths`. Inputs are
floating-point tensors of one shape. A batch is a pair ``(inputs, targets)``; with a
:class:`flatwise.flatness.BatchLoss` also any tuple or list that starts with the inputs, or the inputs alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from typing_extensions import Unpack

from flatwise.flatness._data import Batch, Batches, BatchLoss, pair_loss
from flatwise.flatness._models_and_data import Models, ModelsAndData, PathOptions, Rows
from flatwise.flatness.guard import Autocast, FlatnessError, RandomState, checked_count, naming
from flatwise.flatness.objective import Loss, Objective
from flatwise.flatness.paths import LossCurve, LossCurves, checked_distances

# So many distances between inputs are held at once (64 MiB in float32).
DISTANCES = 1 << 24

Direction: TypeAlias = Callable[[int, torch.Tensor], torch.Tensor]
"""From the number of a batch and its inputs, what to add to them, times the distance: a tensor that broadcasts."""


def input_noise_paths(
    model: Models,
    loss: Loss,
    data: Any,
    *,
    directions: int = 10,
    distances: Iterable[float] | None = None,
    seed: int = 0,
    **options: Unpack[PathOptions],
) -> LossCurves:
    """Loss against input noise of norm 1: each direction, and their mean.

    ``mean over x of L(w; x + α x_noise)``, with ``x_noise`` normal, normalised to ``‖x_noise‖ = 1``. The paper does not
    say whether each sample has noise of its own; its figure draws a line per "random noise direction", so here a
    direction is one noise tensor of a sample's shape, added to every sample. ``curve().losses`` has a row for each,
    ``curve().mean`` is the ensemble mean. All models and data sets have the same directions.

    Args:
        directions: how many. Default: 10.
        distances: α, in the units of the inputs as the model sees them; default: 11 from 0 to the mean norm of the
            inputs of the first data set. (With n features, noise of norm α changes each by about α/√n.)
        seed: of the noise, which comes from a generator of its own.
        **options: ``max_batches``, ``mode``, ``dtype`` and ``progress``: as in :mod:`flatwise.flatness.paths`.

    Raises:
        FlatnessError: bad input; inputs that are no floating-point tensors of one shape.
    """
    checked_count("directions", directions)
    chosen = None if distances is None else checked_distances(distances)
    compared = ModelsAndData(model, loss, data, **options)
    step = compared.counter(len(compared.pairs) * directions * (11 if chosen is None else len(chosen)))
    curves = []
    for name, one in compared.pairs:
        shifted = _ShiftedInputs(compared.loss)
        with compared.measuring(name, one, shifted.loss) as objective:
            center = objective.loss()
            if chosen is None:
                chosen = tuple((shifted.mean_norm or 1.0) * index / 10 for index in range(11))
            along = [_constant(noise) for noise in unit_noise(shifted.shape, directions, seed)]
            losses = shifted.losses(objective, center, along, chosen, step)
        curves.append(LossCurve(name, one, center, losses))
    assert chosen is not None
    return LossCurves(chosen, tuple(curves))


def validation_paths(
    model: Models,
    loss: Loss,
    data: Any,
    validation: Any,
    *,
    nearest: int = 10,
    trials: int = 10,
    fractions: Iterable[float] | None = None,
    seed: int = 0,
    **options: Unpack[PathOptions],
) -> LossCurves:
    """Loss on the way from each training input to one of its ten nearest validation inputs.

    ``mean over x_train of L(w; x_train + α (x_val − x_train))``; in each trial, ``x_val`` is drawn for each ``x_train``
    from its ten nearest. α is a fraction of the way, not a distance: at 1 every input is a validation input. The paper
    leaves open what "closest" means and which label is used: here, Euclidean distance between the inputs as the model
    sees them, whatever their classes, and the label of ``x_train``. So at α = 1 the loss also counts neighbours of
    another class as errors.

    Args:
        validation: the validation inputs, in the form of ``data`` (targets are passed over), or a tensor of them. All
            are held in memory.
        nearest: from how many neighbours to draw. Default: 10.
        trials: how many times; a row of ``losses`` for each. Default: 10.
        fractions: α; default: 11 from 0 to 1. They are the ``distances`` of the result.
        seed: of the draws, which come from a generator of their own.
        **options: ``max_batches``, ``mode``, ``dtype`` and ``progress``: as in :mod:`flatwise.flatness.paths`.
            ``max_batches`` is for ``validation`` too.

    Raises:
        FlatnessError: bad input; fewer validation inputs than ``nearest``; inputs of different shapes.
    """
    checked_count("nearest", nearest)
    checked_count("trials", trials)
    tenths = tuple(index / 10 for index in range(11))
    chosen = tenths if fractions is None else checked_distances(fractions, "fractions")
    compared = ModelsAndData(model, loss, data, **options)
    candidates = _inputs(validation, compared)
    if len(candidates) < nearest:
        raise FlatnessError(f"nearest is {nearest}, but there are only {len(candidates)} validation inputs")
    step = compared.counter(len(compared.pairs) * trials * len(chosen))
    curves = []
    for name, one in compared.pairs:
        neighbours = _Neighbours(candidates, nearest)
        shifted = _ShiftedInputs(compared.loss, neighbours.find)
        with compared.measuring(name, one, shifted.loss) as objective:
            center = objective.loss()
            generator = torch.Generator().manual_seed(seed)
            along = (neighbours.towards_one(generator) for _ in range(trials))
            losses = shifted.losses(objective, center, along, chosen, step)
        curves.append(LossCurve(name, one, center, losses))
    return LossCurves(chosen, tuple(curves))


class _ShiftedInputs:
    """A loss over batches whose inputs are moved to ``inputs + distance · direction``.

    The first pass is over the inputs as they are.

    Args:
        loss: of the batches.
        visit: called with the inputs of each batch of the first pass, in order.

    Attributes:
        loss: the loss of moved inputs. Its parts are called once per batch, in order, ``count`` before ``function``.
        shape: shape of one sample's inputs, known from the first pass on.
    """

    def __init__(self, loss: Loss, visit: Callable[[torch.Tensor], None] | None = None) -> None:
        self.loss = BatchLoss(self._function, self._count)
        self.shape: torch.Size = torch.Size()
        self._own = loss if isinstance(loss, BatchLoss) else pair_loss(loss)
        self._visit = visit
        self._direction: Direction | None = None
        self._distance = 0.0
        self._number = 0
        self._norms, self._samples = 0.0, 0

    @property
    def mean_norm(self) -> float:
        """The mean Euclidean norm of a sample's inputs, known from the first pass on."""
        return self._norms / self._samples

    def losses(
        self,
        objective: Objective,
        center: float,
        directions: Iterable[Direction],
        distances: Sequence[float],
        step: Callable[[], None],
    ) -> Rows:
        """The loss at moved inputs, finite or not: for each direction, at each distance.

        Args:
            objective: of :attr:`loss`, after its first pass.
            center: the loss of that pass.
            directions: what to add to the inputs.
            distances: multiples of it.
            step: called after each loss.
        """
        # Given to the objective, they say that this is not the model's own loss: then a NaN is an outcome, and another
        # value at the same weights does not mean that the data are random.
        own = objective.vector()
        rows = []
        for self._direction in directions:
            row = []
            for self._distance in distances:
                self._number = 0
                row.append(center if self._distance == 0 else objective.loss(own))
                step()
            rows.append(tuple(row))
        return tuple(rows)

    def _count(self, batch: Batch) -> float:
        inputs = _first_tensor(batch)
        if self._samples and inputs.shape[1:] != self.shape:
            raise FlatnessError(
                f"all samples must have one shape to be moved alike: got {tuple(inputs.shape[1:])} after "
                f"{tuple(self.shape)}"
            )
        count = self._own.count(batch)
        if self._direction is None:
            self.shape = inputs.shape[1:]
            flat = inputs.detach().reshape(len(inputs), -1)
            self._norms += float(flat.to(torch.promote_types(flat.dtype, torch.float32)).norm(dim=1).sum())
            self._samples += len(inputs)
            if self._visit is not None:
                self._visit(inputs.detach())
        return count

    def _function(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        if self._direction is not None:
            inputs = _first_tensor(batch)
            batch = _with_first(batch, inputs + self._distance * self._direction(self._number, inputs))
        self._number += 1
        return self._own.function(model, batch)


def _first_tensor(batch: Batch) -> torch.Tensor:
    """The inputs of a batch: itself, or the first of a tuple or list.

    Raises:
        FlatnessError: not a floating-point tensor with a dimension of samples.
    """
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(inputs, torch.Tensor):
        raise FlatnessError(
            f"the inputs must be a tensor, first in a batch such as (inputs, targets); got a {type(inputs).__name__}"
        )
    if not inputs.is_floating_point() or inputs.ndim == 0:
        raise FlatnessError(
            f"the inputs must be floating-point, a row per sample, to be moved; got {inputs.dtype} of shape "
            f"{tuple(inputs.shape)}"
        )
    return inputs


def _with_first(batch: Batch, inputs: torch.Tensor) -> Batch:
    if isinstance(batch, torch.Tensor):
        return inputs
    if hasattr(batch, "_fields"):
        return type(batch)(inputs, *batch[1:])
    return type(batch)((inputs, *batch[1:]))


def unit_noise(shape: torch.Size, count: int, seed: int) -> list[torch.Tensor]:
    """Normal noise of norm 1, from a generator of its own, float64, on the CPU: the same for every model and device."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, max(1, math.prod(shape)), generator=generator, dtype=torch.float64, device="cpu")
    noise /= noise.norm(dim=1, keepdim=True)
    return [one.reshape(shape) for one in noise]


def _constant(noise: torch.Tensor) -> Direction:
    return lambda number, inputs: noise.to(inputs)


class _Neighbours:
    """The nearest candidates of all inputs, batch by batch."""

    def __init__(self, candidates: torch.Tensor, count: int) -> None:
        self._candidates = candidates
        self._count = count
        self._found: list[torch.Tensor] = []  # for each batch, indices of candidates, shape (samples, count)

    def find(self, inputs: torch.Tensor) -> None:
        """Find the neighbours of the next batch's inputs."""
        if inputs.shape[1:] != self._candidates.shape[1:]:
            raise FlatnessError(
                f"validation inputs have shape {tuple(self._candidates.shape[1:])}, but the data's "
                f"{tuple(inputs.shape[1:])}"
            )
        dtype = torch.promote_types(inputs.dtype, torch.float32)
        self._candidates = self._candidates.to(inputs.device)
        candidates = self._candidates.reshape(len(self._candidates), -1).to(dtype)
        rows = max(1, DISTANCES // len(candidates))
        found = [
            torch.cdist(some, candidates).topk(self._count, dim=1, largest=False).indices
            for some in torch.split(inputs.reshape(len(inputs), -1).to(dtype), rows)
        ]
        self._found.append(torch.cat(found))

    def towards_one(self, generator: torch.Generator) -> Direction:
        """From each input to one of its neighbours, drawn now."""
        drawn = []
        for indices in self._found:
            columns = torch.randint(0, self._count, (len(indices), 1), generator=generator, device="cpu")
            drawn.append(indices.gather(1, columns.to(indices.device)).flatten())
        return lambda number, inputs: self._candidates[drawn[number]].to(inputs) - inputs


def _inputs(validation: Any, compared: ModelsAndData) -> torch.Tensor:
    """All validation inputs, shape (n, ...), on the CPU. The random states are put back."""
    random = RandomState((), validation)
    parts: list[torch.Tensor] = []
    try:
        with torch.inference_mode(False):
            limit, dtype = compared.options.get("max_batches"), compared.options.get("dtype")
            for number, batch in Batches(validation, limit, torch.device("cpu"), dtype, random).read(Autocast()):
                with naming(f"validation batch {number}"):
                    parts.append(_first_tensor(batch).detach())
                    shape, first = tuple(parts[-1].shape[1:]), tuple(parts[0].shape[1:])
                    if shape != first:
                        raise FlatnessError(f"samples have shape {shape} after {first}")
    finally:
        random.restore()
    if not parts:
        raise FlatnessError("the validation data are empty: the loader gave no batch")
    return torch.cat(parts)
