"""A random token for the Ray clusters that tests start: Ray reads it when it is imported, so it comes first.

And Ctrl-C for the processes that tests start, also where the shell that runs pytest ignores it; and property tests that
draw the same examples on every run, however slow the machine is.
"""

import gc
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings

from raylane.cluster.local_ray import use_a_token

use_a_token()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a background job of a shell; children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("raylane", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("raylane")


@pytest.fixture
def cpu_clock() -> Iterator[Callable[[], float]]:
    """The CPU seconds of this process, without those that collecting what other tests left in memory would add."""
    gc.collect()
    gc.freeze()
    yield time.process_time
    gc.unfreeze()
