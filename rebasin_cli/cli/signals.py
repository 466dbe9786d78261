"""Signals become exceptions, so that `finally` runs and no temporary file stays behind."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Terminated(BaseException):
    """SIGTERM has arrived. Not an Exception: nobody may swallow it by accident."""


def _raise_terminated(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


def install() -> None:
    """Let SIGTERM unwind the stack as SIGINT does; only the main thread may, and only it needs to."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise_terminated)


def uninstall() -> None:
    """What arrives when all is done ends the process as it ends any other."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
