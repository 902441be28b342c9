"""Settings of every test: one thread a worker, so that timing noise and thread counts change no bits."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Under ``-n``, the tests of the Ray cluster stay in one process, so that there is one cluster."""
    from xdist.scheduler import LoadScopeScheduling

    class OneCluster(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return "ray" if "executors/test_ray.py" in nodeid else nodeid

    return OneCluster(config, log)
