"""Data as batches that are read again and again on the model's device, and the loss of a batch."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from flatwise.flatness.guard import Autocast, FlatnessError, RandomState, checked_count, naming, reporting

Batch = Any

# A tensor's bits are multiplied by so many different weights, in rows, and so many rows are held at once.
WIDTH, ROWS = 1 << 14, 64
# The mean of a loss over a batch is compared with that of its halves in so many batches.
HALVED = 4
# What torch's cross-entropy leaves out by default.
IGNORED = -100


@dataclass(slots=True)
class Replay:
    """The batches of a data set at the first pass over it, for comparison with later passes.

    Attributes:
        batches: a checksum of every batch, in order.
        complete: whether a pass was finished.
    """

    batches: list[int] = field(default_factory=list)
    complete: bool = False

    def check(self, number: int, batch: Batch) -> None:
        """Compare a batch with the one at its place in the first pass.

        Raises:
            FlatnessError: it differs, or the first pass had fewer batches.
        """
        found = checksum(batch)
        if number < len(self.batches):
            if found != self.batches[number]:
                raise _changed(f"batch {number} is another one than at the first pass")
        elif self.complete:
            raise _changed(f"the first pass had {len(self.batches)} batches, a later one has more")
        else:
            self.batches.append(found)

    def end(self, count: int) -> None:
        """Compare the number of batches at the end of a pass.

        Raises:
            FlatnessError: the first pass had more.
        """
        if count != len(self.batches):
            raise _changed(f"the first pass had {len(self.batches)} batches, a later one has {count}")
        self.complete = True


def _changed(how: str) -> FlatnessError:
    return FlatnessError(
        f"the data change: {how}. Every loss must be over the same data, but a sampler or augmentation with a state of "
        "its own, worker processes or an exhausted iterator cannot be replayed, and a model may write to its inputs: "
        "give list(loader)"
    )


class Batches:
    """Batches that are the same at every pass, on the model's device.

    Every pass starts with the random states of the first, so a loader that shuffles or augments gives the same batches
    every time. Where that is not enough (worker processes that persist and augment, a sampler that counts its epochs),
    the batches' checksums differ from those of the first pass, which is an error.

    Args:
        data: an iterable that can be iterated again, or one batch, which is put on the device once.
        limit: use at most so many batches of a pass; ``None``: all.
        device: where the batches' tensors go.
        dtype: dtype of their floating-point tensors; ``None``: their own.
        random: the random states that every pass starts with.
        replay: the batches at an earlier pass over the same data; default: none yet.

    Attributes:
        single: whether the data are one batch, rather than an iterable of them.

    Raises:
        FlatnessError: ``data`` cannot be iterated, or only once; ``limit`` is not a positive whole number.
    """

    def __init__(
        self,
        data: Any,
        limit: int | None,
        device: torch.device,
        dtype: torch.dtype | None,
        random: RandomState,
        replay: Replay | None = None,
    ) -> None:
        if limit is not None:
            checked_count("max_batches", limit)
        self.single = isinstance(data, (torch.Tensor, Mapping)) or (
            isinstance(data, (tuple, list)) and len(data) > 0 and isinstance(data[0], torch.Tensor)
        )
        if self.single:
            data = [moved(data, device, dtype)]
        elif not isinstance(data, Iterable):
            raise FlatnessError(f"data must be a loader, a list of batches or one batch; got a {type(data).__name__}")
        elif isinstance(data, Iterator):
            raise FlatnessError(
                f"data is a {type(data).__name__}, which would be empty at the second pass: "
                "give the loader itself, or list(...) of it"
            )
        self.device = device
        self.replay = Replay() if replay is None else replay
        self._data, self._limit, self._dtype, self._random = data, limit, dtype, random

    def read(self, autocast: Autocast) -> Iterator[tuple[int, Batch]]:
        """Yield the number of each batch and the batch, on the device; the data run under ``autocast``.

        Raises:
            FlatnessError: the loader raised, or the batches differ from those of the first pass.
        """
        self._random.restore()
        # The chain calls iter(data) only when the first batch is asked for: an error there is one of the data too.
        batches = itertools.islice(itertools.chain(self._data), self._limit)
        for number in itertools.count():
            with naming(f"batch {number}"), reporting("the data failed"), autocast.on():
                batch = next(batches, _END)
            if batch is _END:
                break
            self.replay.check(number, batch)
            yield number, batch if self.single else moved(batch, self.device, self._dtype)
        self.replay.end(number)


_END = object()


def moved(batch: Batch, device: torch.device, dtype: torch.dtype | None) -> Batch:
    """The batch on the device, its floating-point tensors in ``dtype``; tensors that are there already are shared.

    Looks into tuples, lists and dicts; anything else that has a method ``to``, such as the batches of transformers and
    PyG, is moved by it to the device (and keeps its dtypes). Everything else is left as it is.
    """
    if isinstance(batch, torch.Tensor):
        # A tensor that was made in inference mode cannot be saved for a derivative.
        batch = batch.clone() if batch.is_inference() else batch
        return batch.to(device, dtype if batch.is_floating_point() else None)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(item, device, dtype) for item in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(moved(item, device, dtype) for item in batch)
    if isinstance(batch, dict):
        return {key: moved(item, device, dtype) for key, item in batch.items()}
    # Some of these move in place: the copy keeps the user's batch where it is.
    return copy.copy(batch).to(device) if callable(getattr(batch, "to", None)) else batch


def first_dimension(batch: Batch) -> int:
    """How many samples a batch has: the length of its tensors' first dimension.

    Raises:
        FlatnessError: it has no tensor, or tensors that differ in the first dimension, or integers of −100, which
            torch's cross-entropy leaves out of its mean: then the number cannot be known.
    """
    lengths = {tensor.shape[0] if tensor.ndim else None for tensor in _tensors(batch)}
    if len(lengths) != 1 or None in lengths:
        raise FlatnessError(
            f"the number of samples of a batch ({type(batch).__name__}) is unclear from its tensors, whose first "
            f"dimensions are {sorted(map(str, lengths))}: give BatchLoss(function, count=...)"
        )
    if any(tensor.dtype == torch.int64 and bool((tensor == IGNORED).any()) for tensor in _tensors(batch)):
        raise FlatnessError(
            f"it has targets of {IGNORED}, which torch's cross-entropy leaves out, so the number of samples is not "
            "what its mean is over: give loss=torch.nn.CrossEntropyLoss(), or BatchLoss(function, count=...) with the "
            "number of targets that count"
        )
    samples = int(lengths.pop() or 0)
    if samples == 0:
        raise FlatnessError("it has no samples")
    return samples


def checksum(batch: Batch) -> int:
    """A number that differs if any bit, shape or dtype in the batch does, with probability 1 − 2⁻³².

    Looks into tuples, lists and mappings. In other objects, only the attributes that may hold tensors or arrays count.
    """
    total = 0
    for part in _parts(batch, frozenset()):
        total = zlib.crc32(part, total)
    return total


def _parts(item: Any, above: frozenset[int]) -> Iterator[bytes]:
    if isinstance(item, torch.Tensor):
        yield from _tensor_parts(item)
    elif isinstance(item, np.ndarray) and item.dtype != object:
        yield f"{item.dtype}{item.shape}".encode()
        yield np.ascontiguousarray(item).tobytes()
    elif item is None or isinstance(item, (bool, int, float, complex, str, bytes)):
        yield repr(item).encode()
    elif id(item) not in above:
        above |= {id(item)}
        yield type(item).__name__.encode()
        if isinstance(item, Mapping):
            inner: list[Any] = [part for pair in item.items() for part in pair]
        elif isinstance(item, (tuple, list)):
            inner = list(item)
        else:
            # Numbers and caches among the attributes may change by themselves.
            inner = [part for part in getattr(item, "__dict__", {}).values() if _holds_tensors(part)]
        for part in inner:
            yield from _parts(part, above)


def _holds_tensors(item: Any) -> bool:
    return isinstance(item, (torch.Tensor, np.ndarray, Mapping, tuple, list)) or hasattr(item, "__dict__")


def _tensor_parts(tensor: torch.Tensor) -> Iterator[bytes]:
    """Dtype, shape and layout, and sums of the tensor's words, each times a weight of its place: exact in any order."""
    yield f"{tensor.dtype}{tuple(tensor.shape)}{tensor.layout}".encode()
    if tensor.is_nested:
        for part in tensor.unbind():
            yield from _tensor_parts(part)
    elif tensor.layout == torch.sparse_coo:
        yield from _tensor_parts(tensor._indices())
        yield from _tensor_parts(tensor._values())
    elif tensor.layout != torch.strided:
        yield from _tensor_parts(tensor.to_sparse(layout=torch.sparse_coo))
    elif tensor.numel() and tensor.device.type != "meta":
        flat = tensor.detach().resolve_conj().resolve_neg().contiguous().flatten()
        words = (torch.view_as_real(flat).flatten() if flat.is_complex() else flat).view(torch.uint8)
        if words.storage_offset() % 8:
            words = words.clone()
        whole = len(words) // 8 * 8
        rows: list[int] = words[whole:].tolist()
        words = words[:whole].view(torch.int64)
        weights = _weights(words.device)
        for block in torch.split(words, WIDTH * ROWS):
            full = len(block) // WIDTH * WIDTH
            rows += (block[:full].view(-1, WIDTH) * weights).sum(dim=1).tolist()
            rows.append(int((block[full:] * weights[: len(block) - full]).sum()))
        yield repr(rows).encode()


@functools.lru_cache(maxsize=8)
def _weights(device: torch.device) -> torch.Tensor:
    """Odd numbers, so that no change of one word is lost: shape ``(WIDTH,)``, int64."""
    with torch.inference_mode(False):
        steps = torch.arange(1, WIDTH + 1, dtype=torch.int64, device=device)
        return (steps * 0x1E3779B97F4A7C15) | 1


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
            the model that it is given.
        count: ``count(batch)`` returns how many samples (or tokens) the mean is over, the batch's weight in the mean
            over all data: with ignored targets, the number of the others; with class weights, their sum. A batch that
            counts 0 is skipped. Default: the length of the first dimension that all the batch's tensors share.
    """

    function: Callable[[torch.nn.Module, Batch], torch.Tensor]
    count: Callable[[Batch], float] = first_dimension


def pair_loss(loss: Callable[[Any, Any], torch.Tensor]) -> BatchLoss:
    """The usual case, ``loss(model(inputs), targets)``, as a :class:`BatchLoss`.

    Batches count by their samples, the inputs' first dimension. Torch's cross-entropy and negative log-likelihood, as
    modules, functions or ``functools.partial`` of these, average over the targets that are not ignored, with class
    weights, and their batches count accordingly. Any other loss is also evaluated on the halves of the first batches:
    over the whole batch it must be their mean.

    Raises:
        FlatnessError: ``loss`` has ``reduction="sum"``.
    """
    pair = _PairLoss(loss)
    return BatchLoss(pair.function, pair.count)


class _PairLoss:
    """``loss(model(inputs), targets)`` of a batch, and what the batch counts."""

    def __init__(self, loss: Callable[[Any, Any], torch.Tensor]) -> None:
        if _setting(loss, "reduction") == "sum":
            raise FlatnessError("the loss has reduction='sum': give one with reduction='mean', the mean over the batch")
        self._loss = loss
        self._is_cross_entropy = _is_cross_entropy(loss)
        self._is_torchs = _is_torchs(loss)
        self._halved = 0
        self._not_mean: str | None = None

    def function(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        inputs, targets = batch
        output = model(inputs)
        value = self._loss(output, targets)
        if self._halved < HALVED and not self._is_torchs:
            self._check_mean(output, targets, value)
        return value

    def count(self, batch: Batch) -> float:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            shape = f" of {len(batch)} items" if isinstance(batch, (tuple, list)) else ""
            raise FlatnessError(
                f"a batch must be a pair (inputs, targets) of tensors; got a {type(batch).__name__}{shape}: "
                "for other batches give loss=BatchLoss(function), and of arrays make tensors first (torch.as_tensor)"
            )
        inputs, targets = batch
        samples = first_dimension(inputs)
        if self._is_cross_entropy and isinstance(targets, torch.Tensor) and not targets.is_floating_point():
            # The mean is over the targets that are not ignored, each with its class's weight.
            kept = targets != _setting(self._loss, "ignore_index", IGNORED)
            weight = _setting(self._loss, "weight")
            if weight is None:
                return int(kept.sum())
            return float(weight.detach().to(targets.device, torch.float64)[targets[kept]].sum())
        if isinstance(targets, torch.Tensor) and targets.ndim:
            first_dimension(targets)  # refuses ignored targets
        return samples

    def _check_mean(self, output: Any, targets: Any, value: Any) -> None:
        """Raise for a sum, and over several batches also for a loss that is not the mean over the samples."""
        self._halved += 1
        if self._not_mean is not None:
            raise FlatnessError(self._not_mean)
        if not all(isinstance(tensor, torch.Tensor) for tensor in (output, targets, value)):
            return
        if value.shape != () or not value.is_floating_point():
            return
        if 0 in (output.ndim, targets.ndim) or not 2 <= len(output) == len(targets):
            return
        middle = len(output) // 2
        random = RandomState({output.device})
        try:
            with torch.no_grad():
                first = float(self._loss(output[:middle], targets[:middle]))
                second = float(self._loss(output[middle:], targets[middle:]))
        except Exception:
            return  # a loss that wants whole batches
        finally:
            random.restore()
        whole = float(value.detach())
        if not (math.isfinite(whole) and math.isfinite(first) and math.isfinite(second)):
            return
        mean = (middle * first + (len(output) - middle) * second) / len(output)
        precision = max([torch.finfo(t.dtype).eps for t in (output, value) if t.is_floating_point()], default=0.0)
        size = abs(whole) + abs(first) + abs(second)
        rounding = max(1e-3, 20 * precision) * size
        if output.is_floating_point():  # the halves may cancel
            rounding += 100 * precision * float(output.detach().abs().mean())
        if abs(whole - mean) <= rounding:
            return
        if abs(whole - (first + second)) <= rounding:
            raise FlatnessError(
                f"the loss is a sum over the batch ({whole:g}, of its halves {first:g} and {second:g}): give the mean "
                "over the batch, reduction='mean'"
            )
        # A single batch is right whatever the loss.
        self._not_mean = (
            f"the loss of a batch is {whole:g}, which is not the mean of those of its halves, {first:g} and "
            f"{second:g}, so several batches cannot be weighted by their samples. Ignored targets, class weights, or a "
            "loss between samples? Give BatchLoss(function, count=...) that says how much a batch counts, or all data "
            "as one batch"
        )
        if self._halved > 1:
            raise FlatnessError(self._not_mean)


def _setting(loss: Any, name: str, default: Any = None) -> Any:
    """A setting of a loss: an attribute of a module, or a keyword of a ``functools.partial``."""
    if isinstance(loss, functools.partial):
        return loss.keywords.get(name, default)
    return getattr(loss, name, default) if isinstance(loss, nn.Module) else default


def _is_torchs(loss: Any) -> bool:
    """Whether a loss is a module or a function of torch's, whose means are known."""
    function = loss.func if isinstance(loss, functools.partial) else loss
    kind = type(function) if isinstance(function, nn.Module) else function
    return getattr(kind, "__module__", None) in ("torch.nn.modules.loss", "torch.nn.functional")


def _is_cross_entropy(loss: Any) -> bool:
    """Whether a loss is torch's cross-entropy or negative log-likelihood, as a module, a function or a partial."""
    if isinstance(loss, functools.partial):
        return not loss.args and loss.func in (F.cross_entropy, F.nll_loss)
    if loss in (F.cross_entropy, F.nll_loss):
        return True
    return any(isinstance(loss, k) and type(loss).forward is k.forward for k in (nn.CrossEntropyLoss, nn.NLLLoss))
