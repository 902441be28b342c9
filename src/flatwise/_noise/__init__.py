"""Random words as a pure function of (seed, counter, stream, parameter id, element): nothing stored, no global state.

``keys.py`` turns names into keys, and ``reference.py`` is the meaning of every word and value. The specification to the
bit is in ``docs/noise.md``.
"""
