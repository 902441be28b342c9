"""Short texts that many messages share: the closest known name for a typo, and how many seeds it takes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"did you mean 'leap'? "``, with the closest of the known names; empty where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def seeds_range_words(seeds: tuple[int, int | None]) -> str:
    """``"at least 31 seeds"`` or ``"31 to 1250 seeds"``: the range of a number of seeds, see ``stats.seeds_range``."""
    fewest, most = seeds
    if most is None:
        return f"at least {fewest} seeds"
    return f"{fewest} seeds" if most == fewest else f"{fewest} to {most} seeds"


def settle_words(seeds: tuple[int, int | None] | None) -> str:
    """``"it takes 31 to 1250 seeds to settle it"``, for a range as in :func:`seeds_range_words` or ``None``."""
    if seeds is None:
        return "how many seeds would settle it is not known"
    more = ", and may take far more" if seeds[1] is None else ""
    return f"it takes {seeds_range_words(seeds)} to settle it{more}"
