"""Random words as a pure function of (seed, tick, stream, unit, element): nothing stored, no global state touched.

``philox.py`` and ``keys.py`` turn names into keys, ``reference.py`` is the meaning of every word and value,
``dispatch.py`` chooses who computes them. The specification to the bit is in ``docs/noise.md``.
"""
