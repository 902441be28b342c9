"""What can be wrong with a measurement."""

from __future__ import annotations


class FlatnessError(ValueError):
    """A model, a loss or data that cannot be measured as asked. The message is one line."""


def checked_count(name: str, value: int, least: int = 1) -> int:
    """A whole number.

    Raises:
        FlatnessError: it is none, or below ``least``.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise FlatnessError(f"{name} must be a whole number, {least} or more; got {value!r}")
    return value
