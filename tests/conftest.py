"""What every test process has: one thread, default signals, and a cache directory that is not the user's.

The tests run side by side, and small products gain nothing from more threads. A shell starts background jobs with
SIGINT ignored, which the processes that they start inherit: programs that a test interrupts would run for ever.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit what the first process chose
    _cache = tempfile.mkdtemp(prefix="rebasin-tests-")
    os.environ["XDG_CACHE_HOME"] = _cache
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
