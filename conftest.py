"""Settings of every test: one thread a worker, so that timing noise and thread counts change no bits."""

import signal

import pytest
import torch

torch.set_num_threads(1)
# A shell's background job ignores Ctrl-C, and so would the programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
SHARING = ("frameworks/test_ray.py", "test_report_browser.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Under ``-n``, the tests that share something costly stay in one process: one cluster, one browser."""
    from xdist.scheduler import LoadScopeScheduling

    class SomeFilesWhole(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return next((file for file in SHARING if file in nodeid), nodeid)

    return SomeFilesWhole(config, log)
