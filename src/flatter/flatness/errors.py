"""What can be wrong with a measurement."""

from __future__ import annotations


class FlatnessError(ValueError):
    """A model, a loss or data that cannot be measured as asked. The message is one line."""
