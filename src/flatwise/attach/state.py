"""The state that checkpoints must keep: plain numbers in ``param_groups``, which every framework saves."""

from __future__ import annotations

from typing import NamedTuple

from torch.optim import Optimizer

_STEP = "flatwise_step"
_SEED = "flatwise_seed"
_STREAM = "flatwise_stream"
_FINGERPRINT = "flatwise_fingerprint"
_SUPPORT = "flatwise_support"
_NAMED = "flatwise_named"
_KEYS = (_STEP, _SEED, _STREAM, _FINGERPRINT, _SUPPORT, _NAMED)


class State(NamedTuple):
    """The state of a perturbed optimizer.

    Attributes:
        step: optimizer steps taken under the perturbation (or before it, as the user said).
        seed: the seed of the noise.
        stream: the number that tells optimizers of the same seed apart.
        fingerprint: a hash of the perturbations and their calendar.
        support: how it is known that the optimizer can be perturbed; see :mod:`flatwise.attach.supported`.
        named: 1 if parameters are identified by name, 0 if by position.
    """

    step: int
    seed: int
    stream: int
    fingerprint: int
    support: int
    named: int


def write(optimizer: Optimizer, state: State) -> None:
    """Puts the state into every parameter group."""
    entries = dict(zip(_KEYS, state, strict=True))
    for group in optimizer.param_groups:
        group.update(entries)


def write_step(optimizer: Optimizer, state: State) -> None:
    """:func:`write` for a state of which only the step is new; a group that was added since gets all of it."""
    step = state.step
    for group in optimizer.param_groups:
        if _SEED in group:
            group[_STEP] = step
        else:
            write(optimizer, state)


def read(optimizer: Optimizer) -> State | None:
    """The state that an optimizer carries, or ``None``; a group that was added later may not have it yet."""
    for group in optimizer.param_groups:
        if _STEP in group:
            return State(*(int(group.get(key, 0)) for key in _KEYS))
    return None


def holds(optimizer: Optimizer, state: State) -> bool:
    """Whether the optimizer carries this state, apart from ``support``; a quick check for every step."""
    for group in optimizer.param_groups:
        if _STEP in group:
            same = group[_STEP] == state.step and group[_SEED] == state.seed and group[_STREAM] == state.stream
            return bool(same and group[_FINGERPRINT] == state.fingerprint)
    return False


def erase(optimizer: Optimizer) -> None:
    """Removes the state from every parameter group."""
    for group in optimizer.param_groups:
        for key in _KEYS:
            group.pop(key, None)
