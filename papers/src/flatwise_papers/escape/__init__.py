"""The papers' theory of escape from minima, simulated, and their test functions."""
