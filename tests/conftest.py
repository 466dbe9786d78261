"""One thread for every test process: the tests run side by side, and small products gain nothing from more."""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
