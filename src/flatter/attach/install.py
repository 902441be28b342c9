"""Hooking into an optimizer so that nothing escapes: exceptions, copies, loaded checkpoints."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

HANDLE = "_flatter_handle"

Remover = Callable[[], object]


class Attachment(Protocol):
    """What is installed: the four events of an optimizer's life, and how to make a copy of it noisy again."""

    def before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the optimizer's own step."""

    def after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """After it."""

    def on_exception(self) -> None:
        """When it raised."""

    def on_load(self, optimizer: Optimizer) -> None:
        """After a state dict was loaded."""

    def reattach(self) -> Callable[[Optimizer], object]:
        """A picklable function that attaches the same to a copy."""


def install(optimizer: Optimizer, attachment: Attachment) -> list[Remover]:
    """Installs an attachment; calling the returned functions in reverse order takes every trace of it away."""
    before = optimizer.register_step_pre_hook(_untraced(attachment.before_step))
    after = optimizer.register_step_post_hook(_untraced(attachment.after_step))
    # First of the post-hooks: a user's own, which may step a scheduler, must find the clean rate.
    optimizer._optimizer_step_post_hooks.move_to_end(after.id, last=False)  # type: ignore[attr-defined]
    loaded = optimizer.register_load_state_dict_post_hook(attachment.on_load)
    vars(optimizer)[HANDLE] = attachment
    return [
        before.remove,
        after.remove,
        loaded.remove,
        lambda: vars(optimizer).pop(HANDLE, None),
        _guard_exceptions(optimizer, attachment),
        _keep_on_copy(optimizer, attachment),
    ]


def _untraced(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that ``torch.compile(optimizer.step)`` runs as it is: the keys are numpy's, and new at every step."""

    def untraced(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Only when tracing: the wrapper imports the compiler, and takes longer at every step than the hook.
        if torch.compiler.is_compiling():
            hook_as_it_is = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
            hook_as_it_is(optimizer, args, kwargs)
        else:
            hook(optimizer, args, kwargs)

    return untraced


def _guard_exceptions(optimizer: Optimizer, attachment: Attachment) -> Remover:
    """Wraps ``optimizer.step``, as torch's schedulers do: hooks alone do not learn of an exception."""
    own = vars(optimizer).get("step")
    inner = optimizer.step

    @functools.wraps(inner)  # takes over the marks that schedulers leave on it
    def step(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
        try:
            return inner(*args, **kwargs)
        except BaseException:
            attachment.on_exception()
            raise

    guard = types.MethodType(step, optimizer)
    vars(optimizer)["step"] = guard

    def remove() -> None:
        # A scheduler may have wrapped ours since: then ours stays inside, and does nothing any more.
        if vars(optimizer).get("step") is guard:
            del vars(optimizer)["step"]
            if own is not None:
                vars(optimizer)["step"] = own

    return remove


def _keep_on_copy(optimizer: Optimizer, attachment: Attachment) -> Remover:
    """Copying or pickling an optimizer drops its hooks: a copy of this one gets the same attachment instead."""

    def reduce(protocol: int) -> tuple[Any, ...]:
        reduced = type(optimizer).__reduce_ex__(optimizer, protocol)
        assert isinstance(reduced, tuple)
        rebuild, args, inner, *_ = reduced
        return _rebuild, (rebuild, args, inner, attachment.reattach())

    vars(optimizer)["__reduce_ex__"] = reduce
    return lambda: vars(optimizer).pop("__reduce_ex__", None)


def _rebuild(
    rebuild: Callable[..., Optimizer],
    args: tuple[Any, ...],
    inner: dict[str, Any],
    reattach: Callable[[Optimizer], object],
) -> Optimizer:
    optimizer = rebuild(*args)
    optimizer.__setstate__(inner)
    reattach(optimizer)
    return optimizer
