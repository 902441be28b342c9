"""Telling one training function from another, and from itself after an edit, so that no stale trial is reused."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


class NotIdentifiableError(ValueError):
    """A training function whose behaviour depends on what cannot be seen. The message is one line."""


def identify(function: Callable[..., Any], *, stored: bool) -> str:
    """A text that changes when the function does.

    It covers the function's source and name, the arguments of a ``functools.partial``, the values that a nested
    function closes over, defaults, and the attributes of a callable object: plain data, arrays and functions.

    Args:
        function: the training function.
        stored: whether trials are kept: then a function that cannot be told from another is refused.

    Raises:
        NotIdentifiableError: ``stored``, and the function has no source, or depends on something that is not plain.
    """
    try:
        content = _content(function)
    except NotIdentifiableError:
        if stored:
            raise
        content = None
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if content is None:
        return f"{name}"
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
    return f"{name} {digest[:12]}"


def _content(value: Any) -> Any:
    """The value as plain data; functions by their source and what they close over."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_content(item) for item in value]
    if isinstance(value, dict):
        return {repr(key): _content(item) for key, item in value.items()}
    if isinstance(value, (torch.Tensor, np.ndarray)):
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        return ["array", str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(value, functools.partial):
        return ["partial", _content(value.func), _content(value.args), _content(value.keywords)]
    if inspect.ismethod(value):
        return ["method", _content(value.__func__), _content(value.__self__)]
    if inspect.isfunction(value):
        closed = inspect.getclosurevars(value).nonlocals
        return ["function", value.__module__, _source(value), _content(value.__defaults__), _content(closed)]
    if inspect.ismodule(value) or inspect.isclass(value) or inspect.isbuiltin(value):
        return ["named", getattr(value, "__module__", None), value.__name__]
    if callable(value) and hasattr(value, "__dict__") and inspect.isfunction(type(value).__call__):
        return ["object", _source(type(value)), _content(vars(value))]
    raise NotIdentifiableError(
        f"the training function depends on a {type(value).__name__}, which flatter cannot tell from another when the "
        "comparison is continued: make it inside the function, or pass it in as a module-level name and say what "
        "matters of it in settings="
    )


def _source(value: Any) -> str:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        raise NotIdentifiableError(
            f"the source of {getattr(value, '__qualname__', value)!r} cannot be read, so an edit of it would go "
            "unnoticed: write it into a file, or leave out= away"
        ) from None
