"""What a run costs: wall-clock seconds by phase, and the peak of resident memory."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rebasin_cli.checkpoint.mapped_file import data_memory_is_limited

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_SPARE = 1 << 20


def peak_rss_bytes() -> int | None:
    """The largest resident set of this process so far, in bytes (mapped file pages included); None where unknown."""
    with contextlib.suppress(
        OSError, ValueError, IndexError
    ):  # Linux; ru_maxrss there counts the process that started this one
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.split("VmHWM:", 1)[1].split(None, 1)[0]) * 1024
    try:
        import resource
    except ImportError:  # no such module on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes() -> int | None:
    """Memory that can still be had without swapping, in bytes, minding the control group; None where unknown."""
    bounds = [bound for bound in (_meminfo_available(), _cgroup_headroom()) if bound is not None]
    return min(bounds, default=None)


def _meminfo_available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def _cgroup_headroom() -> int | None:
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text().strip()
        return None if limit == "max" else max(0, int(limit) - int((root / "memory.current").read_text()))
    except (OSError, ValueError):
        return None


class PhaseClock:
    """Adds up wall-clock seconds by phase; `seconds()` also gives the total since the clock was made."""

    def __init__(self, *phases: str) -> None:
        self._began = time.perf_counter()
        self._spent = dict.fromkeys(phases, 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._spent[name] = self._spent.get(name, 0.0) + time.perf_counter() - began

    def attribute(self, source: str, target: str, seconds: float) -> None:
        """Count seconds spent inside one phase as another's: checks run while the temporary file is open."""
        self._spent[source] = self._spent.get(source, 0.0) - seconds
        self._spent[target] = self._spent.get(target, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        rounded = {name: round(spent, 4) for name, spent in self._spent.items()}
        return {**rounded, "total": round(time.perf_counter() - self._began, 4)}


def spare_limited_memory() -> None:
    """Under a limit on data memory (RLIMIT_DATA), let freed memory go back to the system at once."""
    if data_memory_is_limited():
        spare_memory()


def spare_memory() -> None:
    """Let freed memory go back to the system at once, so that the peak is that of what is in use.

    glibc by default keeps what was freed of up to 32 MiB a piece, and leaves gaps in it that large tensors do not fit;
    MKL keeps a buffer of about 10 MB for every kind of product. Fresh pages are slow, so elsewhere they may.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_TRIM_THRESHOLD, _SPARE)
        library.mallopt(_MMAP_THRESHOLD, _SPARE)
        library.malloc_trim(0)
    with contextlib.suppress(OSError, AttributeError, KeyError):  # where PyTorch was built without MKL
        products = ctypes.CDLL(str(Path(str(sys.modules["torch"].__file__)).parent / "lib" / "libtorch_cpu.so"))
        products.mkl_serv_disable_fast_mm()
        products.mkl_serv_free_buffers()


def release_freed_memory() -> None:
    """Give what was freed back to the system, where the C library keeps it by default (glibc's `malloc_trim`)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
