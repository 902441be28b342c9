"""The device on which the contract and the mixed-precision tests run: ``FLATWISE_TEST_DEVICE``, by default the CPU."""

import os

import torch

DEVICE = torch.device(os.environ.get("FLATWISE_TEST_DEVICE") or "cpu")
