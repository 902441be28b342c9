"""Escape times under another default device and dtype."""

import torch

from flatwise_papers.escape.double_well import DoubleWell, exact_escape, simulate_escape


def test_another_default_device_and_dtype_change_nothing():
    """Every tensor names its device: on the meta device it would have no values."""
    well = DoubleWell(barriers=(0.1, 0.1))

    def measured():
        times = simulate_escape(well, lr=0.1, batch_size=1, replicas=20, updates=20).times
        return exact_escape(well, lr=0.1, batch_size=1), times.tolist()

    expected = measured()
    with torch.device("meta"):
        assert str(measured()) == str(expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert str(measured()) == str(expected)
    finally:
        torch.set_default_dtype(torch.float32)
