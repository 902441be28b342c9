"""The state of a perturbed optimizer, which checkpoints keep, and warnings about one that was loaded."""

from __future__ import annotations

import warnings
from typing import NamedTuple

from torch.optim import Optimizer

from flatwise._attach.parameters import knows_names


class State(NamedTuple):
    """The state of a perturbed optimizer: plain numbers in ``param_groups``, which every framework saves.

    Attributes:
        step: optimizer steps taken under the perturbation (or before it, as the user said).
        seed: the seed of the noise.
        stream: the number that tells optimizers of the same seed apart.
        fingerprint: a hash of the perturbations and their calendar.
        support: how it is known that the optimizer can be perturbed; see :mod:`flatwise._attach.support`.
        named: 1 if parameters are identified by name, 0 if by position.
    """

    step: int
    seed: int
    stream: int
    fingerprint: int
    support: int
    named: int

    @classmethod
    def read(cls, optimizer: Optimizer) -> State | None:
        """The state that an optimizer carries, or ``None``; a group that was added later may not have it yet.

        Warns:
            UserWarning: there is none, but one under the library's former name, which is not continued.
        """
        for group in optimizer.param_groups:
            if _STEP in group:
                return cls(*(int(group.get(key, 0)) for key in _KEYS))
        if any(_FORMER_STEP in group for group in optimizer.param_groups):
            warnings.warn(
                "the loaded state was saved by flatter, flatwise's former name, and its noise is not continued. Rename "
                "the keys flatter_* of each group in state['param_groups'] to flatwise_* before loading",
                stacklevel=3,
            )
        return None

    def write(self, optimizer: Optimizer) -> None:
        """Put the state into every parameter group."""
        entries = dict(zip(_KEYS, self, strict=True))
        for group in optimizer.param_groups:
            group.update(entries)

    def write_step(self, optimizer: Optimizer) -> None:
        """:meth:`write` if only the step is new; a group that was added since gets all of it."""
        for group in optimizer.param_groups:
            if _SEED in group:
                group[_STEP] = self.step
            else:
                self.write(optimizer)

    @staticmethod
    def erase(optimizer: Optimizer) -> None:
        """Remove the state from every parameter group."""
        for group in optimizer.param_groups:
            for key in _KEYS:
                group.pop(key, None)

    def is_in(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer carries this state, apart from ``support``; a quick check for every step."""
        for group in optimizer.param_groups:
            if _STEP in group:
                same = group[_STEP] == self.step and group[_SEED] == self.seed and group[_STREAM] == self.stream
                return bool(same and group[_FINGERPRINT] == self.fingerprint)
        return False


_KEYS = tuple(f"flatwise_{field}" for field in State._fields)
_STEP, _SEED, _STREAM, _FINGERPRINT, _, _ = _KEYS
_FORMER_STEP = "flatter_step"


def warn_if_other(
    loaded: State, optimizer: Optimizer, seed: int | None, stream: int | None, mark: int, *, per_parameter: bool
) -> None:
    """Warn if a loaded state goes on otherwise than it was saved.

    Args:
        loaded: the state.
        optimizer: the optimizer that loaded it.
        seed, stream: as requested; ``None``: not.
        mark: the fingerprint of the present perturbations.
        per_parameter: whether their noise depends on how parameters are identified.
    """
    for name, asked, carried in (("seed", seed, loaded.seed), ("stream", stream, loaded.stream)):
        if asked not in (None, carried):
            warnings.warn(
                f"the optimizer carries noise of {name} {carried} from a checkpoint and continues it; "
                f"{name}={asked} is not used. Omit {name}, or delete the flatwise_* entries from the checkpoint's "
                "param_groups",
                stacklevel=4,
            )
    if loaded.fingerprint != mark:
        warnings.warn(
            "the loaded state was saved under another perturbation, or with another steps_per_epoch or epochs; "
            "training goes on with those given here",
            stacklevel=4,
        )
    if per_parameter and loaded.named != knows_names(optimizer):
        then, now = ("name", "position") if loaded.named else ("position", "name")
        warnings.warn(
            f"the loaded state was saved with parameters identified by {then}, and this optimizer identifies them by "
            f"{now}: the noise goes on as another. Make the optimizer from the same parameters as before, "
            f"{'model.named_parameters()' if loaded.named else 'model.parameters()'}",
            stacklevel=4,
        )
