"""``perturb``, and what it checks before it attaches a perturbation to an optimizer."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Sequence

from torch.optim import Optimizer

from flatwise._attach.factors import Calendar, Factors
from flatwise._attach.handle import HANDLE, LIVE, Handle, in_range
from flatwise._attach.parameters import check_memory, knows_names, parameters_of, share_tensor_rates
from flatwise._attach.state import State, warn_if_other
from flatwise._attach.support import check_supported, keep_step, unwrapped
from flatwise._noise.keys import COUNTER_LIMIT, SEED_LIMIT, STREAM_LIMIT
from flatwise.distributions import as_integer
from flatwise.perturbation import Perturbation, fingerprint


class SharedNoiseWarning(UserWarning):
    """Two optimizers of this process draw the same factors for their parameters."""


def perturb(
    optimizer: Optimizer,
    perturbation: Perturbation | Sequence[Perturbation],
    *,
    seed: int | None = None,
    stream: int | None = None,
    steps_per_epoch: int | None = None,
    epochs: int | None = None,
    step: int | None = None,
) -> Handle:
    """Make an optimizer's learning rate random: ``h = η(t) · f``, from its next step on.

    The optimizer, its schedulers and its checkpoints stay as they are: the learning rate is noisy only while ``step``
    runs. Scopes ``"all"`` and ``"group"`` multiply the groups' learning rates for the step. Finer scopes let the
    optimizer step and then scale its update, ``p ← old + f · (new − old)``, which needs a copy of the parameters (one
    parameter-sized buffer). With 16-bit parameters, no later factor brings back an update that was lost in rounding.

    The state (seed, stream, step) lives in ``param_groups`` and is saved with ``state_dict``. A copied or unpickled
    optimizer is perturbed like the original. A state that was loaded before attaching is continued.

    Args:
        optimizer: any ``torch.optim.Optimizer`` whose update is linear in the learning rate. Parameters
            are identified by name if it was made from ``named_parameters()``, else by position. Accelerate's
            wrapper is unwrapped: the handle's ``optimizer`` is the inner one.
        perturbation: one perturbation or a sequence (factors multiply).
        seed: seed of the noise, 0 ≤ seed < 2**64. Default: the loaded state's, else 0. The same seed gives the same
            noise under any sharding, on every rank and after every resume; torch's generators are neither read nor
            moved. Runs that differ only in torch's seed therefore share their noise: give each run its own seed.
        stream: tells apart optimizers that share a seed, 0 ≤ stream < 2**64, such as a GAN's two. Default: the loaded
            state's, else 0.
        steps_per_epoch: optimizer steps in an epoch; required by perturbations that draw once per epoch or have a
            window. Default: ``None``.
        epochs: epochs of the whole training; required by perturbations with a window. Default: ``None``.
        step: optimizer steps already taken, if training did not start perturbed. Default: the loaded state's, else 0.

    Returns:
        The handle: ``factor``, ``effective_lr``, ``remove``.

    Raises:
        TypeError: ``optimizer`` is not an optimizer, or ``perturbation`` not a perturbation.
        ValueError: the optimizer cannot be perturbed, is perturbed already, or lacks what the perturbation needs; a
            number is out of range.

    Warns:
        SharedNoiseWarning: another optimizer of this process draws the same factors for its parameters: it has the
            same seed and stream, and parameters of the same names (or positions, if they have no names).
        UserWarning: the loaded state has another seed, stream or perturbation; or it could not be checked whether the
            learning rate has an effect.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"perturb needs a torch.optim.Optimizer, got {type(optimizer).__name__}")
    given, optimizer = optimizer, unwrapped(optimizer)
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise TypeError(f"{type(optimizer).__name__} wraps another optimizer and has no hooks: perturb the inner one")
    if HANDLE in vars(optimizer):
        raise ValueError(
            "this optimizer is perturbed already: give all perturbations in one list, or remove() the first handle"
        )
    perturbations = tuple(perturbation) if isinstance(perturbation, Sequence) else (perturbation,)
    calendar = Calendar(_count("steps_per_epoch", steps_per_epoch), _count("epochs", epochs))
    seed, stream = _checked("seed", seed, SEED_LIMIT), _checked("stream", stream, SEED_LIMIT)
    step = _checked("step", step, COUNTER_LIMIT)
    _check_perturbations(optimizer, perturbations, calendar)
    factors = Factors(optimizer, perturbations, calendar)
    loaded = State.read(optimizer)
    support = check_supported(optimizer, per_element=factors.is_fine, known=None if loaded is None else loaded.support)
    mark = fingerprint(perturbations, calendar.steps_per_epoch, calendar.epochs)
    start = State(step or 0, seed or 0, stream or 0, mark, support, int(knows_names(optimizer)))
    if loaded is not None:
        warn_if_other(loaded, optimizer, seed, stream, mark, per_parameter=factors.is_fine)
        start = start._replace(step=loaded.step if step is None else step, seed=loaded.seed, stream=loaded.stream)
    if factors.is_fine:
        factors.refresh()  # raises if the parameters cannot be told apart
        check_memory(parameters_of(optimizer))
        _warn_if_shared(optimizer, factors, start)
    handle = Handle._attached(optimizer, factors, start, asked=(seed, stream))
    keep_step(given)
    return handle


def _warn_if_shared(optimizer: Optimizer, factors: Factors, start: State) -> None:
    """Warn if another perturbed optimizer draws the same factors for its parameters."""
    if not _is_ignored(SharedNoiseWarning) and _shares_noise(optimizer, factors, start):
        gc.collect()  # an optimizer that is no longer referenced may survive in a reference cycle
        if _shares_noise(optimizer, factors, start):
            warnings.warn(
                f"another optimizer of this process draws the same factors for its parameters: it has seed={start.seed}"
                f", stream={start.stream}, and parameters of the same names or positions. If they train together, give "
                f"one of them another stream, such as stream={start.stream + 1}; if they are two runs, give each its "
                "own seed. To silence this, filter flatwise.SharedNoiseWarning",
                SharedNoiseWarning,
                stacklevel=4,
            )


def _is_ignored(category: type[Warning]) -> bool:
    """Whether a filter ignores all warnings of a category: then the check, which may take long, can be skipped."""
    for action, message, of, module, _ in warnings.filters:
        if issubclass(category, of) and message is None and module is None:
            return action == "ignore"
    return False


def _shares_noise(optimizer: Optimizer, factors: Factors, start: State) -> bool:
    return any(
        (other.seed, other.stream) == (start.seed, start.stream)
        and other.optimizer is not optimizer
        and factors.shares_draws(other._factors)
        for other in list(LIVE)
    )


def _check_perturbations(optimizer: Optimizer, perturbations: tuple[Perturbation, ...], calendar: Calendar) -> None:
    if not 0 < len(perturbations) <= STREAM_LIMIT:
        raise ValueError(
            f"perturb composes 1 to {STREAM_LIMIT} perturbations, such as [flatwise.leap(0.05), flatwise.ralr()]; "
            f"got {len(perturbations)}"
        )
    for p in perturbations:
        if not isinstance(p, Perturbation):
            raise TypeError(f"perturb needs perturbations, such as flatwise.leap(0.05); got {p!r}")
        if p.needs_steps_per_epoch and calendar.steps_per_epoch is None:
            raise ValueError(f"{p} depends on the epoch: give steps_per_epoch=, the number of optimizer steps in one")
        if p.needs_epochs and calendar.epochs is None:
            raise ValueError(f"{p} has a window: give epochs=, the number of epochs of the whole training")
        if p.acts_on_rate and any(group.get("lr") is None for group in optimizer.param_groups):
            raise ValueError(
                f"a parameter group of {type(optimizer).__name__} has no 'lr', so there is no rate to perturb: give "
                "every group an 'lr'"
            )
        if p.scope == "group" and share_tensor_rates(optimizer):
            raise ValueError(
                "scope 'group' needs a learning rate for each group, but groups that share one tensor as 'lr' have one "
                "rate: give every group its own tensor"
            )


def _count(name: str, value: object) -> int | None:
    """A positive integer or ``None``, checked."""
    number = None if value is None else as_integer(value)
    if value is not None and (number is None or number < 1):
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return number


def _checked(name: str, value: object, limit: int) -> int | None:
    return None if value is None else in_range(name, value, limit)
