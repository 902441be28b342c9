"""Data as batches: whatever the user has, read again and again, on the model's device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flatter.flatness.errors import FlatnessError
from flatter.flatness.random_state import RandomState

Batch = Any


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches that are the same at every pass.

    Every pass starts with the random states of the first, so a loader that shuffles or augments gives the same batches
    every time (one whose worker processes persist and augment does not: the loss then differs from pass to pass, which
    is noticed).

    Attributes:
        data: what the user gave: an iterable that can be iterated again, or a list of the one batch that was given.
        single: whether one batch was given, rather than an iterable of them.
        limit: use at most so many batches of a pass; ``None``: all.
        device: where the batches' tensors go.
        dtype: dtype of their floating-point tensors; ``None``: their own.
        random: the random states that every pass starts with.
    """

    data: Iterable[Batch]
    single: bool
    limit: int | None
    device: torch.device
    dtype: torch.dtype | None
    random: RandomState

    @classmethod
    def of(
        cls, data: Any, limit: int | None, device: torch.device, dtype: torch.dtype | None, random: RandomState
    ) -> Batches:
        """Check the data and put a single batch on the device, once for all.

        Raises:
            FlatnessError: ``data`` cannot be iterated, or only once; ``limit`` is not a positive whole number.
        """
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise FlatnessError(f"max_batches must be a positive whole number, or None for all batches; got {limit!r}")
        single = is_batch(data)
        if single:
            data = [moved(data, device, dtype)]
        elif not isinstance(data, Iterable):
            raise FlatnessError(f"data must be a loader, a list of batches or one batch; got a {type(data).__name__}")
        elif isinstance(data, Iterator):
            raise FlatnessError(
                f"data is a {type(data).__name__}, which would be empty at the second pass: "
                "give the loader itself, or list(...) of it"
            )
        return cls(data, single, limit, device, dtype, random)

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        """Yield the number of each batch and the batch, on the device.

        Raises:
            FlatnessError: the loader raised.
        """
        self.random.restore()
        iterator = _iterate(self.data)
        number = 0
        while number != self.limit:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except Exception as error:
                raise FlatnessError(f"the data failed at batch {number}: {type(error).__name__}: {error}") from error
            yield number, batch if self.single else moved(batch, self.device, self.dtype)
            number += 1


def _iterate(data: Iterable[Batch]) -> Iterator[Batch]:
    yield from data  # so that an error in iter(data) is raised by the first next


def is_batch(data: Any) -> bool:
    """Whether data are one batch: a tensor, a mapping, or a tuple or list whose first item is a tensor."""
    return isinstance(data, (torch.Tensor, Mapping)) or (
        isinstance(data, (tuple, list)) and len(data) > 0 and isinstance(data[0], torch.Tensor)
    )


def moved(batch: Batch, device: torch.device, dtype: torch.dtype | None) -> Batch:
    """The batch on the device, its floating-point tensors in ``dtype``; tensors that are there already are shared.

    Looks into tuples, lists and dicts; anything else that has a method ``to``, such as the batches of transformers and
    PyG, is moved by it to the device (and keeps its dtypes); what has none is left as it is.
    """
    if isinstance(batch, torch.Tensor):
        return batch.to(device, dtype if batch.is_floating_point() else None)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(item, device, dtype) for item in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(moved(item, device, dtype) for item in batch)
    if isinstance(batch, dict):
        return {key: moved(item, device, dtype) for key, item in batch.items()}
    # Some of these move themselves: the user's stays where it is.
    return copy.copy(batch).to(device) if callable(getattr(batch, "to", None)) else batch


def first_dimension(batch: Batch) -> int:
    """How many samples a batch has: the length of its tensors' first dimension.

    Raises:
        FlatnessError: it has no tensor, or tensors that differ in the first dimension: then the number cannot be known.
    """
    lengths = {tensor.shape[0] if tensor.ndim else None for tensor in _tensors(batch)}
    if len(lengths) != 1 or None in lengths:
        raise FlatnessError(
            f"the number of samples of a batch ({type(batch).__name__}) is not plain from its tensors, whose first "
            f"dimensions are {sorted(map(str, lengths))}: give BatchLoss(function, count=...)"
        )
    return int(lengths.pop() or 0)


def _tensors(batch: Batch) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for item in batch.values():
            yield from _tensors(item)
    elif isinstance(batch, (tuple, list)):
        for item in batch:
            yield from _tensors(item)


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """A loss as a function of the model and a whole batch, for models that are not called as ``model(inputs)``.

    A transformer: ``BatchLoss(lambda model, batch: model(**batch).loss)``; a graph network:
    ``BatchLoss(lambda model, batch: loss(model(batch.x, batch.edge_index), batch.y), count=lambda b: b.num_graphs)``.

    Attributes:
        function: ``function(model, batch)`` returns the mean loss over the batch, a tensor of shape ``()``. It must use
            the model that it is handed.
        count: ``count(batch)`` returns how many samples (or tokens) the mean is over, the batch's weight in the mean
            over all data; default: the length of the first dimension that all the batch's tensors share.
    """

    function: Callable[[torch.nn.Module, Batch], torch.Tensor]
    count: Callable[[Batch], int] = first_dimension


def pair_loss(loss: Callable[[Any, Any], torch.Tensor]) -> BatchLoss:
    """The usual case, ``loss(model(inputs), targets)``, as a :class:`BatchLoss`; the samples are the inputs' first."""

    def function(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        inputs, targets = batch
        return loss(model(inputs), targets)

    def count(batch: Batch) -> int:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            shape = f" of {len(batch)} items" if isinstance(batch, (tuple, list)) else ""
            raise FlatnessError(
                f"a batch must be a pair (inputs, targets) of tensors; got a {type(batch).__name__}{shape}: "
                "for other batches give loss=BatchLoss(function), and of arrays make tensors first (torch.as_tensor)"
            )
        return first_dimension(batch[0])

    return BatchLoss(function, count)
