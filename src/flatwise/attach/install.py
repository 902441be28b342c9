"""Hooks into an optimizer that also cover exceptions, copies and loaded checkpoints."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

HANDLE = "_flatwise_handle"

Remover = Callable[[], object]


Call = tuple[tuple[Any, ...], dict[str, Any]]


class Attachment(Protocol):
    """What is installed: callbacks for an optimizer's events, and how to perturb a copy."""

    def enter_step(self) -> None:
        """When ``optimizer.step`` is called."""

    def before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Before the optimizer's own step; returns its new arguments, or ``None`` to keep those given."""

    def after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """After the optimizer's own step."""

    def leave_step(self, *, failed: bool) -> None:
        """When ``optimizer.step`` returns, or raises."""

    def on_load(self, optimizer: Optimizer) -> None:
        """After a state dict was loaded."""

    def reattach(self) -> Callable[[Optimizer], object]:
        """A picklable function that attaches the same to a copy."""


def install(optimizer: Optimizer, attachment: Attachment) -> list[Remover]:
    """Installs an attachment; calling the returned functions in reverse order removes it completely."""
    before = optimizer.register_step_pre_hook(_untraced(attachment.before_step))
    after = optimizer.register_step_post_hook(_untraced(attachment.after_step))
    loaded = optimizer.register_load_state_dict_post_hook(attachment.on_load)
    vars(optimizer)[HANDLE] = attachment
    return [
        before.remove,
        after.remove,
        loaded.remove,
        lambda: vars(optimizer).pop(HANDLE, None),
        _guard_step(optimizer, attachment, functools.partial(_stand_nearest, optimizer, before.id, after.id)),
        _keep_on_copy(optimizer, attachment),
    ]


def _stand_nearest(optimizer: Optimizer, before: int, after: int) -> None:
    """Move our hooks next to the step, because the user's hooks must see the clean rates."""
    pre_hooks: Any = optimizer._optimizer_step_pre_hooks  # OrderedDicts, whatever torch's annotation says
    post_hooks: Any = optimizer._optimizer_step_post_hooks
    if next(reversed(pre_hooks)) != before:
        pre_hooks.move_to_end(before)
    if next(iter(post_hooks)) != after:
        post_hooks.move_to_end(after, last=False)


def _untraced(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that ``torch.compile(optimizer.step)`` does not trace: its keys are numpy's, and new in every step."""

    def untraced(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Only when tracing, because the wrapper imports the compiler and takes longer than the hook itself.
        if torch.compiler.is_compiling():
            hook_as_it_is = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
            return hook_as_it_is(optimizer, args, kwargs)
        return hook(optimizer, args, kwargs)

    return untraced


def is_nested(optimizer: Optimizer) -> bool:
    """Whether a step of this optimizer is running further up the stack than the one whose hooks are being called.

    Torch wraps hooks around the ``step`` of each class, so a subclass that calls ``super().step()`` calls them twice.
    """
    frame: types.FrameType | None = sys._getframe(1)
    steps = 0
    while frame is not None and steps < 2:
        if frame.f_code is _HOOKED_STEP and frame.f_locals.get("self") is optimizer:
            steps += 1
        frame = frame.f_back
    return steps == 2


_HOOKED_STEP = Optimizer.profile_hook_step(lambda: None).__code__


def _guard_step(optimizer: Optimizer, attachment: Attachment, stand_nearest: Callable[[], None]) -> Remover:
    """Wrap ``optimizer.step``, as torch's schedulers do, because hooks alone do not see exceptions."""
    own = vars(optimizer).get("step")
    inner = optimizer.step

    def enter() -> None:
        if vars(optimizer).get(HANDLE) is attachment:
            stand_nearest()
            attachment.enter_step()

    def leave() -> None:
        attachment.leave_step(failed=False)

    @functools.wraps(inner)  # takes over the marks that schedulers leave on it
    def step(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
        begin, end = enter, leave
        if torch.compiler.is_compiling():
            begin, end = map(torch.compiler.disable, (enter, leave))
        begin()
        try:
            result = inner(*args, **kwargs)
        except BaseException:
            attachment.leave_step(failed=True)
            raise
        end()
        return result

    guard = types.MethodType(step, optimizer)
    vars(optimizer)["step"] = guard

    def remove() -> None:
        # A scheduler may have wrapped ours since; then ours stays inside and does nothing.
        if vars(optimizer).get("step") is guard:
            del vars(optimizer)["step"]
            if own is not None:
                vars(optimizer)["step"] = own

    return remove


def _keep_on_copy(optimizer: Optimizer, attachment: Attachment) -> Remover:
    """Attach the same to copies, because copying or pickling an optimizer drops its hooks."""

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
