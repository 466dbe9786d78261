"""What every test process has: one thread, and a cache directory that is not the user's.

The tests run side by side, and small products gain nothing from more threads.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit what the first process chose
    _cache = tempfile.mkdtemp(prefix="rebasin-tests-")
    os.environ["XDG_CACHE_HOME"] = _cache
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
