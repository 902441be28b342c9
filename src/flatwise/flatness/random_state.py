"""The random states that a model, a loss or a data loader can move: kept, and put back."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class RandomState:
    """The states of all generators that the code under measurement can reach, at one moment.

    These are torch's generators of the CPU and of the given devices, Python's, numpy's global one, and a data loader's
    own. Restoring draws nothing, so a pass over the data that starts with ``restore`` sees what the last one saw: the
    same order of a shuffling loader, the same augmentations, the same dropout masks.
    """

    cpu: torch.Tensor
    devices: tuple[tuple[torch.device, torch.Tensor], ...]
    generators: tuple[tuple[torch.Generator, torch.Tensor], ...]
    python: tuple[Any, ...]
    numpy: dict[str, Any]

    @classmethod
    def capture(cls, devices: Iterable[torch.device] = (), data: object = None) -> RandomState:
        """Keep the present states.

        Args:
            devices: devices in use; those without a generator of their own (the CPU has torch's default one) are
                passed over.
            data: a data loader; the ``torch.Generator`` objects in it and in its samplers are kept too.
        """
        accelerators = sorted({d for d in devices if d.type not in ("cpu", "meta")}, key=str)
        return cls(
            cpu=torch.get_rng_state(),
            devices=tuple((device, _device_state(device)) for device in accelerators),
            generators=tuple((generator, generator.get_state()) for generator in _generators(data)),
            python=random.getstate(),
            numpy=dict(np.random.get_state(legacy=False)),
        )

    def restore(self) -> None:
        """Put all generators back to where they were when this was captured."""
        torch.set_rng_state(self.cpu)
        for device, state in self.devices:
            module = torch.get_device_module(device.type)
            if device.type == "mps":
                module.set_rng_state(state)
            else:
                module.set_rng_state(state, device)
        for generator, state in self.generators:
            generator.set_state(state)
        random.setstate(self.python)
        np.random.set_state(self.numpy)


def _device_state(device: torch.device) -> torch.Tensor:
    module = torch.get_device_module(device.type)
    state: torch.Tensor = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
    return state


def _generators(data: object) -> list[torch.Generator]:
    """The generators of a data loader and its samplers: a shuffling loader that was given one moves it, not torch's."""
    batch_sampler = getattr(data, "batch_sampler", None)
    holders = [data, getattr(data, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())
