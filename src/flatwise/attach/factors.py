"""The factors that perturbations draw for one optimizer: pure functions of (seed, step)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatwise.attach.blend import block_factor
from flatwise.attach.draw import Calendar, Draw, draws, rate_factor
from flatwise.attach.identity import parameter_ids
from flatwise.attach.rate import Factor, bounded
from flatwise.attach.shards import local_part
from flatwise.perturbation import Perturbation

Stream = tuple[int, Perturbation]
# The parameters of each group (their ids) and their names.
Structure = list[tuple[list[int], list[str] | None]]


class Factors:
    """What the perturbations of an optimizer draw.

    Attributes:
        perturbations: the perturbations; the position of each tells its draws from the others'.
        calendar: how steps make epochs.
    """

    def __init__(self, optimizer: Optimizer, perturbations: tuple[Perturbation, ...], calendar: Calendar) -> None:
        self._optimizer = optimizer
        self.perturbations = perturbations
        self.calendar = calendar
        self._ids: dict[Tensor, int] = {}
        self._structure: Structure | None = None
        self._streams = [(stream, p) for stream, p in enumerate(perturbations) if not p.is_identity]
        self._is_always = all(p.window.is_always for _, p in self._streams)
        self._coarse = [(stream, p) for stream, p in self._streams if p.acts_on_rate]
        self._fine = [(stream, p) for stream, p in self._streams if not p.acts_on_rate]

    @property
    def has_fine(self) -> bool:
        """Whether some perturbation is finer than a group: then updates are scaled."""
        return bool(self._fine)

    def acting(self, step: int) -> list[Stream]:
        """The perturbations, with their streams, that do anything at a step."""
        return self._in_window(self._streams, step)

    def coarse(self, step: int) -> list[Stream]:
        """Those that multiply a group's rate."""
        return self._in_window(self._coarse, step)

    def fine(self, step: int) -> list[Stream]:
        """Those that are finer than a group and scale the update."""
        return self._in_window(self._fine, step)

    def rate(self, of: Stream, seed: int, step: int, group: int) -> float:
        """One perturbation's factor of one group's rate."""
        stream, perturbation = of
        return rate_factor(perturbation, seed, self.calendar.tick(perturbation, step), stream, group)

    def rates(self, seed: int, step: int, group: int) -> float:
        """The product of all factors of one group's rate."""
        return math.prod((self.rate(of, seed, step, group) for of in self.coarse(step)), start=1.0)

    def draws(self, seed: int, step: int, parameters: list[Tensor]) -> list[list[Draw]]:
        """For each parameter its draws, one for each acting perturbation that is finer than a group."""
        units = self.units(parameters)
        by_stream = [draws(p, seed, self.calendar.tick(p, step), stream, units) for stream, p in self.fine(step)]
        return [list(drawn) for drawn in zip(*by_stream, strict=True)] if by_stream else [[] for _ in parameters]

    def of_parameter(self, seed: int, step: int, parameter: Tensor) -> Tensor:
        """The whole factor of one parameter; float32, broadcasts over the part that this process holds."""
        number = self.rates(seed, step, self._group_of(parameter))
        rate = torch.tensor(number, dtype=torch.float32, device=parameter.device)
        self.refresh()
        drawn = self.draws(seed, step, [parameter])[0]
        if not drawn:
            return rate
        local, block = local_part(parameter)
        return rate * block_factor(drawn, block, local.device)

    def effective_lr(self, seed: int, step: int, scheduled: list[float]) -> list[float]:
        """Each group's scheduled rate with the noise in it: exact for coarse perturbations, the mean for finer ones."""
        fine_mean = math.prod(p.distribution.mean for _, p in self.fine(step))
        effective = []
        for index, rate in enumerate(scheduled):
            for factor, bounds in self.bounded_rates(seed, step, index):
                rate = bounded(rate * factor, bounds)
            effective.append(rate * fine_mean)
        return effective

    def bounded_rates(self, seed: int, step: int, group: int) -> list[Factor]:
        """The factors of one group's rate, each with the bounds that hold after it."""
        return [(self.rate(of, seed, step, group), of[1].bounds) for of in self.coarse(step)]

    def units(self, parameters: list[Tensor]) -> list[int]:
        """The identities of some of the optimizer's parameters, as of the last :meth:`refresh`."""
        return [self._ids[parameter] for parameter in parameters]

    def refresh(self) -> bool:
        """Look at the groups, parameters and names again; ``True`` if they changed.

        Raises:
            ValueError: see :func:`flatwise.attach.identity.parameter_ids`.
        """
        structure: Structure = [
            (list(map(id, group["params"])), group.get("param_names")) for group in self._optimizer.param_groups
        ]
        if structure == self._structure:
            return False
        self._ids = parameter_ids(self._optimizer)
        # A copy of the names, because the user may edit the list in place.
        self._structure = [(ids, None if names is None else list(names)) for ids, names in structure]
        return True

    def shares_draws(self, other: Factors) -> bool:
        """Whether some parameter of each would draw the same words, given the same seed."""
        mine, others = ({stream for stream, _ in factors._fine} for factors in (self, other))
        if mine.isdisjoint(others):
            return False
        for factors in (self, other):
            factors.refresh()
        return not set(self._ids.values()).isdisjoint(other._ids.values())

    def _in_window(self, streams: list[Stream], step: int) -> list[Stream]:
        if self._is_always:  # a shortcut, because this runs at every optimizer step
            return streams
        return [(stream, p) for stream, p in streams if self.calendar.acts(p, step)]

    def _group_of(self, parameter: Tensor) -> int:
        for index, group in enumerate(self._optimizer.param_groups):
            if any(parameter is own for own in group["params"]):
                return index
        raise ValueError("this tensor is not one of the optimizer's parameters")
