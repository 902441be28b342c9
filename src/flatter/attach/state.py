"""What must survive a checkpoint, kept where every framework saves it: plain numbers in ``param_groups``."""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import Optimizer

_STEP = "flatter_step"
_SEED = "flatter_seed"
_FINGERPRINT = "flatter_fingerprint"


@dataclass(frozen=True)
class State:
    """The state of a perturbed optimizer.

    Attributes:
        step: optimizer steps taken under the perturbation (or before it, as the user said).
        seed: the seed of the noise.
        fingerprint: which perturbations they were.
    """

    step: int
    seed: int
    fingerprint: int


def write(optimizer: Optimizer, state: State) -> None:
    """Puts the state into every parameter group."""
    for group in optimizer.param_groups:
        group.update({_STEP: state.step, _SEED: state.seed, _FINGERPRINT: state.fingerprint})


def read(optimizer: Optimizer) -> State | None:
    """The state that an optimizer carries, or ``None``; a group that was added later may not have it yet."""
    for group in optimizer.param_groups:
        if _STEP in group:
            return State(int(group[_STEP]), int(group[_SEED]), int(group[_FINGERPRINT]))
    return None


def holds(optimizer: Optimizer, state: State) -> bool:
    """Whether the optimizer carries this state: ``read(optimizer) == state``, for every step."""
    for group in optimizer.param_groups:
        if _STEP in group:
            same_seed = group[_SEED] == state.seed and group[_FINGERPRINT] == state.fingerprint
            return bool(same_seed and group[_STEP] == state.step)
    return False


def erase(optimizer: Optimizer) -> None:
    """Takes the state out of every parameter group."""
    for group in optimizer.param_groups:
        for key in (_STEP, _SEED, _FINGERPRINT):
            group.pop(key, None)
