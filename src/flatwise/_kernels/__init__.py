"""The fast implementations: what a backend is, and one room for each (numba for CPUs, Triton for GPUs).

``forms.py`` has what all backends share, and ``backend.py`` chooses one. Every kernel gives the bits of
``_noise.reference``.
"""
