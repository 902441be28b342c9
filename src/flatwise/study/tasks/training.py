"""What training functions share: the loop over epochs, seeds, optimizers by name, and regularizations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RAdam, RMSprop

from flatwise.study.task import USUAL_MOMENTUM, Settings
from flatwise.study.tasks.schedules import find_schedule

if TYPE_CHECKING:
    from flatwise.study.trial import Trial

Model = TypeVar("Model", bound=nn.Module)
Data = TypeVar("Data")


def _step(loss: Tensor, optimizer: Optimizer) -> None:
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def train_epochs(
    trial: Trial,
    settings: Settings,
    model: nn.Module,
    steps: int,
    losses: Callable[[], Iterable[tuple[Tensor, int]]],
    errors: Callable[[], Mapping[str, float]],
    *,
    step: Callable[[Tensor, Optimizer], None] = _step,
) -> None:
    """Train a model with the optimizer and schedule of the settings, and report every epoch to the trial.

    Reported per epoch: ``train_loss``, the mean over the examples of the loss at the step that used them; ``seconds``,
    the time for training alone; and ``errors``.

    Args:
        trial: where to attach and report.
        settings: how to train.
        model: on its device.
        steps: optimizer steps in an epoch.
        losses: for an epoch, the loss of every batch and its number of examples. An iterator, which computes a loss
            when it is asked for the next one.
        errors: the metrics after an epoch; called with the model in evaluation mode.
        step: the backward pass and the optimizer's step; default: just these.
    """
    optimizer = build_optimizer(settings, model.parameters())
    schedule = find_schedule(settings, steps)
    scheduler = trial.attach(
        optimizer,
        steps_per_epoch=steps,
        epochs=settings.epochs,
        scheduler=schedule.factory,
        interval=schedule.interval,
    )
    device = next(model.parameters()).device
    for _ in range(settings.epochs):
        model.train()
        start = now(device)
        total, examples = torch.zeros((), dtype=torch.float64, device=device), 0  # read after the epoch: no wait
        for loss, size in losses():
            optimizer.zero_grad()
            step(loss, optimizer)
            total += loss.detach() * size
            examples += size
            if schedule.interval == "step":
                scheduler.step()
        if schedule.interval == "epoch":
            scheduler.step()
        seconds = now(device) - start
        model.eval()
        trial.report(seconds=seconds, train_loss=total.item() / examples, **errors())


def seeds_from(seed: int, count: int) -> list[int]:
    """Several seeds from one: the same numbers must not decide both the weights and the order, say."""
    return [int(number) for number in np.random.SeedSequence(seed).generate_state(count, np.uint64)]


def moved(data: Data, device: torch.device | str) -> Data:
    """Return a dataclass with all its tensors on ``device``; those that are there already are shared, not copied."""
    given: Any = data
    values = {field.name: getattr(given, field.name) for field in fields(given)}
    changed: Data = replace(given, **{name: value.to(device) for name, value in values.items() if hasattr(value, "to")})
    return changed


def initialized(build: Callable[[], Model], seed: int) -> Model:
    """Build a model whose weights the seed decides; the global random state is as it was.

    Layers initialize themselves from the global generator of the CPU: it is seeded, and its state put back afterwards.
    ``torch.manual_seed`` would also move the generators of every GPU, which are left alone here.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


def now(device: torch.device) -> float:
    """Seconds on a clock, read after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def percent_wrong(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of wrongly classified examples in percent; NaN if any of their outputs is not finite.

    The largest of NaNs has an index too: without that rule a broken model would get a number, about 90 % on digits.

    Args:
        outputs: scores, shape ``(n, classes)``.
        labels: classes, shape ``(n,)``.
    """
    if not outputs.isfinite().all():
        return math.nan
    return 100.0 * float((outputs.argmax(dim=1) != labels).double().mean())


def build_optimizer(settings: Settings, parameters: Iterable[torch.nn.Parameter]) -> Optimizer:
    """Return the optimizer that the settings name, with torch's defaults for all else.

    With ``gradient_centralization`` it centralizes the gradients before each of its steps.
    """
    optimizer = _build(settings, parameters)
    if settings.gradient_centralization:
        optimizer.register_step_pre_hook(centralize_gradients)
    return optimizer


def _build(settings: Settings, parameters: Iterable[torch.nn.Parameter]) -> Optimizer:
    name, rate, decay = settings.optimizer, settings.learning_rate, settings.weight_decay
    if name == "adagrad":
        return Adagrad(parameters, lr=rate, weight_decay=decay)
    momentum = settings.momentum
    if momentum is None:
        momentum = USUAL_MOMENTUM[name]
        assert momentum is not None  # only Adagrad has none
    if name in ("sgd", "nesterov"):
        return SGD(parameters, lr=rate, momentum=momentum, weight_decay=decay, nesterov=name == "nesterov")
    if name == "rmsprop":
        return RMSprop(parameters, lr=rate, momentum=momentum, weight_decay=decay)
    betas = (momentum, 0.999)
    if name == "radam":
        return RAdam(parameters, lr=rate, betas=betas, weight_decay=decay)
    if name == "adamw":
        return AdamW(parameters, lr=rate, betas=betas, weight_decay=decay)
    return Adam(parameters, lr=rate, betas=betas, weight_decay=decay, amsgrad=name == "amsgrad")


def find_device(settings: Settings) -> torch.device:
    """Return the device that the settings name.

    Raises:
        SettingsError: it is ``"cuda"`` and torch sees none.
    """
    settings.check_device()
    return torch.device(settings.device)


def disturb_labels(labels: Tensor, probability: float, classes: int, generator: torch.Generator) -> Tensor:
    """Return the labels with some of them wrong: noisy labels.

    Each label is disturbed with the given probability; a disturbed label is drawn uniformly from the *other* classes,
    which is LRD's reading of DisturbLabel (Xie et al. 2016; there from all classes, the right one included). Call it
    anew for every epoch, since Xie et al. draw at every visit of an example: labels that stay wrong are another
    problem, noise that can be learnt by heart.

    Args:
        labels: classes, int64, shape ``(n,)``, on any device.
        probability: of each label's being replaced, in [0, 1]; LRD's is 0.1. With 0 nothing is drawn, and the labels
            are returned as they are.
        classes: number of classes, at least 2.
        generator: of the CPU, so that the labels are the same on every device.
    """
    if probability == 0:
        return labels
    is_disturbed = torch.rand(len(labels), generator=generator) < probability
    shift = torch.randint(1, classes, (len(labels),), generator=generator)  # never 0: never the class itself
    return (labels + (is_disturbed * shift).to(labels.device)) % classes


def centralize_gradients(optimizer: Optimizer, args: object = (), kwargs: object = None) -> None:
    """Subtracts from the gradient of every weight its mean over all dimensions but the first: gradient centralization.

    A hook for :meth:`torch.optim.Optimizer.register_step_pre_hook`. Of Yong et al. 2020: matrices of linear layers and
    kernels of convolutions have one mean per output; tensors of one dimension (biases, normalization) are left alone.

    As in the authors' code, what is centralized includes the L2 term λ·w of the optimizers that add it to the gradient
    themselves: its mean is subtracted here in advance. A decoupled weight decay is left alone.

    Gradients that are made inside ``optimizer.step`` (a closure) come too late.
    """
    for group in optimizer.param_groups:
        decay = 0.0 if group.get("decoupled_weight_decay", False) else group["weight_decay"]
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None or gradient.ndim < 2:
                continue
            dims = tuple(range(1, gradient.ndim))
            mean = gradient.mean(dim=dims, keepdim=True)
            if decay:
                mean += decay * parameter.detach().mean(dim=dims, keepdim=True)
            gradient -= mean


class Dropout(nn.Module):
    """Dropout as :class:`torch.nn.Dropout` has it, with masks from a generator of its own instead of the global one.

    In training mode each element is zeroed with the probability ``dropout``, the others are divided by
    ``1 - dropout``; in evaluation mode nothing is done.

    Args:
        dropout: probability in [0, 1) that an element is dropped. LRD gives the opposite: 0.9 retained.
        generator: of the device on which the model runs.
    """

    def __init__(self, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.dropout = dropout
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with some elements dropped, if in training mode."""
        if not self.training:
            return x
        kept = torch.empty_like(x, requires_grad=False).bernoulli_(1 - self.dropout, generator=self.generator)
        return x * kept.div_(1 - self.dropout)

    def extra_repr(self) -> str:
        """Return the probability."""
        return f"{self.dropout:g}"
