"""Settings of every test: one thread a worker, so that timing noise and thread counts change no bits."""

import torch

torch.set_num_threads(1)
