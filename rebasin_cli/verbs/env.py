"""`env`: machine and packages, for bug reports."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from rebasin_cli import __version__
from rebasin_cli.verbs.cost import available_bytes
from rebasin_cli.verbs.document import Result
from rebasin_cli.verbs.versions import CORE, OPTIONAL, installed


@dataclass(frozen=True, slots=True)
class EnvResult(Result):
    """Versions by package (None: not installed), the machine, and the devices that torch can use."""

    rebasin: str
    python: str
    platform: str
    packages: Mapping[str, str | None]
    optional: Mapping[str, str | None]
    cpus: int
    threads: int | None
    available_memory_bytes: int | None
    devices: tuple[str, ...]
    problems: tuple[str, ...]


def env() -> EnvResult:
    """Collect versions and devices; a broken package becomes an entry of `problems`, never an exception."""
    threads: int | None = None
    devices: tuple[str, ...] = ()
    problems: list[str] = []
    try:
        import torch

        from rebasin_cli.execution.device import available_devices

        threads, devices = torch.get_num_threads(), available_devices()
    except Exception as error:  # the verb must work with a broken installation
        problems.append(f"torch cannot be imported: {type(error).__name__}: {error}")
    return EnvResult(
        rebasin=__version__,
        python=f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})",
        platform=platform.platform(),
        packages={name: installed(name) for name in CORE},
        optional={name: installed(name) for name in OPTIONAL},
        cpus=os.cpu_count() or 1,
        threads=threads,
        available_memory_bytes=available_bytes(),
        devices=devices,
        problems=tuple(problems),
    )
