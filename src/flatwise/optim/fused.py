"""What the fused optimizers share: torch's optimizer with the noise drawn inside its update."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from flatwise._attach.factors import Acting, Factors, Noise
from flatwise._attach.handle import Handle, handle_of
from flatwise._attach.perturbing import perturb
from flatwise._attach.step import NoisyStep
from flatwise._kernels.backend import PreparedStep
from flatwise._kernels.forms import Update
from flatwise.optim._plan import Footprint, Settings, local, make_plan, objection
from flatwise.perturbation import Perturbation

Perturbations = Perturbation | Sequence[Perturbation]


def _hooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """Torch's wrapper of a step, which calls its hooks and names it to the profiler, with a short cut past most of it.

    Where only our own hooks listen, the two are called directly: torch's wrapper takes longer than the kernel of a
    small model.
    """
    wrapped = Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def hooked(self: Fused, *args: Any, **kwargs: Any) -> Any:
        handle = handle_of(self)
        if handle is None or handle.in_step or not _listens_alone(self):
            return wrapped(self, *args, **kwargs)
        changed = handle.before_step(self, (self, *args), kwargs)
        if changed is not None:
            (_, *args), kwargs = changed  # type: ignore[assignment]
        result = step(self, *args, **kwargs)
        handle.after_step(self, (self, *args), kwargs)
        return result

    hooked.hooked = True  # type: ignore[attr-defined]  # torch wraps a step that does not say so
    return hooked


def _listens_alone(optimizer: Optimizer) -> bool:
    """Whether the hooks of the attached handle, one before and one after, are all that a step has to tell."""
    return not (
        torch.compiler.is_compiling()  # first: when tracing, the rest is not asked
        or len(optimizer._optimizer_step_pre_hooks) > 1
        or len(optimizer._optimizer_step_post_hooks) > 1
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or torch.autograd.profiler._is_profiler_enabled
    )


class Fused(Optimizer):
    """Base of the fused optimizers, each of which also derives from its torch parent.

    Without a perturbation torch's own step runs. With one, the step of :class:`FusedStep`.
    """

    _noisy: FusedStep | None = None
    _overridden: str | None = None
    _kernel: str

    def _attach(
        self,
        perturbation: Perturbations | None,
        seed: int | None,
        stream: int | None,
        steps_per_epoch: int | None,
        epochs: int | None,
    ) -> None:
        """The end of every constructor: attaches the perturbation, if one is given."""
        if perturbation is not None:
            perturb(self, perturbation, seed=seed, stream=stream, steps_per_epoch=steps_per_epoch, epochs=epochs)
        elif (seed, stream, steps_per_epoch, epochs) != (None, None, None, None):
            raise ValueError(
                "seed, stream, steps_per_epoch and epochs are the perturbation's: give perturbation= with them"
            )

    @property
    def handle(self) -> Handle | None:
        """The handle of the perturbation, as :func:`flatwise.perturb` gives it; ``None`` without one."""
        return handle_of(self)

    @property
    def fallback(self) -> str | None:
        """Why the last perturbed step was not fused but torch's own, scaled afterwards; ``None`` if it was fused."""
        return self._overridden if self._noisy is None else self._noisy.fallback

    @_hooked
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one optimization step.

        Args:
            closure: reevaluates the model and returns the loss; optional.
        """
        noisy = self._noisy
        if noisy is None or noisy.noise is None:
            return self._torch_step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Kernels cannot be traced: under torch.compile they run outside the graph, as the hooks do.
        update = noisy.update
        if torch.compiler.is_compiling():
            update = torch.compiler.disable(update)  # type: ignore[no-untyped-call]
        if not update():
            self._torch_step()
        return loss

    def noisy_step(self, factors: Factors) -> NoisyStep:
        """How a perturbation acts on this optimizer; asked by :func:`flatwise.perturb`."""
        if type(self).step is not Fused.step:
            # What a subclass does before and after torch's update is part of the step, and scaled with it.
            if self._overridden is None and factors.is_fine:
                self._overridden = f"{type(self).__name__} has a step of its own"
                _warn_of_fallback(self, self._overridden, stacklevel=5)
            return NoisyStep(self, factors, moves_all=True)
        self._noisy = FusedStep(self, factors)
        return self._noisy

    def _torch_step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The torch parent's step, without its hooks: ours has called them."""
        raise NotImplementedError

    def _settings(self, group: dict[str, Any]) -> Settings:
        """A group's settings, in the order that the kernel knows."""
        raise NotImplementedError

    def _update(self, group: dict[str, Any]) -> Update:
        """A group's update, its states made as torch makes them."""
        raise NotImplementedError


def _warn_of_fallback(optimizer: Fused, reason: str, *, stacklevel: int) -> None:
    warnings.warn(
        f"{type(optimizer).__name__} runs torch's own step and scales it afterwards, which is slower: {reason}",
        stacklevel=stacklevel,
    )


class FusedStep(NoisyStep):
    """A noisy step whose per-element factors are drawn in registers, inside the update, with no copy of anything.

    Rates are noisy for the length of the step, as always. Where the kernels cannot do the rest, torch's own step runs
    and is scaled afterwards as on any optimizer, with a warning that says why.

    Attributes:
        fallback: why the last step was not fused, or ``None``.
    """

    def __init__(self, optimizer: Fused, factors: Factors) -> None:
        super().__init__(optimizer, factors)
        self._fused = optimizer
        self.fallback: str | None = None

    def release(self) -> None:
        """Release the buffers, and all that was prepared for the optimizer's parameters."""
        super().release()
        self._plans: dict[int, tuple[Footprint, PreparedStep]] = {}  # by the group's position

    def _copy(self, noise: Noise, *, every: bool) -> None:
        """Nothing yet: whether a copy is needed is known when the gradients are, and a closure may still make them."""

    def update(self) -> bool:
        """Update the parameters with their factors; ``False`` if torch's step has to."""
        noise = self.noise
        if noise is None or not noise.fine:
            return False
        reason = _objection(noise.fine) if noise.by_kernel is None else self._fuse(noise.by_kernel)
        if reason is not None:
            if reason != self.fallback:
                _warn_of_fallback(self._fused, reason, stacklevel=6)  # past step, its hooks and its guard
            super()._copy(noise, every=False)
        self.fallback = reason
        return reason is None

    def _fuse(self, acting: Acting) -> str | None:
        """Do the fused update of all groups, or say why nothing was done."""
        fused, form = self._fused, acting.form
        assert form is not None
        groups = fused.param_groups
        for group in groups:
            if group.get("foreach") or group.get("fused") is False:
                return "foreach=True or fused=False asks for torch's own"
        own = vars(fused)
        if own.get("grad_scale") is not None or own.get("found_inf") is not None:
            return "a GradScaler leaves the gradients' scale to torch's fused step; use fused=None"
        settings = [fused._settings(group) for group in groups]
        grads = [self._known_gradients(index, settings[index]) for index in range(len(groups))]
        unknown = {index: fused._update(groups[index]) for index, known in enumerate(grads) if known is None}
        for update in unknown.values():  # all before any is done: a step is fused as a whole or not at all
            if (reason := objection(update, fused._kernel, form)) is not None:
                return reason
        for index, update in unknown.items():
            fresh = _start(update)
            ids = self._factors.ids(update.params)
            plan = make_plan(update, fresh, ids, fused._kernel, form, acting.position)  # may compile, for seconds
            for position, is_new in enumerate(fresh):
                if is_new:  # only now: an interrupted first step must find no momentum when it is made again
                    fused.state[update.params[position]][update.first_state] = update.states[0][position]
            self._plans[index] = Footprint(fused, groups[index], update), plan
            grads[index] = local(update.grads)
        for index, (_, numbers) in enumerate(settings):
            self._plans[index][1].run(grads[index] or [], numbers, acting.seed, acting.counter)
        return None

    def _known_gradients(self, index: int, settings: Settings) -> list[Tensor] | None:
        """The gradients of a group that is as its plan knows it; a plan that does not fit is thrown away."""
        if index not in self._plans:
            return None
        footprint, _ = self._plans[index]
        grads = footprint.gradients(self._fused.param_groups[index], settings)
        if grads is None:
            del self._plans[index]
        return grads


def _objection(fine: list[Acting]) -> str:
    """Why no kernel can draw the factors of these perturbations."""
    if len(fine) > 1:
        return "several perturbations are finer than a parameter group, and a kernel draws one"
    perturbation = fine[0].perturbation
    name = type(perturbation.distribution).__name__
    return f"the kernels draw Normal, Uniform and Bernoulli per element, not {name} per {perturbation.scope}"


def _start(update: Update) -> list[bool]:
    """Puts momenta of −0, to which the first gradient is added, where none exist yet; says for which parameters."""
    first = update.states[0] if update.states else []
    fresh = [state is None for state in first] or [False] * len(update.params)
    for position, param in enumerate(update.params):
        if fresh[position]:
            first[position] = torch.zeros_like(param, memory_format=torch.preserve_format).neg_()
    return fresh
